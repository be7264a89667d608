"""Other ways to schedule, simulated with true times: what a plan has to be better than."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mophpc.schedule.costs import Costs, FloatArray
    from mophpc.schedule.execute import Reality


def lock_step(reality: Reality, owners: Sequence[int], num_ranks: int) -> float:
    """Return the makespan in seconds of the rotation in which all ranks change configs together.

    The rotation is that of `round_robin`, with a barrier after each slot: a slot takes as long as
    its longest stay, and the next one starts when the states that it needs have hopped.
    """
    stay_s = _stays(reality.visit_s, owners, num_ranks)
    num_epochs, num_configs, _ = stay_s.shape
    slots = max(num_configs, num_ranks)
    ranks = np.arange(num_ranks)
    shift = ranks * slots // num_ranks
    made = np.zeros(num_configs, np.int64)  # stays of each config in its current epoch
    ready_s = np.zeros(num_configs)
    now = 0.0
    for epoch in range(num_epochs):
        for place in range(slots):
            slot = place if epoch % 2 == 0 else slots - 1 - place
            config = (slot - shift) % slots
            is_busy = config < num_configs
            config, rank = config[is_busy], ranks[is_busy]
            made[config] += 1
            ends = made[config] == num_ranks
            start = max(now, float(ready_s[config].max(initial=0.0)))
            end = start + stay_s[epoch, config, rank] + ends * reality.eval_s[config]
            # An odd epoch walks the even one backwards, so nothing hops at the turn.
            ready_s[config] = end + ~ends * reality.hop_s[config]
            made[config[ends]] = 0
            now = max(start, float(end.max(initial=0.0)))
    return now


def dynamic(
    reality: Reality,
    owners: Sequence[int],
    num_ranks: int,
    believed: Costs,
    rule: Literal["longest", "random"],
    seed: int,
) -> float:
    """Return the makespan in seconds of a central scheduler that decides when a rank is free.

    A free rank takes one of the configs that are there and have not been on it in their current
    epoch, and trains it on all its shards. There is no barrier: a config begins its next epoch
    when its own has ended, on any rank. Deciding and telling the ranks takes no time, and a state
    is everywhere `hop_s` after its stay has ended, which no real scheduler achieves.

    Args:
        reality: what takes how long.
        owners: the rank that owns each shard.
        num_ranks: ranks.
        believed: what the scheduler believes of the costs.
        rule: which config a rank takes: the one with the most believed work left in the whole run,
            or a random one (the randomized greedy of the Cerebro paper).
        seed: of the random choices.
    """
    return _Dynamic(reality, owners, num_ranks, believed, rule, seed).run()


class _Dynamic:
    """Ranks, configs and what has happened so far."""

    def __init__(
        self,
        reality: Reality,
        owners: Sequence[int],
        num_ranks: int,
        believed: Costs,
        rule: Literal["longest", "random"],
        seed: int,
    ) -> None:
        self._reality = reality
        self._stay_s = _stays(reality.visit_s, owners, num_ranks)
        self._believed_s = believed.stay_s(owners, num_ranks)
        self._believed_eval_s = believed.eval_s
        self._rule = rule
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 2])))
        self._num_epochs, num_configs, _ = self._stay_s.shape
        epoch_s = self._believed_s.sum(axis=1) + self._believed_eval_s
        self._work_s = self._num_epochs * epoch_s
        self._epoch = np.zeros(num_configs, np.int64)
        self._todo = np.ones((num_ranks, num_configs), np.bool_)  # in the current epochs
        self._at = np.full(num_configs, -1)
        self._here_s = np.zeros(num_configs)  # when the config is ready on its own rank
        self._there_s = np.zeros(num_configs)  # and on the others
        self._idle = np.ones(num_ranks, np.bool_)
        self._left = self._num_epochs * num_configs * num_ranks
        self._events: list[tuple[float, int]] = []  # when, and the rank that is free then, or -1
        self._end_s = 0.0

    def run(self) -> float:
        now = 0.0
        self._decide(now)
        while self._events:
            now = self._events[0][0]
            while self._events and self._events[0][0] == now:
                _, rank = heapq.heappop(self._events)
                if rank >= 0:
                    self._idle[rank] = True
            self._decide(now)
        assert self._left == 0
        assert (self._epoch == self._num_epochs).all()
        return self._end_s

    def _decide(self, now: float) -> None:
        for rank in np.flatnonzero(self._idle).tolist():
            ready_s = np.where(self._at == rank, self._here_s, self._there_s)
            configs = np.flatnonzero(self._todo[rank] & (ready_s <= now))
            if configs.size:
                self._begin(self._choose(configs), rank, now)

    def _choose(self, configs: NDArray[np.int64]) -> int:
        if self._rule == "random":
            return int(configs[self._generator.integers(configs.size)])
        return int(configs[self._work_s[configs].argmax()])

    def _begin(self, config_id: int, rank: int, now: float) -> None:
        end = now + float(self._stay_s[self._epoch[config_id], config_id, rank])
        self._work_s[config_id] -= self._believed_s[config_id, rank]
        self._todo[rank, config_id] = False
        if not self._todo[:, config_id].any():
            end += float(self._reality.eval_s[config_id])
            self._work_s[config_id] -= self._believed_eval_s[config_id]
            self._epoch[config_id] += 1
            self._todo[:, config_id] = self._epoch[config_id] < self._num_epochs
        there = end + float(self._reality.hop_s[config_id])
        self._at[config_id] = rank
        self._here_s[config_id], self._there_s[config_id] = end, there
        self._idle[rank] = False
        self._left -= 1
        self._end_s = max(self._end_s, end)
        heapq.heappush(self._events, (end, rank))
        if there > end:
            heapq.heappush(self._events, (there, -1))


def _stays(visit_s: FloatArray, owners: Sequence[int], num_ranks: int) -> FloatArray:
    """Return the seconds of all stays, shape (epochs, configs, ranks)."""
    stays = np.zeros((*visit_s.shape[:2], num_ranks))
    for shard, rank in enumerate(owners):
        stays[:, :, rank] += visit_s[:, :, shard]
    return stays
