"""The typed settings of an experiment: the TOML file and the Python call mean the same."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mophpc.dimensions import (
    KINDS,
    Dimension,
    Name,
    Value,
    check_finite,
    check_hyperparameter,
    dimension,
    in_order,
)
from mophpc.errors import ExperimentError
from mophpc.fault_settings import Faults, Signals
from mophpc.loading import load_callable, reference_of, resolve, source_sha256
from mophpc.outputs import Checkpoints, Track
from mophpc.search_settings import Search, check_search, method_of, sampler_of
from mophpc.settings import Settings, explain

_DIMENSIONS = {model.__name__: model for model in get_args(Dimension)}

MEASURED, EQUAL = "measured", "equal"
"""Where costs come from, if not from a file."""


class Data(Settings):
    """Where the rows are."""

    store: str
    """Folder made by `mophpc prepare`; in a TOML file relative to that file."""
    memory_bytes: Annotated[int, Field(ge=1)] | None = None
    """A rank's budget for training rows; larger shards are streamed. None: all in memory."""
    stage: str | None = None
    """Node-local folder to which each rank first copies the shards that it owns."""

    @field_validator("store", "stage", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value


class Objective(Settings):
    """What the best config is."""

    metric: str = "valid_loss"
    """`valid_loss`, `train_loss` or a name in the Task's metrics."""
    mode: Literal["min", "max"] | None = None
    """Must be said for every metric but the two losses, for which it is `min`."""

    @model_validator(mode="after")
    def _explicit(self) -> Objective:
        if self.mode is None and self.metric not in {"valid_loss", "train_loss"}:
            raise ValueError(
                f'metric \'{self.metric}\' needs a mode: say mode = "max" or mode = "min"'
            )
        return self

    @property
    def maximise(self) -> bool:
        """Whether larger is better."""
        return self.mode == "max"


class Schedule(Settings):
    """How the visits are ordered."""

    policy: Literal["balanced", "random", "round-robin"] | None = None
    """None: `round-robin` where costs are told to be equal, else `balanced`."""
    costs: str = "measured"
    """`measured` (a pilot of a few batches per config, then every visit), `equal`, or a costs file,
    in a TOML file relative to that file."""
    renew: bool = True
    """Whether `balanced` plans the rest again as costs are measured."""
    lookahead: Annotated[int, Field(ge=1)] = 3
    """How many receives a rank posts ahead of the visits that need them."""

    @field_validator("costs", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @property
    def planner(self) -> str:
        """The policy that is meant."""
        return self.policy or ("round-robin" if self.costs == EQUAL else "balanced")

    @property
    def costs_file(self) -> Path | None:
        """The file that holds the costs, if there is one."""
        return None if self.costs in (EQUAL, MEASURED) else Path(self.costs)

    @property
    def is_renewed(self) -> bool:
        """Whether the plan may change while it runs."""
        return self.renew and self.planner == "balanced"


class Hop(Settings):
    """How states travel between ranks."""

    progress: Literal["thread", "between"] | None = None
    """Who lets them progress while a rank trains: only the training, between two minibatches, or a
    thread of its own too. None: a thread where the MPI allows it."""
    checksum: bool | None = None
    """Whether each state is checked when it has arrived. None: where that takes less than a
    hundredth of the visits' time, or nobody knows what they take."""


_Use = Literal["auto", "cpu", "cuda", "twin"]
DEVICES: tuple[str, ...] = get_args(_Use)


class Device(Settings):
    """What the ranks train on."""

    use: _Use = "auto"
    """`auto` is a GPU where there is one; `twin` stands in for one on the CPU, to try staging."""
    indices: list[Annotated[int, Field(ge=0, lt=1024)]] = Field(default_factory=list)
    """GPU of each rank of a host, by local rank, as in [0, 0, 1, 1]; empty: one after the other."""
    deterministic: bool = True
    """Whether a GPU may use only algorithms that give equal bytes each time."""
    memory_bytes: Annotated[int, Field(ge=0)] | None = None
    """A rank's budget on the device for rows, which stay there where they fit. None: half of what
    is free, shared with the other ranks that use the device."""
    buffers: Annotated[int, Field(ge=2, le=64)] = 3
    """States on the device at a time: the one that trains, the next one and the last one."""
    direct: bool = False
    """Whether states are sent from GPU memory, where a test proves that the MPI can, and hops have
    no checksum; else they are always staged through the host."""


class Experiment(Settings):
    """Everything that decides what a run computes."""

    build: str
    """`file.py:function` or `package.module:function`; from Python, the function itself."""
    data: Data
    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Torch threads per rank; part of the experiment, because sums in other orders round."""
    objective: Objective = Objective()
    schedule: Schedule = Schedule()
    hop: Hop = Hop()
    device: Device = Device()
    faults: Faults = Faults()
    search: Search = Search()
    checkpoints: Checkpoints = Checkpoints()
    signals: Signals = Signals()
    track: Track = Track()
    space: dict[Name, Dimension] = Field(default_factory=dict)
    """Hyperparameter to its values: a list, or one of `mophpc.choice`, `uniform`, `loguniform` and
    `integer`, which are tables in TOML."""
    configs: list[dict[Name, Value]] = Field(default_factory=list)
    """Explicit configs, instead of a space."""

    @field_validator("build", mode="before")
    @classmethod
    def _build(cls, value: Any) -> Any:
        return reference_of(value) if callable(value) else value

    @field_validator("data", mode="before")
    @classmethod
    def _store(cls, value: Any) -> Any:
        return Data(store=str(value)) if isinstance(value, str | Path) else value

    @field_validator("space", mode="before")
    @classmethod
    def _dimensions(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        _check_names(value, "space")
        return {name: _dimension(name, given) for name, given in value.items()}

    @field_validator("configs")
    @classmethod
    def _finite(cls, configs: list[dict[str, Value]]) -> list[dict[str, Value]]:
        for number, row in enumerate(configs):
            _check_names(row, f"configs.{number}")
            for name, value in row.items():
                try:
                    check_finite(value)
                except ValueError as error:
                    text = f"configs.{number}.{name} {error}"
                    raise PydanticCustomError("whole", "{text}", {"text": text}) from error
        return configs

    @field_serializer("space")
    def _tables(self, space: dict[str, Dimension]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, own in space.items():
            table = own.model_dump(exclude_defaults=True)
            found[name] = table["choice"] if list(table) == ["choice"] else table
        return found

    @property
    def method(self) -> str:
        """What decides on configs; `grid`, `random` or `list` where all make all epochs."""
        return method_of(self.search, has_list=bool(self.configs))

    @property
    def sampler(self) -> str:
        """Where configs come from: `grid`, `random`, `list`, or the name of an Optuna sampler."""
        return sampler_of(self.search, self.space, has_list=bool(self.configs))

    @model_validator(mode="after")
    def _something_to_try(self) -> Experiment:
        if self.space and self.configs:
            raise ValueError("give either a [space] or a list of [[configs]], not both")
        if not self.space and not self.configs:
            raise ValueError("there is nothing to try: give a [space] or a list of [[configs]]")
        check_search(
            self.search,
            self.space,
            self.epochs,
            has_list=bool(self.configs),
            threads=self.threads,
        )
        try:
            in_order(self.space)
        except ValueError as error:
            raise PydanticCustomError("whole", "{text}", {"text": str(error)}) from error
        return self

    def load_constraint(self) -> Callable[..., Any] | None:
        """Import the user's constraint, if there is one.

        Raises:
            ExperimentError: it is missing or cannot be imported.
        """
        constraint = self.search.constraint
        return None if constraint is None else load_callable(constraint)

    def load_build(self) -> Callable[..., Any]:
        """Import the user's `build`.

        Raises:
            ExperimentError: it is missing or cannot be imported.
        """
        return load_callable(self.build)

    def resolved(self, versions: Mapping[str, str]) -> dict[str, Any]:
        """Return what `experiment.toml` of a run folder holds, with the versions in use."""
        settings = self.model_dump(exclude_none=True, exclude_defaults=False)
        settings["build"] = resolve(self.build, Path.cwd())
        for key in ("store", "stage"):
            if key in settings["data"]:
                settings["data"][key] = str(Path(settings["data"][key]).resolve())
        if isinstance(self.track.tensorboard, str):
            settings["track"]["tensorboard"] = str(Path(self.track.tensorboard).resolve())
        if self.schedule.costs_file is not None:
            settings["schedule"]["costs"] = str(self.schedule.costs_file.resolve())
        for key in ("constraint", "method"):
            if key in settings["search"]:
                settings["search"][key] = resolve(settings["search"][key], Path.cwd())
        for empty in ("space", "configs"):
            if not settings[empty]:
                del settings[empty]
        source = source_sha256(self.load_build())
        return {
            **settings,
            "versions": dict(versions) | ({"build_sha256": source} if source else {}),
        }


def load_experiment(path: Path) -> Experiment:
    """Read an experiment's TOML file; paths in it are relative to it.

    Raises:
        ExperimentError: the file is missing, not TOML, or a field, key or type in it is wrong.
    """
    if not path.is_file():
        found = "is no file" if path.exists() else "does not exist"
        raise ExperimentError(f"experiment file '{path}' {found}; give a TOML file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ExperimentError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: not TOML: {error}") from error
    except (RecursionError, ValueError) as error:  # depths and numbers that nobody means
        raise ExperimentError(f"{path}: not TOML that can be read") from error
    raw.pop("versions", None)  # a run folder's experiment.toml can be run again
    _resolve_paths(raw, path.resolve().parent)
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise ExperimentError(f"{path}: {explain(error, Experiment)}") from error


def _resolve_paths(raw: dict[str, Any], base: Path) -> None:
    """Make the paths of a file absolute, which are relative to the folder `base`."""
    if isinstance(raw.get("build"), str):
        raw["build"] = resolve(raw["build"], base)
    if isinstance(raw.get("data"), str):
        raw["data"] = {"store": raw["data"]}
    data, search, schedule = (raw.get(key) for key in ("data", "search", "schedule"))
    track = raw.get("track")
    if isinstance(track, dict) and isinstance(track.get("tensorboard"), str):
        track["tensorboard"] = str((base / track["tensorboard"]).resolve())
    if isinstance(data, dict):
        for key in ("store", "stage"):
            if isinstance(data.get(key), str):
                data[key] = str((base / data[key]).resolve())
    if isinstance(search, dict):
        for key in ("constraint", "method"):
            if isinstance(search.get(key), str):
                search[key] = resolve(search[key], base)
    if isinstance(schedule, dict):
        costs = schedule.get("costs")
        if isinstance(costs, str) and costs not in (EQUAL, MEASURED):
            schedule["costs"] = str((base / costs).resolve())


def with_device(experiment: Experiment, use: str | None) -> Experiment:
    """Return the experiment with another kind of device; None changes none."""
    if use is None:
        return experiment
    device = experiment.device.model_copy(update={"use": use})
    return experiment.model_copy(update={"device": device})


def with_costs(experiment: Experiment, costs: str | None) -> Experiment:
    """Return the experiment with other costs: `measured`, `equal` or a file; None changes none."""
    if costs is None:
        return experiment
    schedule = experiment.schedule.model_copy(update={"costs": costs})
    return experiment.model_copy(update={"schedule": schedule})


def with_stage(experiment: Experiment, stage: Path | None) -> Experiment:
    """Return the experiment with another folder for copies of shards; None changes none."""
    if stage is None:
        return experiment
    data = experiment.data.model_copy(update={"stage": str(stage)})
    return experiment.model_copy(update={"data": data})


def _check_names(given: Mapping[Any, Any], place: str) -> None:
    """Return if hyperparameters may be called so.

    Raises:
        PydanticCustomError: one may not.
    """
    for name in given:
        try:
            check_hyperparameter(str(name))
        except ValueError as error:
            text = f"field '{place}' {error}"
            raise PydanticCustomError("whole", "{text}", {"text": text}) from error


def _dimension(name: str, given: Any) -> Any:
    """Return a dimension of the space.

    Raises:
        PydanticCustomError: it is wrong; says where, and what is allowed.
    """
    try:
        found = dimension(given)
        if isinstance(found, Dimension):
            return found
        text = (
            f"field 'space.{name}' is {given!r}; allowed: list of values, or a table with one of "
            f"{', '.join(KINDS)}"
        )
    except ValidationError as error:
        text = _under(
            f"space.{name}",
            explain(error, _DIMENSIONS[error.title]),
            is_list=isinstance(given, list),
        )
    except ValueError as error:
        text = f"space.{name} {error}"
    raise PydanticCustomError("whole", "{text}", {"text": text})


def _under(place: str, text: str, *, is_list: bool) -> str:
    """Return what is wrong with a dimension as what is wrong in the experiment."""
    if "field '" not in text:
        return f"{place} {text}"
    text = text.replace("field '", f"field '{place}.", 1)
    return text.replace(f"{place}.choice", place, 1) if is_list else text
