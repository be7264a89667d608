"""How much each hyperparameter has to do with the result.

The configs are ranked by their best objective, those that diverged last. For one hyperparameter
they fall into groups of equal value; a number with many values is cut into groups of equal size.
Its importance is the share of the ranks' variance that lies between the groups (the correlation
ratio, eta squared), less what as many groups drawn at random would have (epsilon squared, after
Kelley 1935). Whether it is more than chance says the test of Kruskal and Wallis, which is made
from the same ratio. Ranks instead of values: one config that diverged does not decide everything,
and accuracy and its logarithm have the same importances.

A hyperparameter that only some configs have is judged among those. What several do only together
is in no single one's share: shares need not add up to one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mophpc.report.run_data import RunData, Value

MOST_GROUPS = 6
"""Groups that a number with more values than these is cut into."""
FEWEST_CONFIGS = 4

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Importance:
    """Of one hyperparameter."""

    name: str
    share: float
    """Of the variance of ranks that it explains, from 0 to 1."""
    p_value: float
    """How often chance alone would explain as much."""
    configs: int
    """How many configs have the hyperparameter."""
    groups: int
    direction: float | None
    """Rank correlation with the result, 1: more is always better; None where it is no number."""

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def importances(run: RunData) -> list[Importance]:
    """Return what can be said of the run's hyperparameters, the most important first."""
    rows = [row for row in run.rows if row.best is not None or row.status == "diverged"]
    worst = -math.inf
    score = np.array(
        [
            worst if row.best is None or row.status == "diverged" else _signed(run, row.best)
            for row in rows
        ],
        np.float64,
    )
    names = dict.fromkeys(name for row in rows for name in row.hyperparameters)
    found = []
    for name in names:
        has = [i for i, row in enumerate(rows) if name in row.hyperparameters]
        values = [rows[i].hyperparameters[name] for i in has]
        one = _importance(name, values, score[has])
        if one is not None:
            found.append(one)
    return sorted(found, key=lambda one: -one.share)


def _signed(run: RunData, value: float) -> float:
    return value if run.maximise else -value


def _importance(name: str, values: Sequence[Value], score: Floats) -> Importance | None:
    if len(values) < FEWEST_CONFIGS:
        return None
    groups = _groups(values)
    count = int(groups.max()) + 1
    ranks = mean_ranks(score)
    centred = ranks - ranks.mean()
    total = float(centred @ centred)
    if count < 2 or total == 0.0 or count == len(values):
        return None
    sizes = np.bincount(groups, minlength=count)
    sums = np.bincount(groups, weights=centred, minlength=count)
    ratio = min(1.0, float((sums**2 / sizes).sum()) / total)
    n = len(values)
    share = max(0.0, 1.0 - (1.0 - ratio) * (n - 1) / (n - count))
    numbers = all(_is_number(value) for value in values)
    direction = None
    if numbers:
        own = mean_ranks(np.array(values, np.float64))
        own -= own.mean()
        spread = math.sqrt(float(own @ own) * total)
        direction = float(own @ centred) / spread if spread else None
    from scipy.special import chdtrc

    p_value = float(chdtrc(count - 1, ratio * (n - 1)))
    return Importance(name, share, p_value, n, count, direction)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _groups(values: Sequence[Value]) -> NDArray[np.int64]:
    """Return each value's group, from 0 without gaps."""
    keys: list[Hashable] = [(type(v) is bool, v) if v is not None else None for v in values]
    distinct = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    own = np.array([distinct[key] for key in keys])
    numbers = all(_is_number(value) for value in values)
    if not numbers or len(distinct) <= MOST_GROUPS:
        return own
    count = max(2, min(MOST_GROUPS, len(values) // 3))
    place = mean_ranks(np.array(values, np.float64))  # equal values stay together
    cut = np.minimum((place - 0.5) * count / len(values), count - 1).astype(np.int64)
    return np.unique(cut, return_inverse=True)[1]


def mean_ranks(values: Floats) -> Floats:
    """Return each value's rank from 1, equal values with the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)
