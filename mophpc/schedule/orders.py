"""What a rank is told: its next visits, and where configs go that it has trained already.

A plan may be renewed while it runs, so a rank gets it in parts. What a rank has been told stays;
what comes after may still change until it is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mophpc.schedule.plan import Hop, Plan, Stop, Visit, stops

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE, _LAST, _OPEN = -1, -2, -3


@dataclass(frozen=True, slots=True)
class Link:
    """Where a config goes after a visit that was open: `dest` makes its visit `step`."""

    config_id: int
    step: int
    dest: int


@dataclass(frozen=True, slots=True)
class Orders:
    """The next part of a rank's list.

    `links` concern configs whose last promised visit the rank was told before. `max_arenas` is how
    many states the rank may hold from now on; it never becomes less. After the last part no other
    follows.
    """

    stops: tuple[Stop, ...]
    links: tuple[Link, ...]
    max_arenas: int
    is_last: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "stops": [
                [
                    str(stop.visit),
                    _HERE if stop.receive is None else stop.receive.source,
                    _next_of(stop),
                ]
                for stop in self.stops
            ],
            "links": [[link.config_id, link.step, link.dest] for link in self.links],
            "max_arenas": self.max_arenas,
            "is_last": self.is_last,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Orders:
        """Read what `to_json` gave."""
        return cls(
            stops=tuple(_stop(*item) for item in record["stops"]),
            links=tuple(Link(*item) for item in record["links"]),
            max_arenas=record["max_arenas"],
            is_last=record["is_last"],
        )


def _next_of(stop: Stop) -> int:
    if stop.is_open:
        return _OPEN
    if stop.is_last:
        return _LAST
    return _HERE if stop.send is None else stop.send.dest


def _stop(token: str, source: int, following: int) -> Stop:
    visit = Visit.parse(token)
    receive = None if source < 0 else Hop(visit.config_id, visit.step, source, visit.rank)
    send = None if following < 0 else Hop(visit.config_id, visit.step + 1, visit.rank, following)
    return Stop(visit, receive, send, following == _LAST, following == _OPEN)


def whole(plan: Plan, rank: int) -> Orders:
    """Return a rank's whole list, of a plan that is not renewed."""
    return Orders(stops(plan, rank), (), plan.max_arenas, is_last=True)


class Promises:
    """All that the ranks have been told so far: the part of the schedule that stays."""

    def __init__(self, num_configs: int, num_ranks: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self.visits: list[list[Visit]] = [[] for _ in range(num_ranks)]
        """Per rank, in order."""
        self._last: list[Visit | None] = [None] * num_configs

    def step_of(self, config_id: int) -> int:
        """Return the first step of a config that is not promised."""
        last = self._last[config_id]
        return 0 if last is None else last.step + 1

    def extend(self, visits: Sequence[Visit], max_arenas: int, *, is_last: bool) -> list[Orders]:
        """Promise further visits, each config's and each rank's in order; return what to tell."""
        links: list[list[Link]] = [[] for _ in self.visits]
        told: dict[tuple[int, int], int] = {}  # (config, step): the rank of the next visit
        received: dict[tuple[int, int], int] = {}
        new: list[list[Visit]] = [[] for _ in self.visits]
        before = list(self._last)
        for visit in visits:
            key, last = (visit.config_id, visit.step), self._last[visit.config_id]
            if last is not None:
                if last.rank != visit.rank:
                    received[key] = last.rank
                if last is before[visit.config_id]:
                    links[last.rank].append(Link(visit.config_id, visit.step, visit.rank))
                else:
                    told[visit.config_id, last.step] = visit.rank
            self._last[visit.config_id] = visit
            self.visits[visit.rank].append(visit)
            new[visit.rank].append(visit)
        return [
            Orders(
                stops=tuple(self._stop(visit, received, told) for visit in own),
                links=tuple(links[rank]),
                max_arenas=max_arenas,
                is_last=is_last,
            )
            for rank, own in enumerate(new)
        ]

    def _stop(
        self,
        visit: Visit,
        received: dict[tuple[int, int], int],
        told: dict[tuple[int, int], int],
    ) -> Stop:
        key = (visit.config_id, visit.step)
        source, dest = received.get(key), told.get(key)
        is_last = visit.step + 1 == self._num_steps
        return Stop(
            visit=visit,
            receive=None if source is None else Hop(*key, source, visit.rank),
            send=None
            if dest is None or dest == visit.rank
            else Hop(visit.config_id, visit.step + 1, visit.rank, dest),
            is_last=is_last,
            is_open=dest is None and not is_last,
        )
