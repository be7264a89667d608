"""What a rank is told: its next visits, and where configs go that it has trained already.

A plan may be renewed while it runs, so a rank gets it in parts. What a rank has been told stays;
what comes after may still change until it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mophpc.schedule.plan import Brought, Fork, Hop, Plan, Stop, Visit, stops

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE, _LAST, _OPEN, _DROPPED = -1, -2, -3, -4

_FILE = -2
"""As a source: a file of config 0; less by 1 for each config after it."""

_DISK = -1
"""As the rank of a state: any may read it from its file."""

END, DROP = -1, -2
"""As the `dest` of a link: the config ends where it is; its state gives way to another's."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a config goes after a visit that was open: `dest` makes its visit `step`."""

    config_id: int
    step: int
    dest: int


@dataclass(frozen=True, slots=True)
class StateCopy:
    """After its visit `step` - 1, the state of `source` is copied; a link says where the copy goes.

    The copy belongs to `config_id`, and is ready for its visit `step`.
    """

    source: int
    config_id: int
    step: int


@dataclass(frozen=True, slots=True)
class Orders:
    """The next part of a rank's list.

    `links` concern configs whose last promised visit the rank was told before. `max_arenas` is how
    many states the rank may hold from now on; it never becomes less. After the last part no other
    follows. `copies` are made of states that are here when their visits end. `news` are facts about
    configs for whoever trains them; opaque here.
    """

    stops: tuple[Stop, ...]
    links: tuple[Link, ...]
    max_arenas: int
    is_last: bool
    copies: tuple[StateCopy, ...] = ()
    news: tuple[dict[str, Any], ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.stops or self.links or self.copies or self.news or self.is_last)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "stops": [
                [
                    str(stop.visit),
                    _source_of(stop),
                    _next_of(stop),
                ]
                for stop in self.stops
            ],
            "links": [[link.config_id, link.step, link.dest] for link in self.links],
            "max_arenas": self.max_arenas,
            "is_last": self.is_last,
        } | self._further()

    def _further(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.copies:
            found["copies"] = [[c.source, c.config_id, c.step] for c in self.copies]
        if self.news:
            found["news"] = list(self.news)
        return found

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Orders:
        """Read what `to_json` gave."""
        return cls(
            stops=tuple(_stop(*item) for item in record["stops"]),
            links=tuple(Link(*item) for item in record["links"]),
            max_arenas=record["max_arenas"],
            is_last=record["is_last"],
            copies=tuple(StateCopy(*item) for item in record.get("copies", ())),
            news=tuple(record.get("news", ())),
        )


def join(first: Sequence[Orders], second: Sequence[Orders]) -> list[Orders]:
    """Return for each rank what two parts tell that come one after the other."""
    return [
        Orders(
            stops=a.stops + b.stops,
            links=a.links + b.links,
            max_arenas=max(a.max_arenas, b.max_arenas),
            is_last=b.is_last,
            copies=a.copies + b.copies,
            news=a.news + b.news,
        )
        for a, b in zip(first, second, strict=True)
    ]


def _source_of(stop: Stop) -> int:
    if stop.loads is not None:
        return _FILE - stop.loads
    return _HERE if stop.receive is None else stop.receive.source


def _next_of(stop: Stop) -> int:
    if stop.is_open:
        return _OPEN
    if stop.is_last:
        return _LAST
    if stop.is_dropped:
        return _DROPPED
    return _HERE if stop.send is None else stop.send.dest


def _stop(token: str, source: int, following: int) -> Stop:
    visit = Visit.parse(token)
    receive = None if source < 0 else Hop(visit.config_id, visit.step, source, visit.rank)
    send = None if following < 0 else Hop(visit.config_id, visit.step + 1, visit.rank, following)
    kinds = (following == _LAST, following == _OPEN, following == _DROPPED)
    loads = _FILE - source if source <= _FILE else None
    return Stop(visit, receive, send, *kinds, loads)


def whole(plan: Plan, rank: int) -> Orders:
    """Return a rank's whole list, of a plan that is not renewed and has no copies."""
    assert not plan.forks
    return Orders(stops(plan, rank), (), plan.max_arenas, is_last=True)


class Promises:
    """All that the ranks have been told so far: the part of the schedule that stays."""

    def __init__(self, num_configs: int, num_ranks: int, num_steps: int) -> None:
        self.visits: list[list[Visit]] = [[] for _ in range(num_ranks)]
        """Per rank, in order."""
        self._last: list[Visit | None] = [None] * num_configs
        self._ends = [num_steps] * num_configs
        self._promised = [False] * num_configs
        self._copied: dict[int, int] = {}  # config whose next visit begins with a copy: the source
        self._trained: dict[int, int] = {}  # copy without a visit yet: who trained its state
        self._closing: list[tuple[int, Link]] = []  # (rank, link) of states that go nowhere
        self._brought: dict[int, int] = {}  # config whose state no visit made: whose state it is
        self._shards_done: dict[int, tuple[int, ...]] = {}  # of such a state, in its epoch
        self.brought: list[Brought] = []
        """States that no visit made, for visits that are promised."""

    def add(self, num_steps: int) -> int:
        """Take one more config, that makes so many steps at most; return its id."""
        self._last.append(None)
        self._ends.append(num_steps)
        self._promised.append(False)
        return len(self._last) - 1

    def bring(
        self,
        config_id: int,
        step: int,
        source: int | None = None,
        done: tuple[int, ...] = (),
    ) -> None:
        """Say that a config's state is in a file, ready for a visit.

        Args:
            config_id: the config; nothing is promised of it yet.
            step: the visit, not the config's first.
            source: whose file it is, if it is another's.
            done: the shards of the visit's epoch that the state has seen.
        """
        self._last[config_id] = Visit(config_id, 0, 0, _DISK, step - 1)
        self._brought[config_id] = config_id if source is None else source
        self._shards_done[config_id] = done

    def is_brought(self, config_id: int) -> bool:
        """Whether a config's state is from before, and no visit is promised since."""
        return config_id in self._brought

    @property
    def ends(self) -> list[int]:
        """By config: the step before which it ends at the latest."""
        return list(self._ends)

    def ends_at(self, config_id: int, step: int) -> None:
        """Say that a config makes no visit from this step on."""
        self._ends[config_id] = step

    def step_of(self, config_id: int) -> int:
        """Return the first step of a config that is not promised."""
        last = self._last[config_id]
        return 0 if last is None else last.step + 1

    def is_new(self, config_id: int) -> bool:
        """Whether no visit of a config was ever promised."""
        return not self._promised[config_id]

    def is_copy(self, config_id: int) -> bool:
        """Whether a config has got a copy of a state, and no visit is promised since."""
        return config_id in self._trained

    def is_finished(self, config_id: int) -> bool:
        """Whether the last visit that a config can make is promised."""
        return self.step_of(config_id) >= self._ends[config_id]

    def rank_of(self, config_id: int) -> int:
        """Return the rank where a config's state is after all that is promised.

        -1 where it has none yet, or where it is in a file.
        """
        last = self._last[config_id]
        return -1 if last is None else last.rank

    def copy(self, pairs: Sequence[tuple[int, int]]) -> list[Fork]:
        """Let configs go on from the states of others, in place of their own.

        What is promised of all these has been made.

        Args:
            pairs: (config, source); a source may be replaced itself in the same breath.
        """
        found = [
            (
                self._last[source],
                self._copied.get(source, source),
                self._trained.get(source, source),
                self._brought.get(source),
            )
            for _, source in pairs
        ]
        forks = []
        for (config_id, _), (state, source, trained, brought) in zip(pairs, found, strict=True):
            assert state is not None
            self.close(config_id, DROP)
            self._last[config_id] = replace(state, config_id=config_id)
            self._trained[config_id] = trained if brought is None else brought
            if state.rank != _DISK:
                self._copied[config_id] = source
            self._brought.pop(config_id, None)
            self._shards_done.pop(config_id, None)
            if brought is not None:
                self._brought[config_id] = brought
            forks.append(Fork(config_id, state.step + 1, self._trained[config_id]))
        return forks

    def close(self, config_id: int, how: int) -> None:
        """Let a config's state end here (`END`), or give way to another's (`DROP`)."""
        last = self._last[config_id]
        was_copied = self._copied.pop(config_id, None) is not None
        if not was_copied and last is not None and last.rank != _DISK:
            self._closing.append((last.rank, Link(config_id, last.step + 1, how)))

    def extend(
        self,
        visits: Sequence[Visit],
        max_arenas: int,
        *,
        is_last: bool,
        news: tuple[dict[str, Any], ...] = (),
    ) -> list[Orders]:
        """Promise further visits, each config's and each rank's in order; return what to tell."""
        links: list[list[Link]] = [[] for _ in self.visits]
        copies: list[list[StateCopy]] = [[] for _ in self.visits]
        told: dict[tuple[int, int], int] = {}  # (config, step): the rank of the next visit
        received: dict[tuple[int, int], int] = {}
        loaded: dict[tuple[int, int], int] = {}
        new: list[list[Visit]] = [[] for _ in self.visits]
        before = list(self._last)
        for config_id, source in self._copied.items():
            if (state := before[config_id]) is not None:
                copies[state.rank].append(StateCopy(source, config_id, state.step + 1))
        self._copied = {}
        for visit in visits:
            key, last = (visit.config_id, visit.step), self._last[visit.config_id]
            if visit.config_id in self._brought:
                brought = self._bring_to(visit)
                if last is not None and last.rank == _DISK:
                    last, loaded[key] = None, brought.source
            if last is not None:
                if last.rank != visit.rank:
                    received[key] = last.rank
                if last is before[visit.config_id]:
                    links[last.rank].append(Link(visit.config_id, visit.step, visit.rank))
                else:
                    told[visit.config_id, last.step] = visit.rank
            self._last[visit.config_id] = visit
            self._trained.pop(visit.config_id, None)
            self._promised[visit.config_id] = True
            self.visits[visit.rank].append(visit)
            new[visit.rank].append(visit)
        for rank, link in self._closing:
            links[rank].append(link)
        self._closing = []
        return [
            Orders(
                stops=tuple(self._stop(visit, received, told, loaded) for visit in own),
                links=tuple(links[rank]),
                max_arenas=max_arenas,
                is_last=is_last,
                copies=tuple(copies[rank]),
                news=news,
            )
            for rank, own in enumerate(new)
        ]

    def _bring_to(self, visit: Visit) -> Brought:
        """Note that a visit is made with a state that no visit made."""
        config_id = visit.config_id
        source, done = self._brought.pop(config_id), self._shards_done.pop(config_id, ())
        self.brought.append(Brought(config_id, visit.step, source, done))
        return self.brought[-1]

    def _stop(
        self,
        visit: Visit,
        received: dict[tuple[int, int], int],
        told: dict[tuple[int, int], int],
        loaded: dict[tuple[int, int], int],
    ) -> Stop:
        key = (visit.config_id, visit.step)
        source, dest = received.get(key), told.get(key)
        is_last = visit.step + 1 == self._ends[visit.config_id]
        return Stop(
            visit=visit,
            receive=None if source is None else Hop(*key, source, visit.rank),
            send=None
            if dest is None or dest == visit.rank
            else Hop(visit.config_id, visit.step + 1, visit.rank, dest),
            is_last=is_last,
            is_open=dest is None and not is_last,
            loads=loaded.get(key),
        )
