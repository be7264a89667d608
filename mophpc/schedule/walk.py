"""The rule by which a rank takes arenas, and the abstract walk of all ranks that obeys it.

How a rank walks its list
-------------------------
A rank makes its visits in order. For a visit it needs the config's state, which is

- made here, if this is the config's step 0;
- still here, if the config's previous step was on the same rank (other configs may have been
  trained in between, as at the turn of an epoch);
- received by a hop otherwise.

The first and the last need an arena that the rank does not hold yet. Arenas are taken strictly in
the order of the visits that need one: never for a later visit before an earlier one, so that a
receive posted ahead cannot eat the arena that the next visit needs. The next such visit takes its
arena as soon as

- fewer than `lookahead` visits have taken an arena and not started, and
- the rank holds fewer than `max_arenas` arenas.

To take an arena for a receive is to post that receive; for a new state it is a reservation. The
arena is held while the receive is open, while the visit runs, while the state is kept for a later
visit, and until its send has completed; the last visit of a config gives it back when it ends.
After a visit whose next step is elsewhere, the send is posted at once and completes when the dest
has posted the receive (rendezvous: nothing is assumed about the library's buffers). Where a
state is copied for another config, the copy takes an arena more at once, as part of the end of the
visit. `max_arenas` counts the copies that are ever made on a rank on top of what the walk needs:
then no copy can keep a visit from its arena, and they are left out of the walk.

Why one walk decides
--------------------
The steps are: rank r takes its k-th arena, starts or ends its i-th visit, a hop completes. Each
happens at most once, and each is allowed by a set of others having happened, or by a number of them
(arenas given back, visits started) having been reached; since arenas are taken in a fixed order, no
two steps compete for one. So a step that is allowed stays allowed until it happens, whatever else
happens first. Then any order of firing what is allowed ends in the same, largest set of steps, and
the plan ends under every timing if and only if it ends under the greedy one that `stuck` follows. A
larger `max_arenas` or `lookahead` allows more, so a plan that ends with n arenas ends with n + 1.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mophpc.schedule.plan import Columns, Plan, columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOOKAHEAD = 3

_WAITS = -2
"""After a visit: the state waits, since what follows is not known."""

# A source that trains one config while its last one leaves and its next one comes.
SPARE_ARENAS = 2


class ArenaQueue:
    """Which visit of one rank may take an arena next.

    Args:
        needs: positions in the rank's list of the visits that need an arena, ascending
            (`Stop.takes_arena`).
        max_arenas: how many arenas the rank may hold.
        lookahead: how many visits may have an arena before they start.
    """

    __slots__ = ("_held", "_lookahead", "_max_arenas", "_needs", "_started", "_taken")

    def __init__(self, needs: Sequence[int], max_arenas: int, lookahead: int = LOOKAHEAD) -> None:
        self._needs = list(needs)
        self._max_arenas = max_arenas
        self._lookahead = lookahead
        self._taken = 0
        self._started = 0
        self._held = 0

    @property
    def held(self) -> int:
        """Arenas that the rank holds now."""
        return self._held

    def extend(self, needs: Sequence[int], max_arenas: int) -> None:
        """Add further visits that need an arena; the rank may hold `max_arenas` from now on."""
        self._needs += needs
        self._max_arenas = max_arenas

    def take(self) -> int | None:
        """Take an arena for the next visit that needs one and return its position, else None."""
        if (
            self._taken == len(self._needs)
            or self._taken - self._started == self._lookahead
            or self._held >= self._max_arenas
        ):
            return None
        self._taken += 1
        self._held += 1
        return self._needs[self._taken - 1]

    def start(self) -> None:
        """Note that the next visit with a taken arena starts, which lets one more be taken."""
        assert self._started < self._taken
        self._started += 1

    def hold(self) -> None:
        """Hold one arena more, for the copy of a state."""
        self._held += 1

    def release(self) -> None:
        """Give an arena back: a send completed, or a config's last visit ended."""
        assert self._held > 0
        self._held -= 1


@dataclass(frozen=True, slots=True)
class Stuck:
    """A visit that can never start; `index` is its place in the plan's columns."""

    rank: int
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Links:
    """What the walk needs to know of each visit, as plain lists (faster to index than arrays)."""

    before: list[int]
    after: list[int]
    rank: list[int]
    first: tuple[int, ...]
    needs: tuple[tuple[int, ...], ...]
    copies: dict[int, list[int]]
    """After a visit: those that begin with a copy of its state."""
    origin: dict[int, int] = field(default_factory=dict)
    """Of a visit whose state waits somewhere when the walk begins: the rank."""
    held: tuple[int, ...] = ()
    """Arenas of each rank that hold such states."""

    @property
    def most_copies(self) -> int:
        """Copies that are made on one rank, at most."""
        made = Counter(self.rank[index] for index, copies in self.copies.items() for _ in copies)
        return max(made.values(), default=0)


def stuck(
    plan: Plan, max_arenas: int | None = None, lookahead: int = LOOKAHEAD
) -> tuple[Stuck, ...]:
    """Walk the plan and return, per rank that cannot end, the visit at which it stops for ever.

    Args:
        plan: a plan in which each config makes each of its steps once.
        max_arenas: arenas of a rank; the plan's own by default.
        lookahead: visits that may have an arena before they start.

    Raises:
        PlanError: a config lacks a step or makes one twice.
    """
    links = _link(plan, columns(plan))
    arenas = plan.max_arenas if max_arenas is None else max_arenas
    return _walk(links, arenas - links.most_copies, lookahead)


def least_arenas(plan: Plan, lookahead: int = LOOKAHEAD) -> int | None:
    """Return how many arenas a rank needs for the walk to end; None if no number is enough.

    The search starts at ceil(num_configs / num_ranks) + 2, since fewer than that leave no room to
    overlap a hop with a visit.

    Raises:
        PlanError: a config lacks a step or makes one twice.
    """
    links = _link(plan, columns(plan))
    low = -(-plan.num_configs // plan.num_ranks) + SPARE_ARENAS
    # A rank never holds two arenas of one config, so more than one per config change nothing.
    high = max(low, plan.num_configs + 1)
    found = _least(links, low, high, lookahead)
    return None if found is None else found + links.most_copies


def arenas_from_here(
    visits: Sequence[Sequence[tuple[int, int]]],
    waits_at: Mapping[int, int],
    low: int,
    lookahead: int = LOOKAHEAD,
) -> int | None:
    """Return how many arenas a rank needs to make some visits, with states waiting on ranks.

    A state waits where its config made its last visit, and afterwards again, since what follows is
    not known yet. None if no number is enough.

    Args:
        visits: of each rank, in order, as (config, step).
        waits_at: rank by config, of every config that has a state now, whether or not it is among
            the visits.
        low: what the ranks may hold now; no less is returned.
        lookahead: visits that may have an arena before they start.
    """
    ranks = [rank for rank, own in enumerate(visits) for _ in own]
    flat = [visit for own in visits for visit in own]
    index_of = {visit: index for index, visit in enumerate(flat)}
    before = [index_of.get((config, step - 1), -1) for config, step in flat]
    after = [index_of.get((config, step + 1), _WAITS) for config, step in flat]
    origin = {
        index: waits_at[config]
        for index, (config, _) in enumerate(flat)
        if before[index] < 0 and config in waits_at
    }
    held = [0] * len(visits)
    for rank in waits_at.values():
        held[rank] += 1
    first = [0]
    for own in visits:
        first.append(first[-1] + len(own))
    came_from = [
        origin.get(index, -1) if previous < 0 else ranks[previous]
        for index, previous in enumerate(before)
    ]
    needs = tuple(
        tuple(i - begin for i in range(begin, end) if came_from[i] != ranks[i])
        for begin, end in pairwise(first)
    )
    links = _Links(before, after, ranks, tuple(first), needs, {}, origin, tuple(held))
    configs = len({config for config, _ in flat} | set(waits_at))
    return _least(links, low, max(low, configs + 1), lookahead)


def _least(links: _Links, low: int, high: int, lookahead: int) -> int | None:
    """Return the least number of arenas with which the walk ends, of those from low to high."""
    gap = 0
    while _walk(links, min(low + gap, high), lookahead):
        if low + gap >= high:
            return None
        gap = max(1, 2 * gap)
    good, bad = min(low + gap, high), low + gap // 2 - (gap == 0)
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (good, middle) if _walk(links, middle, lookahead) else (middle, bad)
    return good


def arenas_in_use(plan: Plan, lookahead: int = LOOKAHEAD) -> int:
    """Return how many arenas a rank needs so that none is waited for, by the predicted times.

    A state is counted from the start of its stay on a rank to the start of the next one elsewhere,
    though it leaves sooner where the dest has posted its receive; and the receives posted ahead are
    counted on top.

    Raises:
        PlanError: a config lacks a step or makes one twice.
    """
    table = columns(plan)
    before, after = table.links(plan)
    visits = tuple(plan.visits())
    start = np.array([visit.predicted_start_s for visit in visits])
    end = np.array([visit.predicted_end_s for visit in visits])
    comes = (before < 0) | (table.rank[before] != table.rank)
    leaves = (after < 0) | (table.rank[after] != table.rank)
    gone = np.where(after < 0, end, start[after])
    most = 0
    for begin, until in zip(table.first[:-1], table.first[1:], strict=True):
        own = slice(begin, until)
        times = np.concatenate((start[own][comes[own]], gone[own][leaves[own]]))
        change = np.repeat((1, -1), (comes[own].sum(), leaves[own].sum()))
        order = np.lexsort((change, times))  # at equal times, a state leaves before one comes
        most = max(most, int(np.cumsum(change[order]).max(initial=0)))
    # A rank never holds two arenas of one config.
    return min(most + lookahead, plan.num_configs + 1)


def _link(plan: Plan, table: Columns) -> _Links:
    before, after = table.links(plan)
    # rank[before] is harmless for -1: step 0 needs an arena anyway.
    needs = (before < 0) | (table.rank[before] != table.rank)
    copies: dict[int, list[int]] = {}
    if plan.forks:
        for index in np.flatnonzero((before >= 0) & (after[before] != np.arange(len(before)))):
            copies.setdefault(int(before[index]), []).append(int(index))
    return _Links(
        before=before.tolist(),
        after=after.tolist(),
        rank=table.rank.tolist(),
        first=table.first,
        needs=tuple(
            tuple(np.flatnonzero(needs[begin:end]).tolist())
            for begin, end in zip(table.first[:-1], table.first[1:], strict=True)
        ),
        copies=copies,
    )


class _Walk:
    """One walk: what has happened so far, and the ranks that may be able to go on."""

    __slots__ = (
        "arrived",
        "done",
        "extra",
        "links",
        "posted",
        "queues",
        "ready",
        "sent",
        "waiting",
    )

    def __init__(self, links: _Links, max_arenas: int, lookahead: int) -> None:
        total = len(links.before)
        self.links = links
        self.queues = [ArenaQueue(needs, max_arenas, lookahead) for needs in links.needs]
        self.posted = bytearray(total)  # the visit has its arena; its receive is posted
        self.sent = bytearray(total)  # the send that leads to the visit is posted
        self.arrived = bytearray(total)  # the state is there
        self.extra = bytearray(total)  # the state is a copy in an arena that is not counted
        self.done = list(links.first[:-1])  # per rank, its first visit that has not ended
        for queue, held in zip(self.queues, links.held, strict=False):
            for _ in range(held):
                queue.hold()
        for index, rank in links.origin.items():
            self.arrived[index] = rank == links.rank[index]
        self.waiting = deque(range(len(links.needs)))
        self.ready = bytearray([1] * len(links.needs))  # whether the rank is in `waiting`

    def run(self) -> None:
        while self.waiting:
            rank = self.waiting.popleft()
            self.ready[rank] = 0
            self._advance(rank)

    def wake(self, rank: int) -> None:
        if not self.ready[rank]:
            self.ready[rank] = 1
            self.waiting.append(rank)

    def _advance(self, rank: int) -> None:
        """Let one rank go as far as it can."""
        queue, base = self.queues[rank], self.links.first[rank]
        end = self.links.first[rank + 1]
        while True:
            while (position := queue.take()) is not None:
                self._post(base + position)
            index = self.done[rank]
            if index == end or not self.may_start(index):
                return
            if self.posted[index]:
                queue.start()
            self.done[rank] = index + 1
            self._leave(index)

    def _post(self, index: int) -> None:
        self.posted[index] = 1
        source = self.links.before[index]
        if source < 0:
            self.arrived[index] = 1
            if (origin := self.links.origin.get(index)) is not None:
                self.queues[origin].release()
                self.wake(origin)
        elif self.sent[index]:
            self._arrive(self.links.rank[source], index)
            self.wake(self.links.rank[source])

    def may_start(self, index: int) -> bool:
        if self.arrived[index]:
            return True
        before = self.links.before[index]
        rank = self.links.rank[index]
        return before >= 0 and self.links.rank[before] == rank and before < self.done[rank]

    def _leave(self, index: int) -> None:
        """End a visit: keep the state, send it, or let it go."""
        rank, following = self.links.rank[index], self.links.after[index]
        for copy in self.links.copies.get(index, ()):
            self.extra[copy] = 1
            if self.links.rank[copy] == rank:
                self.arrived[copy] = 1
            else:
                self._send(rank, copy)
        if following == _WAITS:
            return
        if following >= 0:
            self.extra[following] = self.extra[index]
        if following < 0:
            self._release(rank, index)
        elif self.links.rank[following] != rank:
            self._send(rank, following)

    def _send(self, rank: int, following: int) -> None:
        self.sent[following] = 1
        if self.posted[following]:
            self._arrive(rank, following)
            self.wake(self.links.rank[following])

    def _arrive(self, source: int, index: int) -> None:
        """A state has come from another rank, which has its arena back."""
        self.arrived[index] = 1
        self._release(source, index)
        self.extra[index] = 0

    def _release(self, rank: int, index: int) -> None:
        if not self.extra[index]:
            self.queues[rank].release()


def _walk(links: _Links, max_arenas: int, lookahead: int) -> tuple[Stuck, ...]:
    walk = _Walk(links, max_arenas, lookahead)
    walk.run()
    found = []
    for rank, index in enumerate(walk.done):
        if index == links.first[rank + 1]:
            continue
        before = links.before[index]
        if before >= 0 and links.rank[before] == rank:
            reason = "its previous visit comes later in the rank's list"
        elif not walk.posted[index]:
            reason = f"all {max_arenas} arenas of the rank are held"
        else:
            reason = f"its state never leaves rank {links.rank[before]}"
        found.append(Stuck(rank, index, reason))
    return tuple(found)
