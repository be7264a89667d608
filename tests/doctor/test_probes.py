"""The probes themselves: where they can be tried, and where they fail."""

from __future__ import annotations

import time

import pytest

from mophpc.doctor.surroundings import ask_mpi_alone, attempt, surroundings
from mophpc.doctor.wire import Deadline, measure_wire
from mophpc.hop.aware import gpu_aware
from mophpc.hop.collectives import Group
from mophpc.launcher import launched_local_rank


def test_surroundings_of_a_rank(tmp_path):
    environ = {
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "SLURM_GPU_BIND": "closest",
        "PATH": "/bin",
    }
    facts = surroundings(environ, tmp_path)
    assert facts["rank"] == 3
    assert facts["local_rank"] == 1
    assert facts["launcher"] == {"name": "Open MPI", "ranks": 4}
    assert facts["environment"] == {"SLURM_GPU_BIND": "closest"}
    assert facts["cores"] >= 1
    assert facts["free_disk_bytes"] > 0
    assert "failed" not in facts


def test_a_probe_that_fails_says_why(tmp_path):
    facts = surroundings({}, tmp_path / "none")
    assert list(facts["failed"]) == ["free_disk_bytes"]
    assert facts["failed"]["free_disk_bytes"].startswith("FileNotFoundError: ")
    attempt(facts, "x", lambda: 1 // 0)
    assert facts["failed"]["x"].startswith("ZeroDivisionError")
    assert "x" not in facts


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MPI_LOCALRANKID": "2"}, 2),
        ({"PALS_LOCAL_RANKID": "1"}, 1),
        ({"SLURM_LOCALID": "0"}, 0),
        ({"SLURM_LOCALID": "x"}, None),
        ({}, None),
    ],
)
def test_the_local_rank_is_the_launcher_s(environ, expected):
    assert launched_local_rank(environ) == expected


def test_an_mpi_that_does_not_start_is_no_crash():
    with pytest.raises(RuntimeError, match=r"MPI ended with status \d+: "):
        ask_mpi_alone({"PYTHONHOME": "/none", "PATH": "/bin"})


def test_without_a_gpu_the_self_test_is_an_answer():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_aware(0, {"PATH": "/bin"}).startswith("no: the test ended with status ")


def test_a_deadline_ends_a_wait():
    Deadline(60.0)()
    check = Deadline(0.0)
    time.sleep(1e-3)
    with pytest.raises(TimeoutError, match="a rank did not answer within 0 s"):
        check()


@pytest.mark.mpi(min_size=2)
def test_what_lies_between_the_ranks(comm):
    from mophpc.hop.mpi import MpiTransport

    transport = MpiTransport(comm)
    found = measure_wire(transport, Group(transport, Deadline(60.0)))
    assert found["latency_s"] > 0.0
    assert found["bytes_per_s"] > 1e6
    assert found["memcpy_bytes_per_s"] > 1e6
    assert 0.0 <= found["hidden_alone"] <= 1.0
    assert 0.0 <= found["hidden"] <= 1.0
