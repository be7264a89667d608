"""A method of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mophpc.dimensions import Dimension, Value
from mophpc.errors import ExperimentError
from mophpc.loading import load_callable
from mophpc.search.checked import ANYTHING, plain_integer
from mophpc.search.draw import Key, Row, key_of
from mophpc.search.method import Decision, Method, Result, Start
from mophpc.search.sources import Source
from mophpc.search_settings import MOST_CONFIGS


@dataclass(frozen=True, slots=True)
class Brief:
    """What a method of your own is made from."""

    space: Mapping[str, Dimension]
    """Hyperparameter to its dimension; empty where configs are listed."""
    epochs: int
    """That a config makes at most."""
    seed: int
    """Of the experiment."""
    room: int
    """Configs in training at a time that keep all ranks busy."""
    draw: Callable[[int], list[Row]]
    """Returns up to so many new sets of hyperparameters, from the sampler of the experiment and as
    its constraint allows; fewer when there are no others left."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`search.options` of the experiment."""


class Drawn:
    """A source as a user's method sees it: it draws, and need not say what it has drawn."""

    def __init__(self, source: Source) -> None:
        """Give what a source gives."""
        self._source = source
        self._given = 0
        self._numbers: dict[Key, int] = {}
        self._of_config: list[int | None] = []

    def draw(self, count: int) -> list[Row]:
        """Return up to so many new sets of hyperparameters."""
        count = plain_integer(count)
        if type(count) is not int or not 0 <= count <= MOST_CONFIGS:
            raise ExperimentError(
                f"draw was asked for {count!r} configs; allowed: 0 to {MOST_CONFIGS}"
            )
        rows = self._source.more(count) if count else []
        for row in rows:
            self._numbers[key_of(row)] = self._given
            self._given += 1
        return [dict(row) for row in rows]

    def started(self, values: Mapping[str, Value]) -> None:
        """Note that a config has started, drawn or not."""
        self._of_config.append(self._numbers.pop(key_of(values), None))

    def came(self, result: Result) -> None:
        """Tell the source the first score of a config that it gave."""
        known = result.config_id < len(self._of_config)
        number = self._of_config[result.config_id] if known else None
        if number is not None:
            self._of_config[result.config_id] = None
            self._source.learn(number, result.score)


class Own:
    """A user's method, which draws from a source."""

    def __init__(self, method: Method, drawn: Drawn) -> None:
        """Join a method and what it draws from."""
        self._method = method
        self._drawn = drawn

    def ask(self, room: int) -> Sequence[Start]:
        """Return the method's new configs."""
        starts = self._method.ask(room)
        for start in starts:
            self._drawn.started(start.values)
        return starts

    def tell(self, result: Result) -> Sequence[Decision]:
        """Return the method's decisions."""
        self._drawn.came(result)
        return self._method.tell(result)


def load_method(reference: str, brief: Brief) -> Method:
    """Return the user's method.

    Args:
        reference: `file.py:Name` or `package.module:Name` of a class or function.
        brief: its one argument.

    Raises:
        ExperimentError: it is missing, fails, or returns what has no `ask` or no `tell`.
    """
    make = load_callable(reference)
    try:
        method = make(brief)
    except ExperimentError:
        raise
    except ANYTHING as error:
        raise ExperimentError(
            f"search.method '{reference}' raised {type(error).__name__}: {error}; it is called "
            f"with one argument, a mophpc.search.Brief"
        ) from error
    lacking = [name for name in ("ask", "tell") if not callable(getattr(method, name, None))]
    if lacking:
        raise ExperimentError(
            f"search.method '{reference}' made a {type(method).__name__}, which lacks "
            f"{' and '.join(lacking)}; it needs ask(room) and tell(result)"
        )
    return method  # type: ignore[no-any-return]  # checked to have its methods
