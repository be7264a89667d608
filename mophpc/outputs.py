"""Settings of what a run leaves behind: weights of its configs, and what trackers are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mophpc.settings import Settings

_MOST_MINUTES = 100_000


class Checkpoints(Settings):
    """Which weights of a config are kept."""

    keep: Annotated[int, Field(ge=0, le=100)] = 1
    """How many of its epochs, the best by the objective."""
    last: Literal["end", "epoch"] = "end"
    """When its newest weights are written: when it ends, or after every epoch too."""
    states: Literal["epoch", "off"] | Annotated[float, Field(gt=0.0, le=_MOST_MINUTES)] = "epoch"
    """When whole states are written, from which a run that was cut off goes on: after every epoch,
    never, or, as a number, when the config's last one is so many minutes old."""

    @field_validator("states", mode="before")
    @classmethod
    def _word_or_minutes(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value in ("epoch", "off") or (is_number and 0 < value <= _MOST_MINUTES):
            return value
        text = (
            f"field 'checkpoints.states' is {value!r}; allowed: 'epoch', 'off', or minutes above "
            f"0 and at most {_MOST_MINUTES}"
        )
        raise PydanticCustomError("whole", "{text}", {"text": text})


class Wandb(Settings):
    """How Weights & Biases is told."""

    project: Annotated[str, Field(min_length=1)] = "mophpc"
    entity: str | None = None
    """Whose project it is; None: as wandb finds it."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes into the run folder, for `wandb sync`."""


class Track(Settings):
    """Trackers that are told of configs, metrics and results; all offline unless told otherwise."""

    tensorboard: bool | str = False
    """Whether, or the folder in which the run gets a folder of its own; in a TOML file relative to
    that file. By default `tensorboard` in the run folder."""
    mlflow: bool | str = False
    """Whether, or a tracking URI. By default `mlflow.db`, an SQLite file, in the run folder."""
    wandb: Wandb | None = None
    """Whether (true or false), or a table."""
    wait_s: Annotated[float, Field(ge=0.0, le=3600.0)] = 5.0
    """How long a run that has ended waits for a tracker that gives no sign of life; for one that
    does, at least 15 s."""

    @field_validator("tensorboard", "mlflow", mode="before")
    @classmethod
    def _flag_or_text(cls, value: Any, info: Any) -> Any:
        value = str(value) if isinstance(value, Path) else value
        if isinstance(value, bool) or (isinstance(value, str) and value):
            return value
        what = "a folder" if info.field_name == "tensorboard" else "a tracking URI"
        text = f"field 'track.{info.field_name}' is {value!r}; allowed: true, false or {what}"
        raise PydanticCustomError("whole", "{text}", {"text": text})

    @field_validator("wandb", mode="before")
    @classmethod
    def _flag_or_table(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return Wandb() if value else None
        if value is None or isinstance(value, dict | Wandb):
            return value
        text = f"field 'track.wandb' is {value!r}; allowed: true, false or a table"
        raise PydanticCustomError("whole", "{text}", {"text": text})

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the trackers that are to be told."""
        return tuple(name for name in ("tensorboard", "mlflow", "wandb") if getattr(self, name))
