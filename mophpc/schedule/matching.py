"""Schedules in rounds of matchings, for few configs of nearly equal cost.

Where configs are hardly more than ranks and cost about the same, every rank has to be busy all the
time, and each choice of list scheduling may spoil the last rounds. A matching between ranks and
configs that covers those with the most work left keeps every round full (Gonzalez and Sahni, Open
Shop Scheduling to Minimize Finish Time, JACM 23(4), 1976, for schedules with interruption).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mophpc.schedule.costs import FloatArray
    from mophpc.schedule.stays import Order, Progress, StayCosts


def match_rounds(
    progress: Progress,
    costs: StayCosts,
    extra_epochs: NDArray[np.int64],
    *,
    haste: float,
    noise_s: FloatArray,
) -> tuple[float, Order]:
    """Return when the last stay ends, and the stays, round by round.

    Args:
        progress: where everything stands; it is not changed.
        costs: seconds of the stays.
        extra_epochs: shape (configs,): epochs to schedule after each config's current one.
        haste: how much an early start counts against work that is left.
        noise_s: shape (configs, ranks), added to the weights.
    """
    from scipy.optimize import linear_sum_assignment  # 0.3 s, which few plans need

    state = progress.copy()
    left_out = state.epochs_left - extra_epochs
    state.epochs_left -= left_out
    stay_s = costs.stay_s
    rank_work = (state.todo * stay_s).sum(axis=0) + (state.epochs_left[:, None] * stay_s).sum(
        axis=0
    )
    config_work = (state.todo * stay_s).sum(axis=1) + state.epochs_left * stay_s.sum(axis=1)
    # A matching of one more pair is worth more than any choice of pairs, however late they start.
    waits_s = state.num_stays_of @ (costs.hop_s + costs.eval_s)
    last_s = config_work.sum() + waits_s + state.free_s.max() + state.ready_s.max()
    pair = 4.0 * float(last_s + 1.0)
    order: Order = []
    end_s = 0.0
    for _ in range(state.num_stays):  # a round makes one stay or more
        allowed = state.may_be_next()
        start = np.maximum(state.free_s, state.ready_s[:, None])
        worth = config_work[:, None] + rank_work + noise_s - haste * start
        chosen = linear_sum_assignment(np.where(allowed, pair + worth, 0.0), maximize=True)
        stays = [
            (start[c, r], int(c), int(r)) for c, r in zip(*chosen, strict=True) if allowed[c, r]
        ]
        if not stays:
            break
        for begin, config_id, rank in sorted(stays):
            took = stay_s[config_id, rank]
            config_work[config_id] -= took
            rank_work[rank] -= took
            ends_epoch = state.make(config_id, rank)
            end = begin + took + (costs.eval_s[config_id] if ends_epoch else 0.0)
            state.free_s[rank] = end
            state.ready_s[config_id] = end + (0.0 if ends_epoch else costs.hop_s[config_id])
            order.append((config_id, rank))
            end_s = max(end_s, float(end))
    return end_s, order
