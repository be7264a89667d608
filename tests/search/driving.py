"""What the tests of methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mophpc
from mophpc.experiment import Experiment
from mophpc.search import make_method
from mophpc.search.checked import Shape
from mophpc.search.drive import Ride, drive

SPACE = {"lr": mophpc.uniform(0, 1), "tie": mophpc.choice([1, 2, 3])}


def experiment(method: str | None, epochs: int = 9, space: Any = SPACE, **search: Any):
    given = {"method": method} if method else {}
    seed = search.pop("seed", 1)
    return Experiment(
        build="m:b", data="s", epochs=epochs, seed=seed, space=space, search=given | search
    )


def score(values: Mapping[str, Any], epochs: int) -> float:
    """Ties are many; curves cross; some configs diverge, at different epochs."""
    if values["lr"] > 0.9 and epochs > 10 * (values["lr"] - 0.9) * 5:
        return math.inf
    return values["tie"] + round(values["lr"], 1) / epochs


def rides(
    made: Experiment, *, room: int = 4, order: int = 0, score: Callable[..., float] = score
) -> list[Ride]:
    shape = Shape(made.space, tuple(name for row in made.configs for name in row))
    return drive(make_method(made, room), made.epochs, score, shape=shape, room=room, seed=order)
