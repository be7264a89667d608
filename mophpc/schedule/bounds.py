"""How good a schedule can be, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


def lower_bound(cost_s: ArrayLike, owners: Sequence[int], num_epochs: int = 1) -> float:
    """Return the seconds that no schedule can beat: max(longest config, most loaded rank).

    Args:
        cost_s: seconds of each visit, shape (configs, shards).
        owners: the rank that owns each shard.
        num_epochs: epochs, each at the same cost.

    Raises:
        ValueError: `cost_s` does not have one column per shard.
    """
    costs = np.asarray(cost_s, np.float64)
    if costs.ndim != 2 or costs.shape[1] != len(owners):
        raise ValueError(f"cost_s has shape {costs.shape}; expected (configs, {len(owners)})")
    longest_config = costs.sum(axis=1).max(initial=0.0)
    rank_load = np.bincount(np.asarray(owners, np.int64), weights=costs.sum(axis=0))
    return float(num_epochs * max(longest_config, rank_load.max(initial=0.0)))


def idle_share(busy_s: Sequence[float], makespan_s: float) -> float:
    """Return the share of all ranks' time in which nothing is trained, 0 to 1.

    Args:
        busy_s: seconds in which each rank is busy.
        makespan_s: seconds from the first start to the last end.
    """
    if makespan_s <= 0.0 or not busy_s:
        return 0.0
    return max(0.0, 1.0 - sum(busy_s) / (makespan_s * len(busy_s)))
