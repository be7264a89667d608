"""Checks what a method returns, so that a mistake in it is named where it is made."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mophpc.dimensions import Dimension, Value
from mophpc.errors import ExperimentError
from mophpc.search.method import Continue, Copy, Decision, Method, Result, Start, Stop
from mophpc.search_settings import MOST_CONFIGS

ANYTHING = (Exception, SystemExit, KeyboardInterrupt)
"""What a user's code may raise. In a run a Ctrl-C raises nothing, but is noted."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What hyperparameters a config has."""

    space: Mapping[str, Dimension]
    names: tuple[str, ...] = ()
    """Of listed configs, where there is no space."""

    def wrong(self, values: Mapping[str, Value]) -> str | None:
        """Say what is wrong with the names of some hyperparameters; None if nothing is."""
        allowed = tuple(self.space) or self.names
        for name in values:
            if name not in allowed:
                return f"has '{name}'; allowed: {', '.join(allowed)}"
            if name in self.space and not self.space[name].exists(values):
                return f"has '{name}', which exists only when {self.space[name].when}"
        for name, own in self.space.items():
            if name not in values and own.exists(values):
                return f"lacks '{name}'"
        return None


class Checked:
    """A method whose every word is checked.

    It forgets nothing: which configs there are, how many epochs each has made, and which wait.
    """

    def __init__(self, method: Method, epochs: int, shape: Shape, title: str) -> None:
        """Watch a method.

        Args:
            method: what is asked and told.
            epochs: that a config may make.
            shape: which hyperparameters it has.
            title: names the method, in messages.
        """
        self._method = method
        self._epochs = epochs
        self._shape = shape
        self._title = title
        self._made: list[int] = []
        """By config: epochs that it has made."""
        self._waiting: dict[int, None] = {}

    def ask(self, room: int) -> Sequence[Start]:
        """Return the method's new configs.

        Raises:
            ExperimentError: the method has failed, or returns what it must not.
        """
        given = self._call("ask", self._method.ask, room)
        starts = [self._start(item) for item in self._listed("ask", given, "Start")]
        if len(self._made) + len(starts) > MOST_CONFIGS:
            count = len(self._made) + len(starts)
            raise self._wrong("ask", f"config {count}", f"{MOST_CONFIGS} configs in all")
        self._made += [0] * len(starts)
        return starts

    def tell(self, result: Result) -> Sequence[Decision]:
        """Return the method's decisions.

        Raises:
            ExperimentError: the method has failed, or returns what it must not.
        """
        config_id = result.config_id
        if config_id < len(self._made):
            self._made[config_id] = result.epochs
            self._waiting.pop(config_id, None)
            if not result.is_over:
                self._waiting[config_id] = None
        given = self._call("tell", self._method.tell, result)
        listed = self._listed("tell", given, "Continue, Copy or Stop")
        decisions = [self._decision(item) for item in listed]
        for decision in decisions:
            self._take(decision)
        return decisions

    def _call(self, what: str, function: Callable[[Any], Any], given: Any) -> Any:
        try:
            return function(given)
        except ExperimentError:
            raise
        except ANYTHING as error:
            raise ExperimentError(
                f"{self._title}: {what} raised {type(error).__name__}"
                + (f": {error}" if str(error) else "")
            ) from error

    def _listed(self, what: str, given: Any, kinds: str) -> list[Any]:
        if not isinstance(given, list | tuple):
            raise self._wrong(what, _kind(given), f"a list of {kinds}")
        return list(given)

    def _start(self, item: Any) -> Start:
        if not isinstance(item, Start):
            raise self._wrong("ask", _kind(item), "a list of Start")
        start: Start = _with_plain(item, "epochs", "then", "group")
        self._check_epochs("ask", start, 0)
        if type(start.group) is not int:
            raise self._wrong("ask", f"group = {start.group!r}", "an integer")
        return replace(start, values=self._values("ask", start))

    def _decision(self, item: Any) -> Decision:
        if not isinstance(item, Continue | Copy | Stop):
            raise self._wrong("tell", _kind(item), "a list of Continue, Copy or Stop")
        said: Decision = _with_plain(item, "config_id", "source", "epochs", "then")
        self._check_waits(said, said.config_id)
        if isinstance(said, Copy):
            self._check_waits(said, said.source)
            if said.source == said.config_id:
                raise self._wrong("tell", f"{said}", "the copy of another config")
            self._check_epochs("tell", said, self._made[said.source])
            return replace(said, values=self._values("tell", said))
        if isinstance(said, Continue):
            self._check_epochs("tell", said, self._made[said.config_id])
        return said

    def _check_waits(self, item: Decision, config_id: Any) -> None:
        if type(config_id) is not int or not 0 <= config_id < len(self._made):
            there = f"there are {len(self._made)}, from 0"
            raise self._wrong("tell", f"{item}", f"the id of a config ({there})")
        if config_id not in self._waiting:
            waiting = ", ".join(map(str, self._waiting)) or "none"
            raise self._wrong("tell", f"{item}", f"a config that waits ({waiting})")

    def _check_epochs(self, what: str, item: Start | Continue | Copy, made: int) -> None:
        whose = "" if isinstance(item, Start) else f" for config {item.config_id}"
        if type(item.epochs) is not int or not made < item.epochs <= self._epochs:
            allowed = f"{made + 1} to {self._epochs}"
            if isinstance(item, Copy):
                whose += f", a copy of config {item.source}"
            if made:
                allowed += f", since it has made {made}"
            raise self._wrong(what, f"epochs = {item.epochs!r}{whose}", allowed)
        left = self._epochs - item.epochs
        if type(item.then) is not int or not 0 <= item.then <= left:
            allowed = f"0 to {left}, the epochs left"
            raise self._wrong(what, f"then = {item.then!r}{whose}", allowed)

    def _values(self, what: str, item: Start | Copy) -> dict[str, Value]:
        if not isinstance(item.values, Mapping):
            raise self._wrong(what, f"values = {item.values!r}", "a mapping of hyperparameters")
        values: dict[str, Value] = {}
        for name, value in item.values.items():
            plain = value.item() if isinstance(value, np.generic) else value
            if not isinstance(plain, bool | int | float | str):
                kinds = "a boolean, integer, float or string"
                raise self._wrong(what, f"{name} = {plain!r}", kinds)
            if isinstance(plain, float) and not math.isfinite(plain):
                raise self._wrong(what, f"{name} = {plain!r}", "finite numbers")
            values[name] = plain
        wrong = self._shape.wrong(values)
        if wrong is not None:
            raise ExperimentError(f"{self._title}: {what} returned a config that {wrong}")
        return values

    def _take(self, decision: Decision) -> None:
        if decision.config_id not in self._waiting:
            raise self._wrong("tell", f"{decision}", "one decision on a config")
        del self._waiting[decision.config_id]

    def _wrong(self, what: str, given: str, allowed: str) -> ExperimentError:
        return ExperimentError(f"{self._title}: {what} returned {given}; allowed: {allowed}")


def plain_integer(value: Any) -> Any:
    """Return an integer of numpy's, say, as Python's; what is no integer as it is."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _with_plain(item: Any, *names: str) -> Any:
    """Return what a method said with integers of Python's."""
    return replace(item, **{n: plain_integer(getattr(item, n)) for n in names if hasattr(item, n)})


def _kind(item: object) -> str:
    name = type(item).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
