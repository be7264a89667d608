"""What a launcher's environment says."""

from __future__ import annotations

import pytest

from mophpc.launcher import launched_rank, launched_ranks


@pytest.mark.parametrize(
    ("environ", "ranks", "rank"),
    [
        ({}, None, 0),
        ({"PATH": "/bin", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, None, 0),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, (4, "Open MPI"), 3),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, (2, "MPICH"), 1),
        ({"PALS_NRANKS": "512", "PALS_RANKID": "511"}, (512, "PALS"), 511),
        ({"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "15"}, (16, "srun"), 15),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (1, "srun"), 0),
        (  # mpirun inside a batch step: what is nearest to the process counts
            {
                "SLURM_STEP_NUM_TASKS": "1",
                "SLURM_PROCID": "0",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_RANK": "2",
            },
            (4, "Open MPI"),
            2,
        ),
        ({"PMI_SIZE": "", "PMI_RANK": "x"}, None, 0),
        ({"PMI_SIZE": "²", "PMI_RANK": "²"}, None, 0),
    ],
)
def test_ranks_are_read_from_the_environment(environ, ranks, rank):
    assert launched_ranks(environ) == ranks
    assert launched_rank(environ) == rank
