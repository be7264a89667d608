"""Rules that stop a config early, where a method would train it for all epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from mophpc.search.method import Continue, Decision, Method, Result, Start, Stop

LEAST_OTHERS = 3
"""Configs that the median is of, at least."""


@dataclass(slots=True)
class _Curve:
    """What is known of a config."""

    means: list[float] = field(default_factory=list)
    """By epoch: the mean of the scores up to it."""
    best: float = math.inf
    best_epoch: int = 0
    """The first epoch that had it."""

    def add(self, epoch: int, score: float) -> None:
        made = len(self.means)
        self.means.append((self.means[-1] * made + score) / (made + 1) if made else score)
        if score < self.best:
            self.best, self.best_epoch = score, epoch


class Ruled:
    """A method that trains each config for all epochs, until a rule stops it.

    With `patience`, a config is stopped after so many epochs in a row without a better score. With
    `median` (Golovin, Solnik, Moitra, Kochanski, Karro and Sculley, "Google Vizier: A Service for
    Black-Box Optimization", KDD 2017), it is stopped when its best score so far is worse than the
    median of the others' means over their epochs up to the same one. That depends on which of the
    others have come so far.
    """

    def __init__(
        self, method: Method, epochs: int, *, patience: int | None, grace: int | None
    ) -> None:
        """Put rules on a method.

        Args:
            method: gives configs.
            epochs: in all.
            patience: epochs without a better score; None: any number.
            grace: epochs that a config makes before it is compared with the median; None: it never
                is.
        """
        self._method = method
        self._epochs = epochs
        self._patience = patience
        self._grace = grace
        self._curves: dict[int, _Curve] = {}

    def ask(self, room: int) -> Sequence[Start]:
        """Return the method's configs, an epoch at a time."""
        starts = self._method.ask(room)
        return [replace(start, epochs=1, then=self._epochs - 1) for start in starts]

    def tell(self, result: Result) -> Sequence[Decision]:
        """Take a result; return whether the config goes on."""
        curve = self._curves.setdefault(result.config_id, _Curve())
        if not result.is_over:
            curve.add(result.epochs, math.inf if math.isnan(result.score) else result.score)
        if result.is_over or result.epochs >= self._epochs:
            return self._method.tell(result)
        if self._is_hopeless(result, curve):
            self._method.tell(replace(result, is_over=True))
            return [Stop(result.config_id)]
        epochs = result.epochs + 1
        return [Continue(result.config_id, epochs, self._epochs - epochs)]

    def _is_hopeless(self, result: Result, curve: _Curve) -> bool:
        if self._patience is not None and result.epochs - curve.best_epoch >= self._patience:
            return True
        if self._grace is None or result.epochs < self._grace:
            return False
        others = [
            other.means[result.epochs - 1]
            for config_id, other in self._curves.items()
            if config_id != result.config_id and len(other.means) >= result.epochs
        ]
        return len(others) >= LEAST_OTHERS and curve.best > median(others)
