"""What the commands share: options, and who speaks."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mophpc.errors import UserError
from mophpc.launcher import launched_rank, launched_ranks

if TYPE_CHECKING:
    from mophpc.hop.collectives import Group

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def check_one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Check an option that has a few words to choose from.

    Raises:
        UserError: it is another word.
    """
    if value not in allowed:
        raise UserError(f"{option} is '{value}'; allowed: {', '.join(allowed)}")


def group_of_ranks() -> Group | None:
    """Return the ranks that the launcher started, or None where this process is alone."""
    launched = launched_ranks(os.environ)
    if launched is None or launched[0] == 1:
        return None
    from mophpc.hop.collectives import Group
    from mophpc.hop.mpi import start_mpi

    return Group(start_mpi())


def is_root() -> bool:
    """Whether this process speaks for all."""
    mpi = sys.modules.get("mophpc.hop.mpi")
    leads: bool | None = None if mpi is None else mpi.leads()
    if leads is not None:  # rank 0 may have died
        return leads
    return launched_rank(os.environ) == 0


def end_others(status: int) -> None:
    """End ranks that would wait for this one for ever, MPI_Finalize included."""
    if "mophpc.hop.mpi" in sys.modules:
        from mophpc.hop.mpi import abort_unless_alone

        abort_unless_alone(status)
