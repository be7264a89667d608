"""The method of a run, on rank 0: made before anything else, since it says what is to be tried."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mophpc.dimensions import Value
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment
from mophpc.search import Method, Start, make_method, make_rows, room_of
from mophpc.search_settings import FIXED, is_reference

LONG_S = 60.0
"""After so long people are told that the method is thinking."""


@dataclass(slots=True)
class Searching:
    """Who decides on configs, and with what it began; real on rank 0 only."""

    method: Method | None = None
    """None: every config makes all epochs."""
    starts: Sequence[Start] = ()
    warn: Callable[[str], None] = lambda _: None
    """Takes a sentence where the method thinks for long."""


def is_directed(experiment: Experiment) -> bool:
    """Whether configs are decided on while they are trained."""
    search = experiment.search
    stops = search.patience is not None or search.median is not None
    return stops or experiment.method not in FIXED


def is_quick(experiment: Experiment) -> bool:
    """Whether the method decides in no time, and draws from generators of its own."""
    return not is_reference(experiment.method) and experiment.sampler in FIXED


def begin_search(
    experiment: Experiment, num_ranks: int, search: Searching
) -> list[dict[str, Value]]:
    """Make the method, if there is one, and return the first hyperparameters to try.

    Args:
        experiment: with its search settings.
        num_ranks: that train.
        search: gets the method.

    Raises:
        ExperimentError: the method or its configs cannot be made.
    """
    if not is_directed(experiment):
        return make_rows(experiment)
    room = room_of(experiment, num_ranks)
    with said_if_long(experiment, search.warn):
        method = make_method(experiment, room)
        search.method, search.starts = method, list(method.ask(room))
    if not search.starts:
        raise ExperimentError(_nothing(experiment))
    return [dict(start.values) for start in search.starts]


@contextmanager
def said_if_long(experiment: Experiment, warn: Callable[[str], None]) -> Iterator[None]:
    """Say it when the method thinks for long: it is the user's code, and may never return."""
    said = threading.Timer(
        LONG_S,
        warn,
        [
            f"search.method '{experiment.method}' has been thinking for {LONG_S:.0f} s; "
            f"ranks that have no visits wait for it"
        ],
    )
    said.daemon = True
    said.start()
    try:
        yield
    finally:
        said.cancel()


def _nothing(experiment: Experiment) -> str:
    """Say why there is no config to begin with."""
    constraint = experiment.search.constraint
    if is_reference(experiment.method):
        said = (
            f"search.method '{experiment.method}' returned no config to begin with; its ask must "
            f"return at least one"
        )
        if constraint is None:
            return said
        return f"{said}, and search.constraint '{constraint}' must allow what it draws"
    if constraint is None:
        return f"'{experiment.sampler}' found no config to begin with; give a larger space"
    return (
        f"search.constraint '{constraint}' allows none of the configs that '{experiment.sampler}' "
        f"tried; let it allow more, or change the space"
    )
