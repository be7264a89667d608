"""Population-based training: the worst go on from the best ones' states.

Jaderberg, Dalibard, Osindero, Czarnecki, Donahue, Razavi, Vinyals, Green, Dunning, Simonyan,
Fernando and Kavukcuoglu, "Population Based Training of Neural Networks", 2017.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mophpc.dimensions import Choice, Dimension, Integer, LogUniform, Uniform, Value, in_order
from mophpc.search.draw import Constraint, Row
from mophpc.search.halving import order_of
from mophpc.search.method import Continue, Copy, Decision, Result, Start
from mophpc.search.sources import Intake, Source

_OWN_STREAM = zlib.crc32(b"population")
MOST_TRIES = 100
"""Perturbations that the constraint refuses until the hyperparameters are copied as they are."""


@dataclass(frozen=True, slots=True)
class Explorer:
    """Changes hyperparameters a little."""

    space: Mapping[str, Dimension]
    names: tuple[str, ...]
    """Those that change."""
    factors: tuple[float, ...]
    constraint: Constraint | None = None

    def perturb(self, values: Mapping[str, Value], words: Sequence[int]) -> Row:
        """Return other hyperparameters near some.

        Args:
            values: to begin from.
            words: that seed the generator.
        """
        for attempt in range(MOST_TRIES):
            generator = _generator(*words, attempt)
            row = self._perturb_once(values, generator)
            if self.constraint is None or self.constraint(dict(row)):
                return row
        return dict(values)

    def _perturb_once(self, values: Mapping[str, Value], generator: np.random.Generator) -> Row:
        row: Row = {}
        for name in in_order(self.space):
            own = self.space[name]
            factor = self.factors[int(generator.integers(len(self.factors)))]
            share = float(generator.random())
            if not own.exists(row):
                continue
            if name not in values:  # it exists since a choice has moved
                row[name] = own.at(share)
            else:
                value = values[name]
                row[name] = move(own, value, factor) if name in self.names else value
        return {name: row[name] for name in self.space if name in row}


def move(own: Dimension, value: Value, factor: float) -> Value:
    """Return a value that is changed by a factor, within its dimension's bounds.

    A value of a dimension that has steps moves by one at least, or a small integer never would; one
    of a choice moves by one place.
    """
    if isinstance(own, Choice):
        place = next(i for i, v in enumerate(own.choice) if type(v) is type(value) and v == value)
        return own.choice[_within(place + _sign(factor), len(own.choice))]
    if isinstance(own, LogUniform):
        return min(max(float(value) * factor, own.loguniform[0]), own.loguniform[1])
    if isinstance(own, Uniform) and own.step is None:
        return min(max(float(value) * factor, own.uniform[0]), own.uniform[1])
    low, step, values = _steps(own)
    place = round((float(value) - low) / step)
    moved = round((float(value) * factor - low) / step)
    return values[_within(place + _sign(factor) if moved == place else moved, len(values))]


def _steps(own: Integer | Uniform) -> tuple[float, float, Sequence[Value]]:
    """Return the lowest value of a dimension, its step, and all values."""
    if isinstance(own, Integer):
        return own.integer[0], own.step, own.grid
    return own.uniform[0], own.step or 1, own.grid or []


def _sign(factor: float) -> int:
    return (factor > 1) - (factor < 1)


def _within(place: int, count: int) -> int:
    return min(max(place, 0), count - 1)


class Population:
    """Trains all configs in generations of some epochs, between which the worst copy the best.

    A generation ends when all configs that are alive have come to its end; what is decided depends
    on scores alone. Each of the worst quantile takes state and hyperparameters of one drawn from
    the best quantile, and then changes the hyperparameters. A config that has diverged is gone,
    since a state is copied only between configs that are alive.
    """

    def __init__(
        self,
        source: Source,
        most: int,
        *,
        epochs: int,
        interval: int,
        quantile: float,
        explorer: Explorer,
        seed: int,
    ) -> None:
        """Take configs from a source.

        Args:
            source: gives them, all at once.
            most: so many configs at most.
            epochs: in all.
            interval: epochs of a generation.
            quantile: the share of configs that copy, and of those that are copied.
            explorer: changes hyperparameters.
            seed: of the experiment.
        """
        self._intake = Intake(source, most)
        self._epochs = epochs
        self._interval = interval
        self._quantile = quantile
        self._explorer = explorer
        self._seed = seed
        self._generation = 0
        self._values: dict[int, Mapping[str, Value]] = {}
        self._missing: dict[int, None] = {}
        self._waiting: dict[int, float] = {}

    def ask(self, room: int) -> Sequence[Start]:  # noqa: ARG002 - all are needed
        """Return all configs, since they are to be compared; later none."""
        first = self._intake.started
        rows = self._intake.take(None)
        self._values |= dict(enumerate(rows, first))
        self._missing |= dict.fromkeys(range(first, first + len(rows)))
        return [Start(row, self._interval, self._epochs - self._interval) for row in rows]

    def tell(self, result: Result) -> Sequence[Decision]:
        """Take a result; the last one of a generation decides it."""
        if result.config_id not in self._values:
            return ()
        self._intake.learn(result.config_id, result.score)
        self._missing.pop(result.config_id, None)
        if result.is_over or result.epochs >= self._epochs:
            self._waiting.pop(result.config_id, None)
        else:
            self._waiting[result.config_id] = result.score
        if self._missing or not self._waiting:
            return ()
        return self._decide()

    def _decide(self) -> Sequence[Decision]:
        self._generation += 1
        scores = self._waiting
        ranked = sorted(scores, key=lambda config_id: order_of(scores[config_id], config_id))
        count = max(1, int(len(ranked) * self._quantile)) if len(ranked) > 1 else 0
        best = [i for i in ranked[:count] if math.isfinite(scores[i])]
        copying = dict.fromkeys(ranked[len(ranked) - count :] if best else [])
        self._waiting, self._missing = {}, dict.fromkeys(sorted(ranked))
        made = self._generation * self._interval
        epochs = min(made + self._interval, self._epochs)
        then = self._epochs - epochs
        decisions: list[Decision] = []
        values = dict(self._values)
        for config_id in sorted(ranked):
            if config_id not in copying:
                decisions.append(Continue(config_id, epochs, then))
                continue
            words = (self._seed, self._generation, config_id, _OWN_STREAM)
            source = best[int(_generator(*words).integers(len(best)))]
            values[config_id] = self._explorer.perturb(self._values[source], words)
            decisions.append(Copy(config_id, source, values[config_id], epochs, then))
        self._values = values
        return decisions


def _generator(*words: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
