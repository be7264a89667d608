"""Settings of how a run ends that cannot go on: signals, and ranks that hang."""

from __future__ import annotations

import signal
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from mophpc.settings import Settings

LEAST_SILENT_S = 3.0


class Faults(Settings):
    """When ranks are given up."""

    hang_s: Annotated[float, Field(ge=0.0, le=1e6)] = 600.0
    """A rank that has made no minibatch for so many seconds in a visit hangs, and ends the run; 0:
    no rank ever does. Of a config's first minibatch on a rank it may take three times as long."""

    silent_s: Annotated[float, Field(ge=0.0, le=1e6)] = 6.0
    """A host of which nothing was heard for so many seconds, by MPI nor in the run folder, is given
    up, and all ranks end; 0: no host ever is. Not where ranks survive: there MPI decides."""

    @field_validator("hang_s", "silent_s", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return 0.0 if value is False else value

    @field_validator("silent_s")
    @classmethod
    def _some_beats(cls, value: float) -> float:
        if 0.0 < value < LEAST_SILENT_S:
            text = (
                f"field 'faults.silent_s' is {value!r}; allowed: 0, or {LEAST_SILENT_S:g} and "
                f"more, since beats come every second"
            )
            raise PydanticCustomError("whole", "{text}", {"text": text})
        return value


_NEVER = {"SIGKILL", "SIGSTOP", "SIGCHLD", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT"}


class Signals(Settings):
    """How a run is asked to stop, besides SIGTERM and SIGINT, so that it can go on later."""

    also: list[str] = Field(default_factory=lambda: ["SIGUSR1"])
    """Further signals that mean it, as schedulers send them before a time limit."""
    limit_s: Annotated[float, Field(gt=0.0, le=86_400.0)] = 60.0
    """Seconds in which states must be on disk; then the run ends without the others."""

    @field_validator("also")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        found = []
        for name in names:
            full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
            if full in _NEVER or full not in signal.Signals.__members__:
                text = (
                    f"field 'signals.also' has '{name}'; allowed: signals that ask a program "
                    f"something, as USR1, USR2, HUP or ALRM"
                )
                raise PydanticCustomError("whole", "{text}", {"text": text})
            found.append(full)
        return found
