"""Successive halving and Hyperband: the best of a rung go on, when all have come to it.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
AISTATS 2016. Li, Jamieson, DeSalvo, Rostamizadeh and Talwalkar, "Hyperband: A Novel Bandit-Based
Approach to Hyperparameter Optimization", JMLR 18, 2018.

With R epochs in all, at least r of them per config, and a reduction eta:

    s_max = floor(log_eta(R / r))
    rung k of 0 ... s_max is at r * eta^k epochs, the last one at R.

Successive halving of n configs lets floor(n / eta^k), but at least one, come to rung k. Hyperband
is a bracket of it for each s of s_max ... 0, which begins at rung s_max - s:

    n_s = ceil((s_max + 1) / (s + 1) * eta^s) configs start in it,
    floor(n_s / eta^i) of them, but at least one, come to its rung i of 0 ... s.

Li et al. start each rung's configs anew, and pay for n_i * r_i epochs; here they go on from where
they are, and pay for n_i * (r_i - r_{i-1}). All brackets are in one pool at once, so that ranks
which one of them leaves idle at the end of a rung train the others'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mophpc.search.method import Continue, Decision, Result, Start, Stop
from mophpc.search.sources import Intake, Source


def make_rungs(min_epochs: int, reduction: int, epochs: int) -> tuple[int, ...]:
    """Return the epochs at which configs are compared; the last are all epochs.

    Args:
        min_epochs: of the first rung.
        reduction: from one rung to the next.
        epochs: in all.
    """
    rungs = [min_epochs]
    while rungs[-1] * reduction <= epochs:
        rungs.append(rungs[-1] * reduction)
    return (*rungs[:-1], epochs)


def survivors(count: int, reduction: int, rung: int) -> int:
    """Return how many of so many configs come to a rung, counted from their first."""
    return max(1, count // int(reduction**rung))


def hyperband_sizes(num_rungs: int, reduction: int) -> tuple[int, ...]:
    """Return how many configs each bracket starts, that which begins at the lowest rung first."""
    return tuple(
        -(-num_rungs * reduction**s // (s + 1))  # the ceiling, in integers
        for s in reversed(range(num_rungs))
    )


def order_of(score: float, config_id: int) -> tuple[float, int]:
    """Return what sorts configs from best to worst; equal ones by id."""
    return (math.inf if math.isnan(score) else score, config_id)


@dataclass(slots=True)
class _Bracket:
    """Configs that are compared with each other, at one rung after the other."""

    rungs: tuple[int, ...]
    count: int
    """How many started in it."""
    rung: int = 0
    missing: dict[int, None] = field(default_factory=dict)
    """Those that have not come to the rung yet."""
    waiting: dict[int, float] = field(default_factory=dict)
    """The scores of those that have."""


class Halving:
    """Successive halving in one or more brackets.

    A rung is decided when all configs that are alive have come to it. What is decided depends on
    scores alone, not on the order in which they come. A config that has diverged, or that somebody
    has stopped, is the worst.
    """

    def __init__(
        self, source: Source, rungs: Sequence[int], sizes: Sequence[int], reduction: int
    ) -> None:
        """Take configs from a source.

        Args:
            source: gives them, all at once.
            rungs: epochs at which configs are compared.
            sizes: of the brackets; the first begins at the first rung, and so on.
            reduction: one of so many is promoted.
        """
        self._rungs = tuple(rungs)
        self._reduction = reduction
        self._sizes = tuple(sizes)
        self._intake = Intake(source, sum(sizes))
        self._bracket_of: dict[int, _Bracket] = {}

    def ask(self, room: int) -> Sequence[Start]:  # noqa: ARG002 - all are needed
        """Return all configs, since they are to be compared; later none."""
        first = self._intake.started
        rows = self._intake.take(None)
        starts: list[Start] = []
        for number, size in enumerate(self._sizes):
            rungs = self._rungs[number:]
            own = rows[len(starts) : len(starts) + size]
            bracket = _Bracket(rungs, len(own))
            for row in own:
                config_id = first + len(starts)
                bracket.missing[config_id] = None
                self._bracket_of[config_id] = bracket
                starts.append(Start(row, rungs[0], self._rungs[-1] - rungs[0], number))
        return starts

    def tell(self, result: Result) -> Sequence[Decision]:
        """Take a result; the last one of a rung decides it."""
        self._intake.learn(result.config_id, result.score)
        bracket = self._bracket_of.get(result.config_id)
        if bracket is None:
            return ()
        bracket.missing.pop(result.config_id, None)
        if result.is_over or result.epochs >= self._rungs[-1]:
            bracket.waiting.pop(result.config_id, None)
        else:
            bracket.waiting[result.config_id] = result.score
        if bracket.missing or not bracket.waiting:
            return ()
        return self._decide(bracket)

    def _decide(self, bracket: _Bracket) -> Sequence[Decision]:
        bracket.rung += 1
        scores = bracket.waiting
        ranked = sorted(scores, key=lambda config_id: order_of(scores[config_id], config_id))
        best = survivors(bracket.count, self._reduction, bracket.rung)
        promoted = [i for i in ranked[:best] if math.isfinite(scores[i])]
        bracket.waiting = {}
        bracket.missing = dict.fromkeys(promoted)
        epochs = bracket.rungs[bracket.rung]
        then = self._rungs[-1] - epochs
        return [
            Continue(i, epochs, then) if i in bracket.missing else Stop(i) for i in sorted(ranked)
        ]
