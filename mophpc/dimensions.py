"""The dimensions of a search space, as typed settings.

In TOML a list is a choice, and a table has one of the keys `choice`, `uniform`, `loguniform` and
`integer`; in Python the functions of these names make the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import Field, model_validator

from mophpc.settings import Settings

Value: TypeAlias = bool | int | float | str
"""A hyperparameter's value."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

COLUMNS = ("config_id", "config", "status", "epochs", "best_epoch", "state_sha256", "route")
PREFIXES = ("final_", "best_")
"""Of the columns of the results that are no hyperparameters; those are not called so."""

MOST_STEPS = 1_000_000
"""So many values a number with a step has at most; more could as well have none."""

KINDS = ("choice", "uniform", "loguniform", "integer")

_Finite = Annotated[float, Field(allow_inf_nan=False)]
Bounds = Annotated[list[_Finite], Field(min_length=2, max_length=2)]
"""The lowest and the highest value; both may be drawn."""
IntegerBounds = Annotated[list[int], Field(min_length=2, max_length=2)]


class _Conditional(Settings):
    when: dict[Name, Value | list[Value]] = Field(default_factory=dict)
    """The hyperparameter exists only where these others have such a value, or one of these."""

    def exists(self, values: Mapping[str, Value]) -> bool:
        """Whether a config with these values has this hyperparameter."""
        return all(
            name in values and is_among(values[name], allowed)
            for name, allowed in self.when.items()
        )


class Choice(_Conditional):
    """One of several values, each as likely."""

    choice: Annotated[list[Value], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Choice:
        for value in self.choice:
            check_finite(value)
        if len(self.choice) != len({(type(v), v) for v in self.choice}):
            raise ValueError("holds a value twice")
        return self

    @property
    def grid(self) -> Sequence[Value]:
        """All values."""
        return self.choice

    def at(self, share: float) -> Value:
        """Return the value at a share of the whole, 0 <= share < 1."""
        return self.choice[int(share * len(self.choice))]


class Uniform(_Conditional):
    """A number between bounds, each as likely; with a step, one of those from the lower bound."""

    uniform: Bounds
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        _check_order("uniform", self.uniform)
        low, high = self.uniform
        if not math.isfinite(high - low):
            raise ValueError(f"uniform = {self.uniform}: the bounds are too far apart")
        if self.step is not None and not (high - low) / self.step < MOST_STEPS:
            raise ValueError(
                f"step = {self.step} makes more than {MOST_STEPS} values of uniform = "
                f"{self.uniform}; allowed: a larger step, or none"
            )
        return self

    @property
    def grid(self) -> Sequence[Value] | None:
        """All values; None where they cannot be counted."""
        if self.step is None:
            return None
        return [self._value(place, self.step) for place in range(self._count(self.step))]

    def _count(self, step: float) -> int:
        low, high = self.uniform
        # Of what a division leaves over, so that 0 to 0.5 by 0.1 has its upper bound.
        return math.floor((high - low) / step + 1e-9) + 1

    def _value(self, place: int, step: float) -> float:
        return _tidy(self.uniform[0] + place * step)

    def at(self, share: float) -> Value:
        """Return the value at a share of the whole, 0 <= share < 1."""
        low, high = self.uniform
        if self.step is None:
            return low + share * (high - low)
        return self._value(int(share * self._count(self.step)), self.step)


class LogUniform(_Conditional):
    """A positive number between bounds, each order of magnitude as likely."""

    loguniform: Bounds

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        _check_order("loguniform", self.loguniform)
        if self.loguniform[0] <= 0:
            raise ValueError(f"loguniform = {self.loguniform}: the lower bound must be above 0")
        return self

    @property
    def grid(self) -> Sequence[Value] | None:
        """None: the values cannot be counted."""
        return None

    def at(self, share: float) -> Value:
        """Return the value at a share of the whole, 0 <= share < 1."""
        low, high = self.loguniform
        begin, end = math.log(low), math.log(high)
        return min(max(math.exp(begin + share * (end - begin)), low), high)


class Integer(_Conditional):
    """An integer between bounds, both of which may be drawn."""

    integer: IntegerBounds
    step: Annotated[int, Field(ge=1)] = 1
    log: bool = False
    """Each order of magnitude is as likely."""

    @model_validator(mode="after")
    def _ordered(self) -> Integer:
        _check_order("integer", self.integer)
        if self.log and self.integer[0] <= 0:
            raise ValueError(f"integer = {self.integer}: with log the lower bound must be above 0")
        if self.log and self.step != 1:
            raise ValueError("log and step exclude each other")
        return self

    @property
    def grid(self) -> Sequence[Value]:
        """All values; not as a list, which may be long."""
        return range(self.integer[0], self.integer[1] + 1, self.step)

    def at(self, share: float) -> Value:
        """Return the value at a share of the whole, 0 <= share < 1."""
        low, high = self.integer
        if self.log:
            # Each has the room between itself and the next.
            begin, end = math.log(low), math.log(high + 1)
            return min(high, max(low, math.floor(math.exp(begin + share * (end - begin)))))
        return low + self.step * int(share * ((high - low) // self.step + 1))


Dimension: TypeAlias = Choice | Uniform | LogUniform | Integer
_MODELS: dict[str, type[Dimension]] = {
    "choice": Choice,
    "uniform": Uniform,
    "loguniform": LogUniform,
    "integer": Integer,
}


def choice(values: Sequence[Value], *, when: Mapping[str, Any] | None = None) -> Choice:
    """Return a dimension of several values."""
    return Choice(choice=_as_list(values), when=_as_table(when))


def uniform(
    low: float, high: float, *, step: float | None = None, when: Mapping[str, Any] | None = None
) -> Uniform:
    """Return a dimension of numbers; with `step` only those that many steps above `low`."""
    return Uniform(uniform=_floats([low, high]), step=step, when=_as_table(when))


def loguniform(low: float, high: float, *, when: Mapping[str, Any] | None = None) -> LogUniform:
    """Return a dimension of positive numbers whose logarithm is uniform."""
    return LogUniform(loguniform=_floats([low, high]), when=_as_table(when))


def integer(
    low: int, high: int, *, step: int = 1, log: bool = False, when: Mapping[str, Any] | None = None
) -> Integer:
    """Return a dimension of integers, both bounds included."""
    return Integer(integer=[low, high], step=step, log=log, when=_as_table(when))


def _as_list(given: Any) -> Any:
    """Return a sequence as a list; what is none is named as it is."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def _as_table(given: Any) -> Any:
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else given


def _floats(given: list[Any]) -> list[Any]:
    """Return integers as floats, which a strict model does not take for numbers."""
    return [float(value) if type(value) is int else value for value in given]


def dimension(given: Any) -> Any:
    """Return the dimension that a list or a table of a TOML file means; else what was given.

    Raises:
        ValueError: a table says not which kind it is.
    """
    if isinstance(given, list | tuple):
        return Choice.model_validate({"choice": list(given)})
    if not isinstance(given, Mapping):
        return given
    kinds = [kind for kind in KINDS if kind in given]
    if len(kinds) != 1:
        has = ", ".join(map(str, given)) or "nothing"
        raise ValueError(f"has {has}; allowed: a list, or a table with one of {', '.join(KINDS)}")
    table = dict(given)
    if kinds[0] in ("uniform", "loguniform") and isinstance(table[kinds[0]], list):
        table[kinds[0]] = _floats(table[kinds[0]])
    return _MODELS[kinds[0]].model_validate(table)


def is_among(value: Value, allowed: Value | Sequence[Value]) -> bool:
    """Whether a value is the one allowed, or one of those; True is not 1."""
    if isinstance(allowed, range):
        return type(value) is int and value in allowed
    among = allowed if isinstance(allowed, list) else [allowed]
    return any(type(value) is type(one) and value == one for one in among)


def check_finite(value: Value) -> None:
    """Return if a value can be said in every file and compared.

    Raises:
        ValueError: it is no finite number.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"holds {value}; allowed: finite numbers")


def check_hyperparameter(name: str) -> None:
    """Return if a hyperparameter may be called so.

    Raises:
        ValueError: it may not.
    """
    if name in COLUMNS or name.startswith(PREFIXES):
        raise ValueError(
            f"has '{name}', which is a column of the results; allowed: another name, not one of "
            f"{', '.join(COLUMNS)} or one that begins with {' or '.join(PREFIXES)}"
        )


def _check_order(kind: str, bounds: Sequence[float]) -> None:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{kind} = {list(bounds)}: the lower bound is above the upper one")


def _tidy(value: float) -> float:
    """Return 0.3 for 0.30000000000000004."""
    return float(f"{value:.12g}")


def in_order(space: Mapping[str, Dimension]) -> list[str]:
    """Return the names in order, but each after those that its condition asks for.

    Raises:
        ValueError: a condition is about what is not in the space, about a value that the other
            never has, or about itself, directly or in a circle.
    """
    for name, own in space.items():
        for parent, allowed in own.when.items():
            _check_condition(name, parent, allowed, space)
    ordered: list[str] = []
    left = list(space)
    while left:
        free = (name for name in left if all(parent in ordered for parent in space[name].when))
        following = next(free, None)
        if following is None:
            circle = ", ".join(left)
            raise ValueError(f"the conditions of {circle} depend on each other in a circle")
        ordered.append(following)
        left.remove(following)
    return ordered


def _check_condition(
    name: str, parent: str, allowed: Value | list[Value], space: Mapping[str, Dimension]
) -> None:
    if parent == name or parent not in space:
        others = ", ".join(other for other in space if other != name) or "none is there"
        raise ValueError(f"space.{name}.when names '{parent}'; allowed: another one ({others})")
    asked = allowed if isinstance(allowed, list) else [allowed]
    if not asked:
        raise ValueError(
            f"space.{name}.when gives no value of {parent}; allowed: one that it has, or a list of "
            f"such"
        )
    grid = space[parent].grid
    if grid is None:
        raise ValueError(
            f"space.{name}.when asks for {parent} = {allowed!r}, which is drawn between bounds and "
            f"never exactly that; allowed: one whose values can be counted (a choice, integers, or "
            f"a number with a step)"
        )
    for value in asked:
        if not is_among(value, grid):
            shown = ", ".join(map(repr, grid[:8])) + (", ..." if len(grid) > 8 else "")
            raise ValueError(
                f"space.{name}.when asks for {parent} = {value!r}, which it never is; it can be "
                f"{shown}"
            )


__all__ = [
    "KINDS",
    "Choice",
    "Dimension",
    "Integer",
    "LogUniform",
    "Name",
    "Uniform",
    "Value",
    "check_finite",
    "check_hyperparameter",
    "choice",
    "dimension",
    "in_order",
    "integer",
    "is_among",
    "loguniform",
    "uniform",
]
