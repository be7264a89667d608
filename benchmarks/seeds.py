"""What seeds alone do to a difference of accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

MOST_POINTS = 0.3
"""Of a config's mean over seeds from that of sequential SGD."""
Accuracies = Sequence[Sequence[float]]
"""By config, of several seeds."""


def noise(hopped: Accuracies, sequential: Accuracies) -> float:
    """Return one sigma, in points, of a config's difference of means, were both methods the same.

    All configs together, two seeds at least: of one config alone a handful of seeds says little.
    """
    variances = [statistics.variance(own) for own in (*hopped, *sequential)]
    return 100 * math.sqrt(statistics.mean(variances) * 2 / len(hopped[0]))


def chance(sigma: float) -> float:
    """Return how probable it is that a normal difference of that sigma is within the most."""
    return math.erf(MOST_POINTS / sigma / math.sqrt(2)) if sigma > 0 else 1.0


def over_seeds(hopped: Accuracies, sequential: Accuracies) -> tuple[float, float]:
    """Return the mean difference of all configs in points, and its standard error.

    A seed's configs begin with the same weights and see rows in the same order, so that they err
    together: what is independent is not a config, but a seed.
    """
    own = [
        100 * (statistics.mean(ours) - statistics.mean(theirs))
        for ours, theirs in zip(
            zip(*hopped, strict=True), zip(*sequential, strict=True), strict=True
        )
    ]
    return statistics.mean(own), statistics.stdev(own) / math.sqrt(len(own))
