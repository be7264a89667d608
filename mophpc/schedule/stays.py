"""Where every rank and every config stands, and the time that an order of stays takes from there.

A stay is a config's visits to all the shards of a rank in one epoch, back to back. Planning works
on stays: a config makes `num_ranks` of them per epoch, and hops between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mophpc.schedule.plan import Visit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from mophpc.schedule.costs import Costs, FloatArray

    Order: TypeAlias = list[tuple[int, int]]
    """(config, rank) of stays, so that those of a rank, and those of a config, are in the order in
    which they are made."""


@dataclass(frozen=True, slots=True, eq=False)
class StayCosts:
    """Seconds of stays, hops and evaluations."""

    stay_s: FloatArray
    """Shape (configs, ranks)."""
    hop_s: FloatArray
    """Shape (configs,)."""
    eval_s: FloatArray
    """Shape (configs,)."""

    @classmethod
    def of(cls, costs: Costs, owners: tuple[int, ...], num_ranks: int) -> StayCosts:
        """Return what `costs` make of the stays."""
        return cls(costs.stay_s(owners, num_ranks), costs.hop_s, costs.eval_s)

    @property
    def epoch_s(self) -> FloatArray:
        """Seconds that each config trains and is evaluated per epoch, shape (configs,)."""
        return np.asarray(self.stay_s.sum(axis=1) + self.eval_s, np.float64)


@dataclass(slots=True, eq=False)
class Progress:
    """A state of the schedule. A config begins an epoch on the rank where it ended the last one."""

    free_s: FloatArray
    """Shape (ranks,): when each rank is free."""
    ready_s: FloatArray
    """Shape (configs,): when each config can start its next stay, its hop included."""
    at: NDArray[np.int64]
    """Shape (configs,): the rank of its last stay, -1 before the first."""
    todo: NDArray[np.bool_]
    """Shape (configs, ranks): stays of the config's current epoch that are not made."""
    epochs_left: NDArray[np.int64]
    """Shape (configs,): epochs after the current one."""

    @classmethod
    def start(cls, num_configs: int, num_ranks: int, num_epochs: int) -> Progress:
        """Return the state before the first visit."""
        return cls(
            free_s=np.zeros(num_ranks),
            ready_s=np.zeros(num_configs),
            at=np.full(num_configs, -1, np.int64),
            todo=np.ones((num_configs, num_ranks), np.bool_),
            epochs_left=np.full(num_configs, num_epochs - 1, np.int64),
        )

    def copy(self) -> Progress:
        """Return a state that can be changed by itself."""
        return Progress(
            self.free_s.copy(),
            self.ready_s.copy(),
            self.at.copy(),
            self.todo.copy(),
            self.epochs_left.copy(),
        )

    @property
    def num_stays(self) -> int:
        """Stays that are not made."""
        return int(self.num_stays_of.sum())

    @property
    def num_stays_of(self) -> NDArray[np.int64]:
        """Stays that each config has not made, shape (configs,)."""
        return np.asarray(self.todo.sum(axis=1) + self.epochs_left * self.todo.shape[1], np.int64)

    def may_be_next(self) -> NDArray[np.bool_]:
        """Return which stays can be a config's next one, shape (configs, ranks)."""
        allowed = self.todo.copy()
        begins = self.todo.all(axis=1) & (self.at >= 0)
        allowed[begins] = False
        allowed[begins, self.at[begins]] = True
        return allowed

    def make(self, config_id: int, rank: int) -> bool:
        """Make a stay, times aside; return whether it ends the config's epoch."""
        self.todo[config_id, rank] = False
        self.at[config_id] = rank
        if self.todo[config_id].any():
            return False
        if self.epochs_left[config_id] > 0:
            self.epochs_left[config_id] -= 1
            self.todo[config_id] = True
        return True


def time_order(
    order: Iterable[tuple[int, int]], progress: Progress, costs: StayCosts
) -> list[float]:
    """Return when each stay of an order starts; `progress` is moved to the end of it.

    A stay starts when its rank is free and its config is there.
    """
    free, ready = progress.free_s.tolist(), progress.ready_s.tolist()
    stay_s, hop_s, eval_s = costs.stay_s.tolist(), costs.hop_s.tolist(), costs.eval_s.tolist()
    left = progress.todo.sum(axis=1).tolist()
    epochs_left = progress.epochs_left.tolist()
    num_ranks = len(free)
    starts = []
    made = []
    for config_id, rank in order:
        start = max(free[rank], ready[config_id])
        starts.append(start)
        made.append((config_id, rank))
        end = start + stay_s[config_id][rank]
        left[config_id] -= 1
        if left[config_id] == 0:
            end += eval_s[config_id]
            if epochs_left[config_id] > 0:
                epochs_left[config_id] -= 1
                left[config_id] = num_ranks
            ready[config_id] = end
        else:
            ready[config_id] = end + hop_s[config_id]
        free[rank] = end
    for config_id, rank in made:
        progress.make(config_id, rank)
    progress.free_s[:], progress.ready_s[:] = free, ready
    return starts


def visits_of(
    order: Order,
    starts_s: Sequence[float],
    visit_s: FloatArray,
    shards: Sequence[Sequence[int]],
    first_step: Callable[[int], int] = lambda _: 0,
) -> list[Visit]:
    """Return the visits that stays consist of, in the same order.

    An odd epoch meets the shards of a rank backwards, as it mirrors the even one before it.

    Args:
        order: the stays.
        starts_s: when each starts.
        visit_s: seconds, shape (configs, shards).
        shards: the shards of each rank.
        first_step: says which step of a config its first stay in `order` begins with.
    """
    num_shards = visit_s.shape[1]
    seconds = visit_s.tolist()
    steps: dict[int, int] = {}
    visits = []
    for (config_id, rank), start in zip(order, starts_s, strict=True):
        step = steps[config_id] if config_id in steps else first_step(config_id)
        epoch, end = step // num_shards, start
        for shard in shards[rank] if epoch % 2 == 0 else reversed(shards[rank]):
            begin, end = end, end + seconds[config_id][shard]
            visits.append(Visit(config_id, epoch, shard, rank, step, begin, end))
            step += 1
        steps[config_id] = step
    return visits
