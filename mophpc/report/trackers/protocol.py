"""What a tracker is told; one file per library fits it to that library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

WELL = ("done", "stopped")
"""Statuses of a config or run that ended well; a method or a person may stop a config."""


@dataclass(frozen=True, slots=True)
class About:
    """The run that is tracked."""

    folder: str
    """Of the run."""
    name: str
    """The folder's name."""
    metric: str
    """The objective."""
    mode: str
    """`min` or `max`."""
    experiment: Mapping[str, Any]
    """Settings by dotted name, without space and configs."""
    target: Any
    """What the experiment says of this tracker; True where it says no more than that."""


class Tracker(Protocol):
    """One library. It is called by one thread, in order, and may take its time."""

    def config(self, config_id: int, name: str, values: Mapping[str, Any], /) -> None:
        """A config with these hyperparameters is tried."""

    def epoch(self, config_id: int, epoch: int, metrics: Mapping[str, float], /) -> None:
        """A config has ended an epoch."""

    def final(self, config_id: int, status: str, best: float | None, /) -> None:
        """A config has ended; `best` is its best value of the objective."""

    def end(self, status: str, best: str | None, /) -> None:
        """The run has ended; `best` is the name of the best config."""
