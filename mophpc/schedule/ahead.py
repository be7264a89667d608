"""List scheduling of what starts soon: stays up to a moment, and no further."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mophpc.schedule.costs import FloatArray

_NEVER = float("inf")

CRITICAL = 1.15
"""A rank may wait for a config that has so many times as much to do as any that is there, where no
more configs than ranks are left: the run will wait for that one in the end."""


@dataclass(slots=True, eq=False)
class Market:
    """Ranks that will be free, and configs that will be there; indices are of those given.

    Everything is changed as stays are chosen.
    """

    free_s: list[float]
    """When each rank is free."""
    stay_s: FloatArray
    """Shape (configs, ranks): seconds of a stay."""
    hop_s: FloatArray
    """Shape (configs,)."""
    eval_s: FloatArray
    """Shape (configs,): at the end of an epoch."""
    end_s: FloatArray
    """Shape (configs,): when each has made all that is promised."""
    at: NDArray[np.int64]
    """Shape (configs,): the rank of its state then; -1: it has none."""
    todo: NDArray[np.bool_]
    """Shape (configs, ranks): stays of the current epoch that are not promised."""
    stays: NDArray[np.int64]
    """Shape (configs,): how many may be planned, those of later epochs too."""
    then_s: FloatArray
    """Shape (configs,): seconds that may follow them."""
    _work_s: FloatArray = field(init=False)
    _may: NDArray[np.bool_] = field(init=False)
    _ready_s: FloatArray = field(init=False)
    _waits_since: list[float] = field(init=False)

    def __post_init__(self) -> None:
        """Find out what each config has to do, and where it may go."""
        epoch_s = self.stay_s.sum(axis=1) + self.eval_s
        begins = self.todo.all(axis=1)
        current = (self.todo * self.stay_s).sum(axis=1) + self.eval_s
        whole = (self.stays - self.todo.sum(axis=1)) / self.stay_s.shape[1]
        self._work_s = current + np.maximum(whole, 0.0) * epoch_s + self.then_s
        self._may = self.todo & (self.stays > 0)[:, None]
        stands = begins & (self.at >= 0)  # an epoch begins where the last one ended
        self._may[stands] = False
        self._may[stands, self.at[stands]] = self.stays[stands] > 0
        self._waits_since = [_NEVER] * len(self.free_s)
        self._ready_s = self.end_s + np.where(begins, 0.0, self.hop_s)

    @property
    def bound_s(self) -> float:
        """When all stays will have been made, at best."""
        share = self.stays / self.stay_s.shape[1]
        total = float((share * (self.stay_s.sum(axis=1) + self.eval_s)).sum())
        return (sum(self.free_s) + total) / len(self.free_s)

    def order(self, until_s: float) -> tuple[list[tuple[int, int]], list[float]]:
        """Return (config, rank) of the stays that start until a moment, and when they start.

        One is returned in any case, if one can be made at all.
        """
        order: list[tuple[int, int]] = []
        starts: list[float] = []
        while True:
            now = min(self.free_s)
            if now == _NEVER or (now > until_s and order):
                return order, starts
            rank = self.free_s.index(now)
            here = self._may[:, rank] & (self._ready_s <= now)
            critical_s = self._held_until(rank, here, now)
            if critical_s < _NEVER:
                here &= now + self.stay_s[:, rank] <= critical_s  # it is over by then
            if here.any():
                index = int(np.where(here, self._work_s, -1.0).argmax())
                order.append((index, rank))
                starts.append(now)
                self._take(index, rank, now)
            else:
                self._waits_since[rank] = now
                later = self._ready_s[self._may[:, rank] & (self._ready_s > now)]
                self.free_s[rank] = float(later.min()) if later.size else _NEVER

    def _held_until(self, rank: int, here: NDArray[np.bool_], now: float) -> float:
        """Return when a critical config comes that a rank should wait for; `_NEVER` if none does.

        It would wait for the one that is `here`, and no other rank is free for it by then.
        """
        if not here.any() or np.count_nonzero(self.stays > 0) > len(self.free_s):
            return _NEVER
        first = int(np.where(here, self._work_s, -1.0).argmax())
        comes = self._may[:, rank] & (self._ready_s > now)
        comes &= self._ready_s < now + self.stay_s[first, rank]
        comes &= self._work_s > CRITICAL * self._work_s[first]
        held_s = _NEVER
        for index in np.flatnonzero(comes).tolist():
            ready_s = float(self._ready_s[index])
            elsewhere = (
                min(self.free_s[other], self._waits_since[other]) <= ready_s
                for other in np.flatnonzero(self._may[index]).tolist()
                if other != rank
            )
            if not any(elsewhere):
                held_s = min(held_s, ready_s)
        return held_s

    def _take(self, index: int, rank: int, now: float) -> None:
        took = float(self.stay_s[index, rank])
        todo, may = self.todo[index], self._may[index]
        todo[rank] = False
        self.stays[index] -= 1
        self.at[index] = rank
        ends = not todo.any()
        if ends:
            took += float(self.eval_s[index])
        self._work_s[index] = max(0.0, self._work_s[index] - took)
        self.free_s[rank] = end = now + took
        self._waits_since[rank] = _NEVER
        if ends:
            todo[:] = True
            may[:] = False
            may[rank] = self.stays[index] > 0
            self._ready_s[index] = end
        else:
            may[:] = todo if self.stays[index] > 0 else False
            self._ready_s[index] = end + float(self.hop_s[index])
        ready = float(self._ready_s[index])
        for other, since in enumerate(self._waits_since):
            if since < _NEVER and may[other]:  # it waits, and may take this config then
                self.free_s[other] = min(self.free_s[other], max(since, ready))
