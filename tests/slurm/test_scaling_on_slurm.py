"""The benchmark of scaling as a job of a real Slurm, put back into the queue on its way."""

from __future__ import annotations

import csv
import os
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import ENVIRONMENT, Submitted
from mpi_launch import is_open_mpi

pytestmark = [pytest.mark.slurm, pytest.mark.launch, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


def submit_scaling(cluster: Cluster, folder: Path) -> Submitted:
    """Submit the smallest version of half of it."""
    words = ["--parsable", f"--chdir={ROOT}", f"--output={folder}/%x-%j.log"]
    mine = {"SCALING_FOLDER": str(folder), "SCALING_ROUNDS": "1", "MOPHPC_MPI": "openmpi"}
    mine["PATH"] = f"{Path(sys.executable).parent}:{cluster.environment['PATH']}"
    if not is_open_mpi():
        mine["MOPHPC_MPI"] = "mpich"
        mine["SCALING_LAUNCHER"] = "srun --mpi=pmi2 --ntasks={ranks} --kill-on-bad-exit=1"
    exported = ",".join(["ALL", *(f"{k}={v}" for k, v in {**ENVIRONMENT, **mine}.items())])
    script = str(ROOT / "slurm/scaling.sbatch")
    job = cluster.command(
        "sbatch", f"--export={exported}", *words, script, "--smoke", "--part", "weak"
    )
    return Submitted(cluster, job.strip(), folder)


def points(folder: Path) -> list[dict[str, str]]:
    """Return the lines of the CSV that were measured."""
    file = folder / "scaling.csv"
    if not file.exists():
        return []
    rows = csv.DictReader(file.read_text().splitlines())
    return [row for row in rows if row["makespan_s"]]


def test_it_is_put_back_and_goes_on_where_it_was(cluster, tmp_path):
    submitted = submit_scaling(cluster, tmp_path)
    limit = time.monotonic() + 180.0
    while len(points(tmp_path)) < 1:
        facts = submitted.facts()
        assert facts["JobState"] in ("PENDING", "CONFIGURING", "RUNNING"), submitted.log
        assert time.monotonic() < limit, f"{facts}\n{submitted.log}"
        time.sleep(0.1)
    cluster.command("scancel", "--batch", "--signal=USR1", submitted.job)
    submitted.start_again()
    before = points(tmp_path)
    facts = submitted.wait_for("COMPLETED", "FAILED", restarts=1, timeout=300.0)
    assert facts["ExitCode"] in ("0:0", "1:0"), submitted.log  # 1: a target was missed
    assert submitted.log.count("goes back into the queue") == 1
    assert "| weak, training, 4 ranks: simulator / measured |" in submitted.log
    found = points(tmp_path)
    assert [(row["kind"], row["ranks"]) for row in found] == [
        ("training", "1"),
        ("training", "2"),
        ("training", "4"),
    ]
    assert [row["makespan_s"] for row in found[: len(before)]] == [
        row["makespan_s"] for row in before
    ]
    assert len(before) < len(found)
    assert (tmp_path / "scaling.png").stat().st_size > 5000
    assert not os.path.exists(tmp_path / "scaling.csv.part")
