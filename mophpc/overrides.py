"""Hyperparameters that people set by hand, checked against what an experiment tries.

A value of a wrong type is refused. One that the experiment would never try is not: whoever sets it
has a reason; it is only noted. `search.constraint` is the user's code, and is not asked.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence

from mophpc.dimensions import (
    Choice,
    Dimension,
    Integer,
    LogUniform,
    Uniform,
    Value,
    in_order,
    is_among,
)
from mophpc.errors import RequestError
from mophpc.experiment import Experiment

_BARE_POINT = re.compile(r"[+-]?(\d+\.|\.\d+)([eE][+-]?\d+)?")
"""A number as people write it, but TOML does not."""
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_MOST_SHOWN = 8


def parse_settings(given: Sequence[str]) -> dict[str, Value]:
    """Return what the texts `NAME=VALUE` say; a value is one of TOML's, or else a string.

    Raises:
        RequestError: one is not of this form, or sets what another has set.
    """
    found: dict[str, Value] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise RequestError(f"--set is '{text}'; allowed: NAME=VALUE, as in --set lr=3e-4")
        if name in found:
            raise RequestError(f"--set gives '{name}' twice; leave one out")
        found[name] = _parse(name, value.strip())
    return found


def _parse(name: str, text: str) -> Value:
    try:
        table = tomllib.loads(f"value = {text}\n")
    except tomllib.TOMLDecodeError:
        return float(text) if _BARE_POINT.fullmatch(text) else text
    value = table["value"]
    if len(table) > 1 or not isinstance(value, bool | int | float | str | list | dict):
        return text  # lines of further settings, or a date
    if isinstance(value, list | dict):
        raise RequestError(
            f"--set {name} is a {'list' if isinstance(value, list) else 'table'}; allowed: a "
            f"boolean, a number or a string"
        )
    return value


def check_values(
    values: Mapping[str, Value], experiment: Experiment
) -> tuple[dict[str, Value], list[str]]:
    """Return the values in the types that the experiment has, and notes on what it never tries.

    Raises:
        RequestError: a name is unknown, or a value has a wrong type.
    """
    types = _types(experiment)
    found, notes = {}, []
    for name, value in values.items():
        if name not in types:
            raise RequestError(
                f"the run has no hyperparameter '{name}'; allowed: {_list(sorted(types))}"
            )
        found[name] = _typed(name, value, types[name])
        if name in experiment.space:
            note = _outside(found[name], experiment.space[name])
            notes += [f"{name} = {_shown(found[name])} {note}"] if note else []
    return found, notes


def cloned(
    original: Mapping[str, Value], changes: Mapping[str, Value], experiment: Experiment
) -> dict[str, Value]:
    """Return a config's hyperparameters with changes.

    What exists no more under the changed values is left out.

    Raises:
        RequestError: a change is unknown, of a wrong type or without effect, or asks for more.
    """
    changes, _ = check_values(changes, experiment)
    return _whole({**original, **changes}, changes, experiment)


def added(values: Mapping[str, Value], experiment: Experiment) -> dict[str, Value]:
    """Return the hyperparameters of a new config, all of which must be given.

    Raises:
        RequestError: one is unknown, of a wrong type or without effect, or is missing.
    """
    values, _ = check_values(values, experiment)
    return _whole(values, values, experiment)


def _whole(
    values: Mapping[str, Value], given: Mapping[str, Value], experiment: Experiment
) -> dict[str, Value]:
    space = experiment.space
    if not space:
        first, *others = ([*row] for row in experiment.configs)
        always = [name for name in first if all(name in other for other in others)]
        _none_missing([name for name in always if name not in values])
        return dict(values)
    found: dict[str, Value] = {}
    missing = []
    for name in in_order(space):
        if not space[name].exists(found):
            if name in given:
                conditions = ", ".join(f"{k} = {_shown(v)}" for k, v in space[name].when.items())
                raise RequestError(f"'{name}' has no effect here: it exists only with {conditions}")
        elif name in values:
            found[name] = values[name]
        else:
            missing.append(name)
    _none_missing(missing)
    return {name: found[name] for name in space if name in found}


def _none_missing(names: Sequence[str]) -> None:
    if names:
        which = " ".join(f"--set {name}=..." for name in names)
        raise RequestError(f"a value is missing for {_list(names)}; add {which}")


def _types(experiment: Experiment) -> dict[str, set[type]]:
    found: dict[str, set[type]] = {}
    for name, own in experiment.space.items():
        if isinstance(own, Choice):
            found[name] = {type(value) for value in own.choice}
        else:
            found[name] = {int} if isinstance(own, Integer) else {float}
    for row in experiment.configs:
        for name, value in row.items():
            found.setdefault(name, set()).add(type(value))
    return found


def _typed(name: str, value: Value, allowed: set[type]) -> Value:
    if type(value) is int and float in allowed and int not in allowed and abs(value) <= 2**53:
        value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) in allowed and finite:
        return value
    words = " or ".join(word for kind, word in _WORDS.items() if kind in allowed)
    is_word = allowed == {str}
    hint = f", as in --set {name}='\"{_shown(value, quotes=False)}\"'" if is_word else ""
    raise RequestError(f"{name} is {_shown(value)}; allowed: {words}{hint}")


def _outside(value: Value, own: Dimension) -> str:
    """Say how a value differs from all that the space has; empty where it does not."""
    grid = own.grid
    if grid is not None and is_among(value, grid):
        return ""
    if isinstance(own, Choice):
        return f"is none of those in the space: {_list([_shown(v) for v in own.choice])}"
    low, high = _bounds(own)
    if not (isinstance(value, int | float) and low <= value <= high):
        return f"is outside the space: {_shown(low)} to {_shown(high)}"
    return "is between the steps of the space" if grid is not None else ""


def _bounds(own: Uniform | LogUniform | Integer) -> tuple[float, float]:
    if isinstance(own, Integer):
        low, high = own.integer
        return low, high
    first, last = own.uniform if isinstance(own, Uniform) else own.loguniform
    return first, last


def _shown(value: Value | list[Value], *, quotes: bool = True) -> str:
    if isinstance(value, list):
        return " or ".join(_shown(one) for one in value)
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    text = text if len(text) <= 40 else f"{text[:39]}…"
    return repr(text) if quotes and isinstance(value, str) else text


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_SHOWN]) + (", ..." if len(names) > _MOST_SHOWN else "")
