"""List scheduling of one variant: what `dispatch` decides, several times as fast for one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mophpc.schedule.costs import FloatArray
    from mophpc.schedule.stays import Order, Progress, StayCosts

_NEVER = float("inf")


def dispatch_one(
    progress: Progress,
    costs: StayCosts,
    weights: FloatArray,
    extra_epochs: NDArray[np.int64],
    most_held: int,
) -> tuple[float, Order]:
    """Return when the last stay ends, and the stays, by start.

    Args:
        progress: where everything stands.
        costs: seconds of the stays.
        weights: shape (ranks, configs): the work that a config has left counts so much when a rank
            chooses.
        extra_epochs: shape (configs,): epochs to schedule after each config's current one.
        most_held: states that a rank may hold; it is exceeded where nothing else could go on.
    """
    state = _State(progress, costs, weights, extra_epochs, most_held)
    while state.left:
        now = min(state.free)
        rank = state.free.index(now)
        config_id = state.choose(rank, now)
        if config_id < 0:
            state.wait(rank, now)
        else:
            state.take(rank, config_id, now)
    return state.end_s, state.order


class _State:
    """Lists where single items are used, arrays where all configs are looked at together."""

    def __init__(
        self,
        progress: Progress,
        costs: StayCosts,
        weights: FloatArray,
        extra_epochs: NDArray[np.int64],
        most_held: int,
    ) -> None:
        num_configs, self._num_ranks = costs.stay_s.shape
        held = progress.at[(progress.at >= 0) & (progress.num_stays_of > 0)]
        self._held = np.bincount(held, minlength=self._num_ranks).tolist()
        self._most_held = most_held
        self._at = progress.at.copy()
        self._leaves = (progress.epochs_left == extra_epochs).tolist()
        self._ready = progress.ready_s.copy()
        self._may = np.ascontiguousarray(progress.may_be_next().T)
        self._stays: list[int] = progress.todo.sum(axis=1).tolist()
        self._epochs: list[int] = extra_epochs.tolist()
        work = (progress.todo * costs.stay_s).sum(axis=1) + progress.todo.any(axis=1) * costs.eval_s
        self._work = work + progress.epochs_left * costs.epoch_s
        self._due = (progress.todo.sum(axis=0) + extra_epochs.sum()).tolist()
        self._stay_s = costs.stay_s.tolist()
        self._hop_s, self._eval_s = costs.hop_s.tolist(), costs.eval_s.tolist()
        self._weights = weights
        self._score = np.empty(num_configs)
        self._here = np.empty(num_configs, np.bool_)
        self._waits, self._is_stuck = 0, False
        self._looks_away = [False] * self._num_ranks
        free = progress.free_s.tolist()
        self.free: list[float] = [
            at if due else _NEVER for at, due in zip(free, self._due, strict=True)
        ]
        self.left = sum(self._due)
        self.end_s = 0.0
        self.order: Order = []

    def choose(self, rank: int, now: float) -> int:
        """Return the config that a rank takes, -1 for none."""
        np.less_equal(self._ready, now, out=self._here)
        np.logical_and(self._here, self._may[rank], out=self._here)
        if self._held[rank] >= self._most_held and not self._is_stuck:
            self._here &= self._at == rank  # only a state that is here already needs no room
        work = np.maximum(self._work, 0.0)  # rounding may leave less than nothing
        self._score.fill(-1.0)
        np.multiply(work, self._weights[rank], out=self._score, where=self._here)
        config_id = int(self._score.argmax())
        return config_id if self._score[config_id] >= 0.0 else -1

    def take(self, rank: int, config_id: int, now: float) -> None:
        """Let a rank make a stay."""
        self._carry(rank, config_id)
        left = self._stays[config_id] - 1
        took = self._stay_s[config_id][rank] + (self._eval_s[config_id] if left == 0 else 0.0)
        end = now + took
        self._ready[config_id] = end + self._hop_s[config_id]
        self._may[rank, config_id] = False
        self._work[config_id] -= took
        self.left -= 1
        self._due[rank] -= 1
        self.end_s = max(self.end_s, end)
        self.free[rank] = end if self._due[rank] else _NEVER
        if left == self._num_ranks - 1 and self._num_ranks > 1:
            # After the first stay of an epoch, the config may go anywhere else.
            self._may[:, config_id] = True
            self._may[rank, config_id] = False
        if left == 0:
            left = self._turn(rank, config_id, end)
        self._stays[config_id] = left
        self._wake(rank, float(self._ready[config_id]))
        self.order.append((config_id, rank))

    def _carry(self, rank: int, config_id: int) -> None:
        """Move the state to where it is trained."""
        before = int(self._at[config_id])
        if before != rank:
            self._held[rank] += 1
            if before >= 0:
                self._held[before] -= 1
            self._at[config_id] = rank
        self._waits, self._is_stuck = 0, False

    def _turn(self, rank: int, config_id: int, end: float) -> int:
        """End a config's epoch; return its stays in the next one, which begins where this ended."""
        if self._epochs[config_id] > 0:
            self._epochs[config_id] -= 1
            self._may[rank, config_id] = True
            self._ready[config_id] = end
            return len(self.free)
        if self._leaves[config_id]:
            self._held[rank] -= 1
        return 0

    def _wake(self, rank: int, ready: float) -> None:
        """Let ranks that began to wait too soon look again when the config taken is ready."""
        if not any(self._looks_away):
            return
        self._looks_away[rank] = False
        for other, looks in enumerate(self._looks_away):
            if looks and self.free[other] > ready:
                self.free[other] = ready

    def wait(self, rank: int, now: float) -> None:
        """Let a rank wait until something changes: a config becomes ready, or another rank acts."""
        later = self._ready[self._ready > now]
        next_ready = float(later.min()) if later.size else _NEVER
        change = min(next_ready, min((at for at in self.free if at > now), default=_NEVER))
        # A rank that is free at this very moment has yet to act.
        among = self.free.count(now) > 1
        self._looks_away[rank] = among
        # Nothing runs and every rank has waited: those that may go on have no room.
        self._waits = self._waits + 1 if next_ready == _NEVER else 0
        alone = change == _NEVER and not among
        stuck = next_ready == _NEVER and (alone or self._waits > self._num_ranks)
        self._is_stuck |= stuck
        soon = stuck or (change == _NEVER and among)
        self.free[rank] = float(np.nextafter(now, _NEVER)) if soon else change
