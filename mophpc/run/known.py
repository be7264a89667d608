"""What is asked of a run besides its experiment, and what rank 0 alone knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mophpc.run.rank0.searching import Searching
from mophpc.run.recovery.lock import Lock
from mophpc.run.recovery.resume import Resumption


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, besides the experiment."""

    replay: Path | None = None
    """The `plan.json` of an earlier run, to be walked again."""
    resume: bool = False
    """Whether the run that the folder holds goes on, if it holds one."""
    survive: bool = False
    """Whether the others go on when a rank dies."""
    is_recovery: bool = False
    """Whether one has died, and the others go on now."""


PLAIN = Wanted()
"""A new run, planned."""


@dataclass(slots=True)
class Known:
    """What rank 0 keeps to itself."""

    search: Searching = field(default_factory=Searching)
    resumption: Resumption | None = None
    """Of a run that goes on."""
    lock: Lock | None = None
    """Of the run folder."""
