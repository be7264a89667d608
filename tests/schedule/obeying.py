"""Ranks that obey their orders exactly, without any bytes: in any timing, and looked at closely.

Of a state only its past is kept: the visits that made it. So a copy of a wrong state is seen.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from mophpc.schedule.orders import DROP, END, Link, Orders, StateCopy
from mophpc.schedule.plan import Plan, Stop, Visit
from mophpc.schedule.walk import LOOKAHEAD, ArenaQueue

Past: TypeAlias = tuple[str, ...]
"""Tokens of visits."""


@dataclass
class State:
    """A config's state on its way, or where it waits."""

    config_id: int
    past: Past = ()
    is_diverged: bool = False

    @property
    def step(self) -> int:
        return len(self.past)


@dataclass
class Made:
    """A visit that was made, as its rank reports it."""

    visit: Visit
    start_s: float
    end_s: float
    is_diverged: bool
    is_new: bool
    """Whether it made the config's first state."""


class Rank:
    """Takes orders and makes visits, as `mophpc.run.rank` does."""

    def __init__(self, world: World, rank: int) -> None:
        self._world = world
        self._rank = rank
        self.stops: list[Stop] = []
        self.position = 0
        self.is_busy = False
        self.was_told_last = 0
        self.queue = ArenaQueue([], 0, LOOKAHEAD)
        self._most = self._copied = 0
        self._reserved: set[int] = set()
        self.arrived: dict[int, State] = {}
        self._kept: dict[int, State] = {}
        self._undecided: dict[int, State] = {}
        self._copies: dict[tuple[int, int], list[StateCopy]] = defaultdict(list)
        self._dests: dict[tuple[int, int], int] = {}
        self._gone: dict[tuple[int, int], int] = {}
        self._ended = 0
        self.leaving = 0

    @property
    def is_over(self) -> bool:
        whole = self.was_told_last == 1 and self.position == len(self.stops)
        return whole and not (self.is_busy or self._ended or self.leaving)

    def tell(self, orders: Orders) -> None:
        assert self.was_told_last == 0, "something follows what was the last"
        begin = len(self.stops)
        self.stops += orders.stops
        needs = [begin + i for i, stop in enumerate(orders.stops) if stop.takes_arena]
        assert orders.max_arenas >= self._most
        self._most = orders.max_arenas
        self.queue.extend(needs, orders.max_arenas)
        self.was_told_last += orders.is_last
        made = [state for copy in orders.copies for state in self._copy_now(copy)]
        for link in sorted(orders.links, key=lambda link: link.dest >= 0):
            if link.dest >= 0 and made:
                self._undecided |= {state.config_id: state for state in made}
                made = []
            self._follow(link)
        self._undecided |= {state.config_id: state for state in made}

    def _follow(self, link: Link) -> None:
        state = self._undecided.get(link.config_id)
        if state is None or state.step != link.step:
            later = self._dests if link.dest >= 0 else self._gone
            later[link.config_id, link.step] = link.dest
        else:
            del self._undecided[link.config_id]
            self._go(state, link.dest)

    def _copy_now(self, copy: StateCopy) -> list[State]:
        source = self._undecided.get(copy.source)
        if source is not None and source.step == copy.step:
            return [self._copy(source, copy)]
        self._copies[copy.source, copy.step].append(copy)
        return []

    def _copy(self, source: State, copy: StateCopy) -> State:
        self.queue.hold()
        self._copied += 1
        return State(copy.config_id, source.past, source.is_diverged)

    def advance(self) -> None:
        """Post receives, let go of what has ended, and start the next visit if it can start."""
        if not self.is_busy:
            for _ in range(self._ended):
                self.queue.release()
            self._ended = 0
        while (position := self.queue.take()) is not None:
            stop = self.stops[position]
            if stop.receive is None:
                self._reserved.add(position)
            else:
                self._world.post(stop, self, position)
        assert self.queue.held <= self._most + self._copied, "more states than orders allow"
        if not self.is_busy and self.position < len(self.stops):
            self._start(self.stops[self.position])

    def _start(self, stop: Stop) -> None:
        visit, position = stop.visit, self.position
        if stop.takes_arena:
            if position not in self._reserved and position not in self.arrived:
                return
            self.queue.start()
            if position in self._reserved:
                self._reserved.remove(position)
                state = self._world.new_state(stop)
            else:
                state = self.arrived.pop(position)
        else:
            state = self._kept.pop(visit.config_id)
        self.is_busy = True
        self._world.train(self, stop, state)

    def end(self, stop: Stop, state: State) -> None:
        """A visit has been made."""
        self.is_busy = False
        self.position += 1
        for copy in self._copies.pop((state.config_id, state.step), ()):
            made = self._copy(state, copy)
            self._undecided[made.config_id] = made
            if (dest := self._dests.pop((made.config_id, made.step), None)) is not None:
                self._follow(Link(made.config_id, made.step, dest))
        key = (state.config_id, state.step)
        if stop.is_last or stop.is_dropped:
            self.queue.release()
        elif not stop.is_open:
            self._go(state, self._rank if stop.send is None else stop.send.dest)
        elif (known := self._gone.pop(key, self._dests.get(key))) is not None:
            self._dests.pop(key, None) if known >= 0 else None
            self._go(state, known)
        else:
            self._undecided[state.config_id] = state

    def _go(self, state: State, dest: int) -> None:
        if dest == END:
            self._ended += 1
        elif dest == DROP:
            self.queue.release()
        elif dest == self._rank:
            self._kept[state.config_id] = state
        else:
            self.leaving += 1
            self._world.send(state, self, self._rank, dest)


@dataclass
class World:
    """All ranks, and the way between them: a made-up clock, and events in its order.

    Args:
        plan: sizes and owners.
        rng: of all times.
        visit_s: seconds of visits, by config modulo its length.
        report: takes what ranks report.
        is_late: whether reports and orders take their time; those of a rank keep their order.
    """

    plan: Plan
    rng: np.random.Generator
    visit_s: np.ndarray
    report: Callable[[Made], None]
    is_late: bool = False
    diverging: set[int] = field(default_factory=set)
    """Configs whose next visit diverges."""

    def __post_init__(self) -> None:
        self.now_s = 0.0
        self.ranks = [Rank(self, rank) for rank in range(self.plan.num_ranks)]
        self.pasts: dict[tuple[int, int], Past] = {}
        """Of each visit that was made, by (config, step): what its state had seen before it."""
        self.truth: dict[int, Past] = {}
        """What the state of each config has to be; whoever lets copies be made changes it."""
        self.disk: dict[tuple[int, int], Past] = {}
        """States in files, by (config, step)."""
        self.busy_s = 0.0
        self._training: set[int] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        self._posted: dict[tuple[int, int, int], deque[tuple[Rank, int]]] = defaultdict(deque)
        self._sent: dict[tuple[int, int, int], deque[tuple[State, Rank]]] = defaultdict(deque)
        self._heard_s = [0.0] * self.plan.num_ranks
        self._told_s = [0.0] * self.plan.num_ranks
        self._mean_s = float(self.visit_s.mean())

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._at(self.now_s + seconds, what)

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        """Let something happen at a moment; what is for the same moment keeps its order."""
        heapq.heappush(self._events, (at_s, next(self._number), what))

    def step(self) -> bool:
        """Let the next event happen; return whether there was one."""
        for rank in self.ranks:
            rank.advance()
        if not self._events:
            return False
        at, _, what = heapq.heappop(self._events)
        self.now_s = max(self.now_s, at)
        what()
        for rank in self.ranks:
            rank.advance()
        return True

    @property
    def is_over(self) -> bool:
        return all(rank.is_over for rank in self.ranks)

    def tell(self, orders: list[Orders]) -> None:
        """Tell each rank its part: rank 0 at once, the others when it has come to them."""
        for rank, own in enumerate(orders):
            sent = Orders.from_json(json.loads(json.dumps(own.to_json())))
            if not rank:
                self.ranks[0].tell(sent)
            elif not own.is_nothing:
                self._told_s[rank] = at = max(self._told_s[rank], self.now_s + self._delay())
                self._at(at, lambda one=sent, to=rank: self.ranks[to].tell(one))

    def _delay(self) -> float:
        return float(self.rng.exponential()) * self._mean_s if self.is_late else 0.0

    # What ranks do.

    def new_state(self, stop: Stop) -> State:
        """Return the state of a visit that none is kept for, and none comes for."""
        visit = stop.visit
        if stop.loads is None:
            assert stop.creates
            return State(visit.config_id)
        assert not stop.creates
        return State(visit.config_id, self.disk[stop.loads, visit.step])

    def train(self, rank: Rank, stop: Stop, state: State) -> None:
        visit, config_id = stop.visit, stop.visit.config_id
        assert state.config_id == config_id
        assert state.step == visit.step, "a state that has made other visits"
        assert state.past == self.truth.get(config_id, ()), "the state of another"
        assert config_id not in self._training, "a config in two places"
        assert visit.shard in self.plan.shards_of(visit.rank)
        assert self.ranks[visit.rank] is rank
        epoch = [Visit.parse(one) for one in state.past[visit.epoch * self.plan.num_shards :]]
        assert visit.shard not in [one.shard for one in epoch], "a shard twice in an epoch"
        assert visit.epoch == visit.step // self.plan.num_shards
        assert (config_id, visit.step) not in self.pasts
        self.pasts[config_id, visit.step] = state.past
        self._training.add(config_id)
        is_new, start_s = not state.past, self.now_s
        mean_s = float(self.visit_s[config_id % len(self.visit_s), visit.shard])
        took_s = 0.0 if state.is_diverged else mean_s * float(self.rng.lognormal(sigma=0.7))

        def end() -> None:
            self._training.discard(config_id)
            self.busy_s += took_s
            if config_id in self.diverging:
                state.is_diverged = True
            state.past += (str(visit),)
            self.truth[config_id] = state.past
            rank.end(stop, state)
            made = Made(visit, start_s, self.now_s, state.is_diverged, is_new)
            self._hear(visit.rank, lambda: self.report(made))

        self.after(took_s, end)

    def _hear(self, rank: int, what: Callable[[], None]) -> None:
        if not (rank and self.is_late):
            what()
            return
        self._heard_s[rank] = at = max(self._heard_s[rank], self.now_s + self._delay())
        self._at(at, what)

    def post(self, stop: Stop, rank: Rank, position: int) -> None:
        hop = stop.receive
        assert hop is not None
        self._posted[hop.source, hop.dest, hop.config_id].append((rank, position))
        self._match(hop.source, hop.dest, hop.config_id)

    def send(self, state: State, rank: Rank, source: int, dest: int) -> None:
        self._sent[source, dest, state.config_id].append((state, rank))
        self._match(source, dest, state.config_id)

    def _match(self, *key: int) -> None:
        while self._posted[key] and self._sent[key]:
            (to, position), (state, of) = self._posted[key].popleft(), self._sent[key].popleft()
            took_s = float(self.rng.exponential()) * self._mean_s * float(self.rng.integers(2))
            self.after(took_s, lambda s=state, t=to, p=position, o=of: _arrive(s, t, p, o))


def _arrive(state: State, to: Rank, position: int, of: Rank) -> None:
    of.queue.release()
    of.leaving -= 1
    to.arrived[position] = state
