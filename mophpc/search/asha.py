"""ASHA: promotion without waiting for the rung.

Li, Jamieson, Rostamizadeh, Gonina, Ben-tzur, Hardt, Recht and Talwalkar, "A System for Massively
Parallel Hyperparameter Tuning", MLSys 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from mophpc.search.halving import order_of
from mophpc.search.method import Continue, Decision, Result, Start, Stop
from mophpc.search.sources import Intake, Source


@dataclass(slots=True)
class _Rung:
    """What is known of the configs of a rung."""

    epochs: int
    coming: dict[int, None] = field(default_factory=dict)
    """Those that train towards it."""
    scores: dict[int, float] = field(default_factory=dict)
    """Of those that have come, wherever they are now; infinite where they ended there or before."""
    waiting: dict[int, None] = field(default_factory=dict)
    """Those that have come and are not decided on."""


class Asha:
    """Promotes a config as soon as it is among the best of those that have come to its rung.

    Of n configs that have come, the best floor(n / reduction) go on: at once, or later, when more
    have come. A config is stopped when so many are better that it cannot go on whatever comes.
    When nothing more can come to a rung, at least its best one goes on, so that one makes all
    epochs. New configs enter as there is room. What is decided depends on the order in which
    results come. Nothing is said of epochs that may follow (`then`): so ranks take promoted configs
    before new ones, since they have more to do, and the first ones are whole early.
    """

    def __init__(self, source: Source, rungs: Sequence[int], most: int, reduction: int) -> None:
        """Take configs from a source.

        Args:
            source: gives them.
            rungs: epochs at which configs are compared.
            most: so many configs at most.
            reduction: one of so many is promoted.
        """
        self._intake = Intake(source, most)
        self._reduction = reduction
        self._rungs = [_Rung(epochs) for epochs in rungs]

    def ask(self, room: int) -> Sequence[Start]:
        """Return as many new configs as there is room for."""
        lowest = self._rungs[0]
        first = self._intake.started
        rows = self._intake.take(room)
        lowest.coming |= dict.fromkeys(range(first, first + len(rows)))
        return [Start(row, lowest.epochs) for row in rows]

    def tell(self, result: Result) -> Sequence[Decision]:
        """Take a result; return what follows from it, at any rung."""
        self._intake.learn(result.config_id, result.score)
        config_id = result.config_id
        for rung in self._rungs:
            if config_id in rung.coming:
                del rung.coming[config_id]
                rung.scores[config_id] = math.inf if result.is_over else result.score
                if not result.is_over and rung is not self._rungs[-1]:
                    rung.waiting[config_id] = None
            elif config_id in rung.waiting and result.is_over:  # somebody stopped it
                del rung.waiting[config_id]
                rung.scores[config_id] = math.inf
        decisions = self._decide()
        is_training = any(rung.coming for rung in self._rungs)
        is_waiting = any(rung.waiting for rung in self._rungs)
        # Where all wait for more to come, we must know now whether any will.
        if is_waiting and not is_training and not self._intake.has_more():
            decisions += self._decide()
        return decisions

    def _decide(self) -> list[Decision]:
        """Promote and stop, from the lowest rung up, since what is below decides what may come."""
        decisions: list[Decision] = []
        below = self._intake.to_come
        for rung, above in zip(self._rungs[:-1], self._rungs[1:], strict=True):
            may_come = below + len(rung.coming)
            came = len(rung.scores)
            now, at_last = came // self._reduction, (came + may_come) // self._reduction
            if may_come == 0:
                now = max(1, now)
            at_last = max(1, at_last)
            ranked = sorted(rung.scores, key=lambda i: order_of(rung.scores[i], i))
            for place, config_id in enumerate(ranked):
                if config_id not in rung.waiting:
                    continue
                if place >= at_last or not rung.scores[config_id] < math.inf:
                    decisions.append(Stop(config_id))
                elif place < now:
                    decisions.append(Continue(config_id, above.epochs))
                    above.coming[config_id] = None
                else:
                    continue
                del rung.waiting[config_id]
            below = may_come + len(rung.waiting)
        return decisions
