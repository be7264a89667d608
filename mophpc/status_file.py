"""The status file: how far a run is, as rank 0 writes it about once a second.

{"format": 1, "state": "running", "pid": 4711, "host": "n1",
 "started_at": "2026-11-24T14:55:01Z", "updated_at": "2026-11-24T15:07:32Z",
 "visits": 34, "planned_visits": 128, "left_s": 190.0,
 "objective": {"metric": "accuracy", "mode": "max"}, "best": 3,
 "configs": [{"config_id": 0, "config": "c000-lr=0.1", "status": "training", "epochs": 2,
              "hyperparameters": {"lr": 0.1}, "metrics": {"accuracy": 0.5}, "best": 0.5,
              "best_epoch": 1}]}
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mophpc.dimensions import Value
from mophpc.errors import RunFolderError
from mophpc.settings import explain

State: TypeAlias = Literal["running", "ended", "failed", "interrupted"]
Standing: TypeAlias = Literal[
    "waiting", "training", "paused", "done", "stopped", "diverged", "failed", "unfinished"
]
"""Of a config: it has not begun; it makes visits; it waits for what is decided on it; and how it
ended, or that the run ended before it did."""

_Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class ConfigStatus(_Part):
    """How far a config is."""

    config_id: _Count
    config: str
    """Its name."""
    status: Standing
    epochs: _Count
    """Whole epochs made."""
    hyperparameters: dict[str, Value] = {}
    metrics: dict[str, float | None] = {}
    """After the last whole epoch; None: not finite."""
    best: float | None = None
    """Best value of the objective."""
    best_epoch: int | None = None


class Aim(_Part):
    """The objective."""

    metric: str
    mode: Literal["min", "max"]


class Status(_Part):
    """How far a run is."""

    format: Literal[1] = 1
    """Version of this format."""
    state: State
    pid: _Count
    """Of rank 0's process."""
    host: str
    started_at: str
    updated_at: str
    """Times in UTC, as ISO 8601 has them."""
    visits: _Count
    planned_visits: _Count
    left_s: float | None = None
    """Seconds until the last visit ends, as planned now; None: not known."""
    objective: Aim
    best: int | None = None
    """config_id of the best config so far."""
    configs: list[ConfigStatus]
    """By config_id."""

    @property
    def names(self) -> list[str]:
        """The names of all configs, by id."""
        return [row.config for row in self.configs]

    @property
    def updated_s(self) -> float:
        """When it was written, in seconds since 1970."""
        return _seconds(self.updated_at)

    @property
    def running_s(self) -> float:
        """Seconds from the run's start to when this was written."""
        return max(0.0, self.updated_s - _seconds(self.started_at))


def clock_text(seconds: float) -> str:
    """Return a moment, in seconds since 1970, as the status file has it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def read_status(path: Path) -> Status | None:
    """Read a status file; None: there is none.

    Raises:
        RunFolderError: it is damaged, or of another version.
    """
    try:
        record: Any = json.loads(path.read_bytes())
        found = Status.model_validate(record)
        _ = found.running_s  # its times are times
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RunFolderError(f"'{path}' is damaged: {explain(error, Status)}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"'{path}' is damaged: {error}") from error
    return found
