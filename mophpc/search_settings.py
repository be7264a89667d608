"""The settings of a search: how configs are made, and how long each of them goes on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mophpc.dimensions import Choice, Dimension, Name
from mophpc.loading import reference_of
from mophpc.settings import Settings

MOST_CONFIGS = 32_768
"""Each has a message tag of its own, and this is how many tags every MPI has."""

FIXED = ("grid", "random", "list")
"""Where configs come from that are all known before the first visit."""
RUNGS: tuple[str, ...] = ("halving", "hyperband", "asha")
METHODS = (*FIXED, *RUNGS, "population")
OPTUNA = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler",
}
"""Short names of Optuna's samplers."""

_CLASS = re.compile(r"[A-Z][A-Za-z0-9]*Sampler")
_REFERENCE = re.compile(r".+:[A-Za-z_][A-Za-z0-9_]*")
_SHOWN_SAMPLERS = (
    f"{', '.join(map(repr, OPTUNA))} or the name of another of Optuna's samplers, such as "
    f"'RandomSampler'"
)

_EPOCHS = {
    "patience": "1 or more: the epochs in a row that a config may make without a better score",
    "median": "1 or more: the epochs of grace that a config makes before it is compared with the "
    "others",
}
"""What numbers of epochs mean."""


def is_sampler(name: str) -> bool:
    """Whether a name means one of Optuna's samplers, if there is such a one."""
    return name in OPTUNA or _CLASS.fullmatch(name) is not None


def is_reference(name: str) -> bool:
    """Whether a method is a user's own."""
    return _REFERENCE.fullmatch(name) is not None


class Search(Settings):
    """How configs are made, and how long each of them goes on."""

    method: str | None = None
    """`grid` is every combination of the space, `random` draws from it, `list` is [[configs]]; an
    Optuna sampler (`tpe`, `gp`, `cmaes`, `qmc`, `nsgaii`, or the name of its class) learns from
    scores what to try. All of these train each config for all epochs. `halving`, `hyperband`,
    `asha` and `population` do not. `file.py:Name` or `package.module:Name` is one of your own; from
    Python, the class or function itself. None: `random` where `configs` is given, else `list` or
    `grid`."""
    sampler: str | None = None
    """Where `halving`, `hyperband`, `asha`, `population` and your own method take configs from:
    `grid`, `random`, `list` or an Optuna sampler. None: as for `method`."""
    configs: Annotated[int, Field(ge=1, le=MOST_CONFIGS)] | None = None
    """How many are drawn."""
    constraint: str | None = None
    """`file.py:function` or `package.module:function`, called with the hyperparameters of a config
    that is to be made; returns whether it may be. From Python, the function itself."""
    reduction: Annotated[int, Field(ge=2, le=1000)] = 3
    """`halving`, `hyperband`, `asha`: one of so many configs goes on to the next rung, where it
    makes so many times the epochs."""
    min_epochs: Annotated[int, Field(ge=1)] = 1
    """`halving`, `hyperband`, `asha`: epochs of the lowest rung."""
    interval: Annotated[int, Field(ge=1)] | None = None
    """`population`: epochs of a generation. None: a tenth of all, at least one."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """`population`: the share of configs that take another's place, and of those that lend it."""
    factors: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=lambda: [0.8, 1.2], min_length=1
    )
    """`population`: a hyperparameter that is explored is multiplied by one of these."""
    explore: list[Name] | None = None
    """`population`: the hyperparameters that change. None: all with numbers between bounds. Leave
    out what decides the shape of a model, since its state is to fit; a choice moves to the value
    before or behind."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """A config is stopped after so many epochs in a row without a better score."""
    median: Annotated[int, Field(ge=1)] | None = None
    """A config is stopped, after so many epochs at the earliest, when its best score is worse than
    the median of the others' means up to the same epoch."""
    in_flight: Annotated[int, Field(ge=1, le=MOST_CONFIGS)] | None = None
    """Configs in training at a time, where they come one after another. None: twice the ranks,
    and four times the ranks for `asha`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For your own method, as `brief.options`; for an Optuna sampler, its keyword arguments."""

    @field_validator("method", "constraint", mode="before")
    @classmethod
    def _reference(cls, value: Any, info: Any) -> Any:
        return reference_of(value, info.field_name) if callable(value) else value

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str | None) -> str | None:
        if value is None or value in METHODS or is_sampler(value) or is_reference(value):
            return value
        raise _not_allowed(
            "method",
            value,
            f"{', '.join(map(repr, METHODS))}, an Optuna sampler ({_SHOWN_SAMPLERS}), or your own "
            f"as file.py:Name or package.module:Name",
        )

    @field_validator("patience", "median", mode="before")
    @classmethod
    def _epochs(cls, value: Any, info: Any) -> Any:
        if value is None or (type(value) is int and value >= 1):
            return value
        raise _not_allowed(info.field_name, value, _EPOCHS[info.field_name])

    @field_validator("quantile", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        if type(value) in (int, float) and not 0 < value <= 0.5:  # as is nan
            raise _not_allowed("quantile", value, "0 < quantile <= 0.5")
        return value

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str | None) -> str | None:
        if value is None or value in FIXED or is_sampler(value):
            return value
        shown = ", ".join(map(repr, FIXED))
        raise _not_allowed("sampler", value, f"{shown}, or an Optuna sampler: {_SHOWN_SAMPLERS}")

    @field_validator("factors", mode="before")
    @classmethod
    def _floats(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return [float(v) if type(v) is int else v for v in value]

    @field_validator("options")
    @classmethod
    def _as_in_a_file(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, item in value.items():
            if not _fits_toml(item):
                text = (
                    f"field 'search.options.{key}' is {item!r}; allowed: booleans, integers, "
                    f"floats, strings, and lists and tables of these"
                )
                raise PydanticCustomError("whole", "{text}", {"text": text})
        return value


def method_of(search: Search, *, has_list: bool) -> str:
    """Return the method that is meant.

    Args:
        search: the settings.
        has_list: whether configs are listed.
    """
    if search.method is not None:
        return search.method
    drawn = "grid" if search.configs is None else "random"
    return "list" if has_list else drawn


def sampler_of(search: Search, space: Mapping[str, Dimension], *, has_list: bool) -> str:
    """Return where configs come from: `grid`, `random`, `list` or the name of an Optuna sampler."""
    method = method_of(search, has_list=has_list)
    if search.sampler is not None:
        return search.sampler
    if method in FIXED or is_sampler(method):
        return method
    if has_list:
        return "list"
    is_endless = is_reference(method) and combinations_of(space) is None
    draws = search.configs is not None or method == "hyperband" or is_endless
    return "random" if draws else "grid"


def check_search(
    search: Search,
    space: Mapping[str, Dimension],
    epochs: int,
    *,
    has_list: bool,
    threads: int = 1,
) -> None:
    """Check that settings fit each other.

    Args:
        search: the settings.
        space: of the experiment.
        epochs: of the experiment.
        has_list: whether configs are listed.
        threads: of torch on each rank.

    Raises:
        ValueError: they do not; says which, and what is allowed.
    """
    method = method_of(search, has_list=has_list)
    sampler = sampler_of(search, space, has_list=has_list)
    _check_source(search, method, sampler, space, has_list=has_list)
    _check_unused(search, method, sampler)
    _check_sampler(search, method, sampler, threads)
    if method in RUNGS and search.min_epochs * search.reduction > epochs:
        raise ValueError(
            f'search.method is "{method}", whose second rung is at search.min_epochs * '
            f"search.reduction = {search.min_epochs * search.reduction} epochs, but epochs is "
            f"{epochs}; give more epochs or lower one of the two"
        )
    if method == "population":
        _check_population(search, space, epochs)


def _check_source(
    search: Search,
    method: str,
    sampler: str,
    space: Mapping[str, Dimension],
    *,
    has_list: bool,
) -> None:
    is_plain = method in FIXED or is_sampler(method)
    if is_plain and search.sampler is not None:
        raise ValueError(
            f'search.method is "{method}", which takes no search.sampler; allowed with halving, '
            f"hyperband, asha, population and a method of your own"
        )
    subject = f'search.method is "{method}"' if is_plain else f'search.sampler is "{sampler}"'
    if sampler != "list" and not space:
        raise ValueError(f"{subject}, which needs a [space]")
    if sampler == "list" and not has_list:
        raise ValueError(f"{subject}, which needs [[configs]]")
    if method == "hyperband" and sampler in ("grid", "list"):
        raise ValueError(
            'search.method is "hyperband", which draws as many configs as its brackets hold; '
            'allowed for search.sampler: "random" or an Optuna sampler'
        )
    if method == "hyperband" and search.configs is not None:
        raise ValueError(
            'search.method is "hyperband", which takes no search.configs; how many it tries '
            "follows from epochs, search.min_epochs and search.reduction"
        )
    is_drawn = sampler not in ("grid", "list")
    if search.configs is not None and not is_drawn:
        raise ValueError(f"{subject}, which takes no search.configs")
    if search.configs is None and is_drawn and method != "hyperband" and not is_reference(method):
        raise ValueError(f"{subject}, which needs search.configs")
    if sampler == "list" and search.constraint is not None:
        raise ValueError("search.constraint is for a [space]; leave what it refuses out")
    if sampler == "grid":
        _check_grid(space)


def _check_unused(search: Search, method: str, sampler: str) -> None:
    """Refuse settings that would do nothing."""
    owners = dict.fromkeys(("reduction", "min_epochs"), RUNGS)
    owners |= dict.fromkeys(("interval", "quantile", "factors", "explore"), ("population",))
    for name, methods in owners.items():
        # Compared with the default, since a run folder's experiment.toml holds defaults too.
        default = Search.model_fields[name].get_default(call_default_factory=True)
        if getattr(search, name) != default and method not in methods:
            raise ValueError(
                f'search.{name} is for {", ".join(methods)}, and search.method is "{method}"'
            )
    is_plain = method in FIXED or is_sampler(method)
    for name in ("patience", "median"):
        if getattr(search, name) is not None and not is_plain:
            raise ValueError(
                f"search.{name} is for methods that train each config for all epochs (grid, "
                f'random, list and samplers), and search.method is "{method}"'
            )
    if search.in_flight is not None and (method in FIXED or method in _ALL_AT_ONCE):
        raise ValueError(
            f"search.in_flight is for methods whose configs come one after another (samplers, asha "
            f'and your own), and search.method is "{method}", whose configs all start at once'
        )
    if search.options and not is_reference(method) and not is_sampler(sampler):
        raise ValueError(
            f"search.options is for a method of your own or an Optuna sampler, and search.method "
            f'is "{method}"'
        )


def _check_sampler(search: Search, method: str, sampler: str, threads: int) -> None:
    if is_sampler(sampler) and not is_reference(method) and "seed" in search.options:
        raise ValueError(
            f"search.options has 'seed', but a sampler draws from the experiment's seed; say seed "
            f"= {search.options['seed']!r} at the top of the experiment instead"
        )
    if threads > 1 and OPTUNA.get(sampler, sampler) == OPTUNA["gp"]:
        setting = "method" if is_sampler(method) else "sampler"
        # Optuna's GPSampler, which thinks while rank 0 trains: threads are the whole process's.
        raise ValueError(
            f'search.{setting} is "{sampler}", which sets the number of torch\'s threads while it '
            f"thinks, and threads is {threads}; say threads = 1, or take another sampler"
        )


_ALL_AT_ONCE = ("halving", "hyperband", "population")


def _check_population(search: Search, space: Mapping[str, Dimension], epochs: int) -> None:
    if not space:
        raise ValueError('search.method is "population", which needs a [space] to explore')
    if interval_of(search, epochs) >= epochs:
        raise ValueError(
            f'search.method is "population", which compares configs every search.interval = '
            f"{interval_of(search, epochs)} epochs; epochs is {epochs}, and must be more"
        )
    if search.configs == 1:
        raise ValueError('search.method is "population", which needs search.configs of 2 or more')
    for name in search.explore or []:
        if name not in space:
            raise ValueError(
                f"search.explore names '{name}', which the space has not; it has {', '.join(space)}"
            )
    if not explored(search, space):
        raise ValueError(
            'search.method is "population", but no hyperparameter has numbers between bounds; '
            f"name choices that may change in search.explore ({', '.join(space)})"
        )


def interval_of(search: Search, epochs: int) -> int:
    """Return the epochs of a generation."""
    return max(1, epochs // 10) if search.interval is None else search.interval


def explored(search: Search, space: Mapping[str, Dimension]) -> list[str]:
    """Return the hyperparameters that a population explores."""
    if search.explore is not None:
        return list(search.explore)
    return [name for name, own in space.items() if not isinstance(own, Choice)]


def _check_grid(space: Mapping[str, Dimension]) -> None:
    for name, own in space.items():
        if size_of(own) is None:
            raise ValueError(
                f"space.{name} has values without number, of which there is no grid; say "
                f"search.configs = 20, to draw as many configs at random, or give it a list"
            )
    combinations = combinations_of(space) or 0
    if combinations > MOST_CONFIGS:
        raise ValueError(
            f"the space has {combinations} combinations; at most {MOST_CONFIGS} are allowed"
        )


def size_of(own: Dimension) -> int | None:
    """Return how many values a dimension has; None where they cannot be counted."""
    return None if own.grid is None else len(own.grid)


def combinations_of(space: Mapping[str, Dimension]) -> int | None:
    """Return how many combinations a space has at most; None where they cannot be counted."""
    sizes = [size_of(own) for own in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _not_allowed(field: str, given: str, allowed: str) -> PydanticCustomError:
    text = f"field 'search.{field}' is {given!r}; allowed: {allowed}"
    return PydanticCustomError("whole", "{text}", {"text": text})


def _fits_toml(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _fits_toml(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_fits_toml, value))
    return isinstance(value, bool | int | float | str)
