"""Values of a plan's JSON record, each of the kind that is expected."""

from __future__ import annotations

from typing import Any

from mophpc.errors import PlanError


def field(record: dict[str, Any], name: str, kind: type) -> Any:
    """Return a value.

    Raises:
        PlanError: there is none, or it is of another kind.
    """
    if name not in record:
        raise PlanError(f"the plan has no field {name!r}")
    return items([record[name]], name, kind)[0]


def lists(record: dict[str, Any], name: str, kind: type) -> list[list[Any]]:
    """Return a list of lists, all of one kind."""
    found = items(field(record, name, list), name, list)
    return [items(row, f"{name}[{index}]", kind) for index, row in enumerate(found)]


def rows(record: dict[str, Any], name: str, length: int) -> list[list[int]]:
    """Return lists of so many numbers each."""
    found = lists(record, name, int)
    if any(len(row) != length for row in found):
        raise PlanError(f"{name} has a row that is not of {length} numbers")
    return found


def items(values: list[Any], name: str, kind: type) -> list[Any]:
    """Return values that are all of one kind."""
    for value in values:
        # bool is an int for isinstance; a whole float may come back from JSON as an int.
        good = isinstance(value, (int, float) if kind is float else kind)
        if not good or isinstance(value, bool):
            raise PlanError(f"{name} holds {value!r}; expected {kind.__name__}")
    return [float(value) for value in values] if kind is float else values
