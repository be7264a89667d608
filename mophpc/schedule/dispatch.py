"""List scheduling, many variants at a time.

Whenever a rank is free, it takes the config that is there and has the most work left, each variant
with its own weights on that rule. A rank that holds as many states as it may takes no other until
one has left; so fast ranks do not run ahead and fill their memory with configs that wait for slow
ones.

The variants run in step, as the first axis of every array, which makes a search of sixty of them
about as fast as one in plain Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mophpc.schedule.dispatch_one import dispatch_one

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from mophpc.schedule.costs import FloatArray
    from mophpc.schedule.stays import Order, Progress, StayCosts

    IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Dispatched:
    """What became of each variant."""

    end_s: FloatArray
    """Shape (variants,): when its last stay ends."""
    _moves: list[tuple[IntArray, IntArray]]  # per move: config (-1: the rank waits), rank

    def order(self, variant: int) -> Order:
        """Return the stays of a variant, by start."""
        return [
            (int(config[variant]), int(rank[variant]))
            for config, rank in self._moves
            if config[variant] >= 0
        ]


def dispatch(
    progress: Progress,
    costs: StayCosts,
    weights: FloatArray,
    extra_epochs: IntArray,
    most_held: int,
) -> Dispatched:
    """Schedule what is left of the current epochs, and `extra_epochs` after them.

    Args:
        progress: where everything stands.
        costs: seconds of the stays.
        weights: shape (variants, ranks, configs): the work that a config has left counts so much
            when a rank chooses.
        extra_epochs: shape (configs,): epochs to schedule after each config's current one.
        most_held: states that a rank may hold; it is exceeded where nothing else could go on.
    """
    if len(weights) == 1:
        end_s, order = dispatch_one(progress, costs, weights[0], extra_epochs, most_held)
        return Dispatched(np.array([end_s]), [(np.array([c]), np.array([r])) for c, r in order])
    batch = _Batch(progress, costs, weights, extra_epochs, most_held)
    moves = []
    while batch.left.any():
        moves.append(batch.move())
    return Dispatched(batch.end_s, moves)


class _Batch:
    """The state of all variants."""

    def __init__(
        self,
        progress: Progress,
        costs: StayCosts,
        weights: FloatArray,
        extra_epochs: IntArray,
        most_held: int,
    ) -> None:
        variants = len(weights)
        self._most_held = most_held
        held = progress.at[(progress.at >= 0) & (progress.num_stays_of > 0)]
        self._at = _repeat(progress.at, variants)
        self._held = _repeat(np.bincount(held, minlength=len(progress.free_s)), variants)
        self._leaves = progress.epochs_left == extra_epochs  # after its last stay here
        self._waits = np.zeros(variants, np.int64)  # since nothing runs any more
        self._is_stuck = np.zeros(variants, np.bool_)
        # Ranks that wait since a moment at which another had yet to act.
        self._looks_away = np.zeros((variants, len(progress.free_s)), np.bool_)
        self._index = np.arange(variants)
        self._ranks = np.arange(len(progress.free_s))
        self._weights = weights
        self._costs = costs
        self._free_s = _repeat(progress.free_s, variants)
        self._ready_s = _repeat(progress.ready_s, variants)
        self._may = _repeat(np.ascontiguousarray(progress.may_be_next().T), variants)
        self._stays = _repeat(progress.todo.sum(axis=1), variants)
        self._epochs = _repeat(extra_epochs, variants)
        work = (progress.todo * costs.stay_s).sum(axis=1) + progress.todo.any(axis=1) * costs.eval_s
        self._work_s = _repeat(work + progress.epochs_left * costs.epoch_s, variants)
        due = progress.todo.sum(axis=0) + extra_epochs.sum()
        self._due = _repeat(due, variants)  # stays that each rank has to make
        self.left = np.full(variants, int(due.sum()))
        """Stays that each variant has to make."""
        self._free_s[self._due == 0] = np.inf
        self.end_s = np.zeros(variants)

    def move(self) -> tuple[IntArray, IntArray]:
        """In every variant let the rank that is free first take a config, or wait."""
        rank = self._free_s.argmin(axis=1)
        now = self._free_s[self._index, rank]
        here = self._may[self._index, rank] & (self._ready_s <= now[:, None])
        full = (self._held[self._index, rank] >= self._most_held) & ~self._is_stuck
        if full.any():
            # Only a state that is here already needs no room.
            here &= ~full[:, None] | (self._at == rank[:, None])
        work = np.maximum(self._work_s, 0.0)  # rounding may leave less than nothing
        score = np.where(here, work * self._weights[self._index, rank], -1.0)
        config = score.argmax(axis=1)
        takes = score[self._index, config] >= 0.0
        if takes.all():
            self._take(self._index, rank, config, now)
        else:
            index = np.flatnonzero(takes)
            self._take(index, rank[index], config[index], now[index])
            index = np.flatnonzero(~takes)
            self._wait(index, rank[index], now[index])
            config = np.where(takes, config, -1)
        return config, rank

    def _take(self, index: IntArray, rank: IntArray, config: IntArray, now: FloatArray) -> None:
        costs = self._costs
        self._carry(index, rank, config)
        left = self._stays[index, config] - 1
        ends_epoch = left == 0
        took = costs.stay_s[config, rank]
        if ends_epoch.any():
            took = took + np.where(ends_epoch, costs.eval_s[config], 0.0)
        end = now + took
        self._ready_s[index, config] = end + costs.hop_s[config]
        self._may[index, rank, config] = False
        self._work_s[index, config] -= took
        self.left[index] -= 1
        self._due[index, rank] -= 1
        self.end_s[index] = np.maximum(self.end_s[index], end)
        self._free_s[index, rank] = np.where(self._due[index, rank] == 0, np.inf, end)
        began = left == len(self._ranks) - 1
        if began.any():
            self._open(index[began], rank[began], config[began])
        if ends_epoch.any():
            turns = ends_epoch & (self._epochs[index, config] > 0)
            left[turns] = len(self._ranks)
            self._turn(index[turns], rank[turns], config[turns], end[turns])
            over = ends_epoch & ~turns & self._leaves[config]
            self._held[index[over], rank[over]] -= 1
        self._stays[index, config] = left
        self._wake(index, rank, self._ready_s[index, config])

    def _wake(self, index: IntArray, rank: IntArray, ready: FloatArray) -> None:
        """Let ranks that began to wait too soon look again when the config taken is ready."""
        if not self._looks_away.any():
            return
        self._looks_away[index, rank] = False
        free = self._free_s[index]
        misses = self._looks_away[index] & (free > ready[:, None])
        self._free_s[index] = np.where(misses, ready[:, None], free)

    def _carry(self, index: IntArray, rank: IntArray, config: IntArray) -> None:
        """Move the states to where they are trained."""
        before = self._at[index, config]
        comes = before != rank
        self._held[index[comes], rank[comes]] += 1
        leaves = comes & (before >= 0)
        self._held[index[leaves], before[leaves]] -= 1
        self._at[index, config] = rank
        self._waits[index] = 0
        self._is_stuck[index] = False

    def _open(self, index: IntArray, rank: IntArray, config: IntArray) -> None:
        """After the first stay of an epoch, the config may go anywhere else."""
        if len(self._ranks) > 1:
            self._may[index[:, None], self._ranks, config[:, None]] = True
            self._may[index, rank, config] = False

    def _turn(self, index: IntArray, rank: IntArray, config: IntArray, end: FloatArray) -> None:
        """The next epoch begins on the rank where this one ended; nothing hops."""
        self._epochs[index, config] -= 1
        self._may[index, rank, config] = True
        self._ready_s[index, config] = end

    def _wait(self, index: IntArray, rank: IntArray, now: FloatArray) -> None:
        """Let a rank wait until something changes: a config becomes ready, or another rank acts."""
        ready, free, at = self._ready_s[index], self._free_s[index], now[:, None]
        next_ready = np.where(ready > at, ready, np.inf).min(axis=1)
        change = np.minimum(next_ready, np.where(free > at, free, np.inf).min(axis=1))
        # A rank that is free at this very moment has yet to act.
        later = np.nextafter(now, np.inf)
        among = (free == at).sum(axis=1) > 1
        self._looks_away[index, rank] = among
        # Nothing runs and every rank has waited: those that may go on have no room.
        self._waits[index] = np.where(np.isinf(next_ready), self._waits[index] + 1, 0)
        alone = np.isinf(change) & ~among
        stuck = np.isinf(next_ready) & (alone | (self._waits[index] > len(self._ranks)))
        self._is_stuck[index] |= stuck
        self._free_s[index, rank] = np.where(stuck | (np.isinf(change) & among), later, change)


def _repeat(values: NDArray[Any], variants: int) -> NDArray[Any]:
    return np.repeat(values[None], variants, axis=0)
