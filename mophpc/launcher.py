"""What the launcher's environment says; pure functions of a mapping."""

from __future__ import annotations

from collections.abc import Mapping

OPEN_MPI, HYDRA = "Open MPI", "MPICH"

FT_ENABLED = "OMPI_MCA_mpi_ft_enable"
"""Set to 1 by Open MPI's mpirun --with-ft ulfm."""

_SIZE_VARIABLES = (
    ("OMPI_COMM_WORLD_SIZE", OPEN_MPI),
    ("PMI_SIZE", HYDRA),  # MPICH and what is made from it: Intel, Cray
    ("PALS_NRANKS", "PALS"),
    ("SLURM_STEP_NUM_TASKS", "srun"),
)


def launched_ranks(environ: Mapping[str, str]) -> tuple[int, str] | None:
    """Return how many processes the launcher started and the launcher's name, or None.

    A Slurm batch step sets `SLURM_STEP_NUM_TASKS` to 1, which is right: it runs one process.
    """
    for variable, launcher in _SIZE_VARIABLES:
        value = environ.get(variable, "")
        if value.isascii() and value.isdigit():
            return int(value), launcher
    return None


_LOCAL_RANK_VARIABLES = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "PMI_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "SLURM_LOCALID",
)


def launched_local_rank(environ: Mapping[str, str]) -> int | None:
    """Return this process's number among those of its host, as the launcher tells it, or None."""
    for variable in _LOCAL_RANK_VARIABLES:
        value = environ.get(variable, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return None


_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "SLURM_PROCID")


def launched_rank(environ: Mapping[str, str]) -> int:
    """Return this process's rank as the launcher tells it; 0 without a launcher.

    It decides only who speaks, before and after MPI is there.
    """
    for variable in _RANK_VARIABLES:
        value = environ.get(variable, "")
        if value.isascii() and value.isdigit():
            return int(value)
    return 0
