"""Drives a method without ranks, to see what it decides; pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mophpc.dimensions import Value
from mophpc.search.checked import Checked, Shape
from mophpc.search.method import Continue, Copy, Decision, Method, Result, Start

Score = Callable[[Mapping[str, Value], int], float]
"""From hyperparameters and epochs to a score; less is better."""


@dataclass(slots=True)
class Ride:
    """What became of a config."""

    values: Mapping[str, Value]
    target: int
    """Epochs that it was told to make."""
    epochs: int = 0
    score: float = math.inf
    status: str = "training"
    """Or `waiting`, `stopped`, `done` or `diverged`."""
    trained: int = 0
    """Epochs that ranks made for it; not those of states that it copied."""
    decisions: list[Start | Decision] = field(default_factory=list)


def drive(
    method: Method, epochs: int, score: Score, *, shape: Shape, room: int = 4, seed: int = 0
) -> list[Ride]:
    """Return what a method makes of its configs.

    Args:
        method: decides.
        epochs: that a config may make.
        score: made up; infinite where a config diverges.
        shape: which hyperparameters configs have.
        room: configs in training at a time.
        seed: draws which of the configs in training is the next to come to the end of its epochs.

    Raises:
        ExperimentError: the method returned what it must not.
    """
    checked = Checked(method, epochs, shape, "the method")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    rides: list[Ride] = []
    while True:
        training = [i for i, ride in enumerate(rides) if ride.status == "training"]
        if len(training) < room:
            begun = checked.ask(room - len(training))
            rides += [Ride(start.values, start.epochs, decisions=[start]) for start in begun]
            training += range(len(rides) - len(begun), len(rides))
        if not training:
            return rides
        config_id = training[int(generator.integers(len(training)))]
        _come(rides[config_id], epochs, score)
        ride = rides[config_id]
        is_over = ride.status != "waiting"
        made = [other.epochs for other in rides]  # before copies change them
        for decision in checked.tell(Result(config_id, ride.epochs, ride.score, {}, is_over)):
            ride = rides[decision.config_id]
            ride.decisions.append(decision)
            ride.status = "stopped"
            if isinstance(decision, Continue | Copy):
                ride.status, ride.target = "training", decision.epochs
            if isinstance(decision, Copy):
                ride.values, ride.epochs = decision.values, made[decision.source]


def _come(ride: Ride, epochs: int, score: Score) -> None:
    """Bring a config to the end of its epochs, or to the one in which it diverges."""
    while ride.epochs < ride.target:
        ride.epochs += 1
        ride.trained += 1
        ride.score = score(ride.values, ride.epochs)
        if not math.isfinite(ride.score):
            ride.status = "diverged"
            return
    ride.status = "done" if ride.epochs == epochs else "waiting"
