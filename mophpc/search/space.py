"""Configs from a space or from a list."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mophpc.dimensions import Value
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment
from mophpc.search.draw import Constraint, draw, every_combination
from mophpc.search.halving import hyperband_sizes, make_rungs
from mophpc.search_settings import FIXED, is_reference

_NAME = re.compile(r"c\d{3,12}(?:-[A-Za-z0-9=,.+_-]{1,120})?")


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


def make_rows(experiment: Experiment) -> list[dict[str, Value]]:
    """Return the hyperparameters of each config: a grid, random draws, or the list as it is.

    Raises:
        ExperimentError: the constraint is wrong or leaves nothing, there are too few to draw, or
            they are not known before the first visit.
    """
    method, sampler = experiment.method, experiment.sampler
    if sampler not in FIXED or is_reference(method):
        raise ExperimentError(
            f'search.method is "{method}", whose configs come one after another while it runs, so '
            f'that none are known before; plan with search.method = "random" or "grid"'
        )
    return rows_of(experiment)


def rows_of(experiment: Experiment) -> list[dict[str, Value]]:
    """Return the hyperparameters that a grid, random draws or the list give, whatever the method.

    Raises:
        ExperimentError: the constraint is wrong or leaves nothing, or there are too few to draw.
    """
    if experiment.sampler == "list":
        return [dict(row) for row in experiment.configs]
    constraint = careful(experiment.load_constraint())
    if experiment.sampler == "random":
        count = num_configs(experiment) or 0
        return draw(experiment.space, count, experiment.seed, constraint, count_said(experiment))
    rows = list(every_combination(experiment.space, constraint))
    if not rows:
        raise ExperimentError(
            f"search.constraint '{experiment.search.constraint}' allows no combination of the "
            f"space; there is nothing to try"
        )
    return rows


def count_said(experiment: Experiment) -> str:
    """Return why so many configs are drawn, for messages."""
    count = num_configs(experiment)
    if experiment.method == "hyperband":
        return f'search.method is "hyperband", whose brackets hold {count} configs'
    return f"search.configs is {count}"


def num_configs(experiment: Experiment) -> int | None:
    """Return how many configs are drawn; None where that follows from the space or the list."""
    if experiment.method != "hyperband":
        return experiment.search.configs
    search = experiment.search
    rungs = make_rungs(search.min_epochs, search.reduction, experiment.epochs)
    return sum(hyperband_sizes(len(rungs), search.reduction))


def make_configs(
    experiment: Experiment, rows: Sequence[Mapping[str, Value]] | None = None
) -> tuple[Config, ...]:
    """Return the experiment's configs.

    Args:
        experiment: what is tried.
        rows: what `make_rows` returned, on whichever rank.
    """
    rows = make_rows(experiment) if rows is None else rows
    varied = _varied(rows)
    digits = max(3, len(str(len(rows) - 1)))
    return tuple(
        Config(i, dict(row), _name(i, digits, {k: row[k] for k in varied if k in row}))
        for i, row in enumerate(rows)
    )


def name_configs(
    experiment: Experiment,
    rows: Sequence[Mapping[str, Value]],
    is_open: bool,
    names: Sequence[str] | None = None,
) -> tuple[Config, ...]:
    """Return configs with these hyperparameters.

    Args:
        experiment: what is tried.
        rows: hyperparameters of each.
        is_open: whether others may follow, so that names cannot tell what differs alone.
        names: that they have already.
    """
    if is_open and names is not None:
        named = zip(names, rows, strict=True)
        return tuple(Config(index, dict(row), name) for index, (name, row) in enumerate(named))
    if not is_open:
        return make_configs(experiment, rows)
    return tuple(name_config(index, row) for index, row in enumerate(rows))


def name_config(index: int, values: Mapping[str, Value]) -> Config:
    """Return a config that may come after others; its name has all its hyperparameters."""
    return Config(index, dict(values), _name(index, 3, values))


def check_name(name: Any) -> None:
    """Return if a name, read from a file, may be one of a config: folders are called so.

    Raises:
        ValueError: it may not.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a config")


def careful(constraint: Callable[..., Any] | None) -> Constraint | None:
    """Return the user's constraint, with its mistakes as ours."""
    if constraint is None:
        return None

    def allows(row: dict[str, Value]) -> bool:
        try:
            found = constraint(row)
        except (Exception, SystemExit) as error:  # whatever the user's code does
            raise ExperimentError(
                f"search.constraint raised {type(error).__name__}: {error} for {row}"
            ) from error
        if not isinstance(found, bool | np.bool_):
            kind = type(found).__name__
            raise ExperimentError(f"search.constraint returned a {kind}; it must return a bool")
        return bool(found)

    return allows


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
