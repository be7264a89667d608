"""The errors of mophpc.

MophpcError                 everything that mophpc raises on purpose
├── UserError               exit status 2: what was given, what is allowed, how to fix it
│   ├── ExperimentError     the TOML file, the `Experiment`, or the user's `build`
│   ├── SourceError         the input of `mophpc prepare`
│   ├── StoreError          a dataset that is missing, foreign, half-written or damaged
│   ├── RunFolderError      a run folder that cannot be used
│   ├── RequestError        what is asked of a run that goes on
│   ├── CostsError          a costs file that cannot be read or lacks a config
│   ├── LaunchError         the launcher, the number of ranks, the MPI library
│   └── PictureError        a picture that cannot be drawn or written
├── PlanError               a schedule that breaks an invariant (a bug, or a plan edited by hand)
├── StateError              a config's state that cannot be carried or does not fit its layout
├── HopError                a message that is not what the plan promised
│   └── UnreachableError    MPI failed in a message from or to a rank
├── RunError                anything that failed inside a run, with the place where it did
│   └── LostError           another rank is lost, or hangs
│       └── CutOffError     a host cannot be reached
└── InterruptError          a signal asked the run to stop
"""

from __future__ import annotations

from dataclasses import dataclass


class MophpcError(Exception):
    """Base of every error that mophpc raises on purpose."""

    exit_status = 1
    agreed = False
    """Whether all ranks raise it, so that each may end on its own."""


class UserError(MophpcError):
    """A user's mistake; the message is one sentence that says how to fix it."""

    exit_status = 2


class ExperimentError(UserError, ValueError):
    """The experiment (TOML, `Experiment` or `build`) is not what it should be."""


class SourceError(UserError, ValueError):
    """The source given to `mophpc prepare` cannot be read."""


class StoreError(UserError, ValueError):
    """The dataset store is missing, foreign, half-written or damaged."""


class RunFolderError(UserError, ValueError):
    """The run folder cannot be used as asked."""


class RequestError(UserError, ValueError):
    """What is asked of a run that goes on cannot be done."""


class CostsError(UserError, ValueError):
    """The costs file cannot be read, or lacks a config."""


class LaunchError(UserError, RuntimeError):
    """The launcher, the number of ranks or the MPI library does not fit the run."""


class PictureError(UserError, ValueError):
    """A picture cannot be drawn as asked, or not be written."""


class PlanError(MophpcError, ValueError):
    """A plan breaks an invariant of the schedule."""


class StateError(MophpcError, ValueError):
    """A config's state cannot be carried from rank to rank, or does not fit its layout."""


class HopError(MophpcError, RuntimeError):
    """A message is not what the plan promised."""


class UnreachableError(HopError):
    """MPI failed in a message from or to another rank."""

    def __init__(self, text: str, peer: int = -1) -> None:
        super().__init__(text)
        self.peer = peer
        """Its rank; -1 where that is not known any more."""


class InterruptError(MophpcError):
    """A signal asked the run to stop, and it can go on later."""

    exit_status = 75
    """`EX_TEMPFAIL` of sysexits.h: who sees it may start the run again, with `--resume`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run something happened; unknown parts are None."""

    rank: int
    num_ranks: int
    host: str
    config: str | None = None
    epoch: int | None = None
    shard: int | None = None

    def __str__(self) -> str:
        parts = [f"rank {self.rank} of {self.num_ranks} on {self.host}"]
        if self.config is not None:
            parts.append(f"config {self.config}")
        if self.epoch is not None:
            parts.append(f"epoch {self.epoch}")
        if self.shard is not None:
            parts.append(f"shard {self.shard}")
        return ", ".join(parts)


class RunError(MophpcError, RuntimeError):
    """Something failed inside a run."""

    def __init__(self, place: Place, cause: str) -> None:
        super().__init__(f"{place}: {cause}")
        self.place = place
        self.cause = cause


class LostError(RunError):
    """A rank is lost, or hangs; `place` is that rank's, not that of who raises this."""


class CutOffError(LostError):
    """The host of another rank cannot be reached; what is sent to it may keep MPI from ending."""
