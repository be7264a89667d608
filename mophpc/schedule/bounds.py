"""How good a schedule can be, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def lower_bound(
    cost_s: ArrayLike,
    owners: Sequence[int],
    num_epochs: int = 1,
    *,
    eval_s: ArrayLike = 0.0,
    hop_s: ArrayLike = 0.0,
) -> float:
    """Return the seconds that no schedule can beat.

    That is the largest of the longest config (its visits, its evaluation, and a hop to each further
    rank, per epoch), the most loaded rank (the visits to its shards), and the mean load of a rank
    with all visits and evaluations, as an evaluation may be on any rank.

    Args:
        cost_s: seconds of each visit, shape (configs, shards).
        owners: the rank that owns each shard; every rank owns one.
        num_epochs: epochs, each at the same cost.
        eval_s: seconds of an evaluation, a number or shape (configs,).
        hop_s: seconds of a hop, a number or shape (configs,).

    Raises:
        ValueError: `cost_s` does not have one column per shard, or another shape is wrong.
    """
    costs = np.asarray(cost_s, np.float64)
    if costs.ndim != 2 or costs.shape[1] != len(owners):
        raise ValueError(f"cost_s has shape {costs.shape}; expected (configs, {len(owners)})")
    num_ranks = len(set(owners))
    visits_s = costs.sum(axis=1)
    evaluated_s = visits_s + _per_config("eval_s", eval_s, len(costs))
    moved_s = (num_ranks - 1) * _per_config("hop_s", hop_s, len(costs))
    longest_s = (evaluated_s + moved_s).max(initial=0.0)
    load_s = np.bincount(np.asarray(owners, np.int64), weights=costs.sum(axis=0))
    mean_s = evaluated_s.sum() / max(1, num_ranks)
    return float(num_epochs * max(longest_s, load_s.max(initial=0.0), mean_s))


def _per_config(name: str, values: ArrayLike, num_configs: int) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.shape not in ((), (num_configs,)):
        raise ValueError(f"{name} has shape {array.shape}; expected ({num_configs},)")
    return np.broadcast_to(array, (num_configs,))


def idle_share(busy_s: Sequence[float], makespan_s: float) -> float:
    """Return the share of all ranks' time in which nothing is trained, 0 to 1.

    Args:
        busy_s: seconds in which each rank is busy.
        makespan_s: seconds from the first start to the last end.
    """
    if makespan_s <= 0.0 or not busy_s:
        return 0.0
    return max(0.0, 1.0 - sum(busy_s) / (makespan_s * len(busy_s)))


def idle_advice(num_configs: int, num_ranks: int, idle_share: float) -> str | None:
    """Return a warning where there are fewer configs than ranks, and what would fill the ranks.

    Args:
        num_configs: configs.
        num_ranks: ranks.
        idle_share: of all ranks' time, 0 to 1, by plan.
    """
    if num_configs >= num_ranks:
        return None
    configs = "1 config" if num_configs == 1 else f"{num_configs} configs"
    fewer = "1 rank" if num_configs == 1 else f"{num_configs} ranks or fewer"
    return (
        f"with {configs} on {num_ranks} ranks {idle_share:.0%} of the ranks' time is idle, as a "
        f"config trains on one rank at a time; {num_ranks} configs or more, or {fewer}, would "
        "fill it"
    )
