"""Configs from a space of values or from a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mophpc.experiment import Experiment, Value


@dataclass(frozen=True, slots=True)
class Config:
    """One candidate: a set of hyperparameters."""

    config_id: int
    """Index in the experiment, from 0."""
    values: Mapping[str, Value]
    name: str
    """Readable and unique, fit for a file name: `c003-arch=cnn,lr=0.1`."""

    def __str__(self) -> str:
        return self.name


def make_configs(experiment: Experiment) -> tuple[Config, ...]:
    """Return the experiment's configs: every combination of its space, or its list.

    The last hyperparameter of the space changes fastest.
    """
    if experiment.configs:
        rows: Sequence[Mapping[str, Value]] = experiment.configs
    else:
        names = list(experiment.space)
        rows = [dict(zip(names, row, strict=True)) for row in product(*experiment.space.values())]
    varied = _varied(rows)
    digits = max(3, len(str(len(rows) - 1)))
    return tuple(
        Config(i, dict(row), _name(i, digits, {k: row[k] for k in varied if k in row}))
        for i, row in enumerate(rows)
    )


def _varied(rows: Sequence[Mapping[str, Value]]) -> list[str]:
    """Return the hyperparameters in which the configs differ, in order of appearance."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    missing = object()
    return [n for n in names if any(row.get(n, missing) != rows[0].get(n, missing) for row in rows)]


def _name(index: int, digits: int, values: Mapping[str, Value]) -> str:
    text = ",".join(f"{key}={_short(value)}" for key, value in values.items())
    safe = "".join(c if (c.isascii() and c.isalnum()) or c in "=,.+-_" else "_" for c in text)[:80]
    return f"c{index:0{digits}d}" + (f"-{safe}" if safe else "")


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
