"""Jobs whose processes are all killed, and go on with other numbers of ranks."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mpi_launch import end, launched, mpirun
from whole_testing import command

from mophpc.files import read_lines

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]


def kill_when(run: Path, toml: Path, ranks: int, epochs: int, *options: str) -> None:
    """Start a run, and kill mpirun and all ranks when so many epochs have ended."""
    job = launched(ranks, "mophpc", "run", toml, "--out", run, *options)
    try:
        until = time.monotonic() + 90.0
        while _epochs(run) < epochs:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        kill_all(job.pid)
        job.wait(30)
    finally:
        end(job)


def kill_all(pid: int) -> None:
    """Kill a process and all below it at once, as a machine that goes down does."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        os.kill(process.pid, signal.SIGSTOP)  # none may see another die
    for process in family:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(family[1:], timeout=30)


def _epochs(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("ranks", [(4, 3), (2, 3, 2)])
def test_a_job_that_is_killed_goes_on_with_other_ranks(
    capsys: pytest.CaptureFixture[str],
    write_experiment: Callable[..., Path],
    tmp_path: Path,
    ranks: tuple[int, ...],
) -> None:
    toml, run = write_experiment(build="unhurried", epochs="epochs = 4"), tmp_path / "run"
    for number, count in enumerate(ranks[:-1]):
        kill_when(run, toml, count, 4 + 5 * number, *(["--resume"] if number else []))
    done = mpirun(ranks[-1], "mophpc", "run", toml, "--out", run, "--resume")
    assert done.returncode == 0, done.stderr
    status, out, _ = command(capsys, "verify", run)
    assert status == 0, out
    results = json.loads((run / "results.json").read_text())["configs"]
    assert [row["status"] for row in results] == ["done"] * 4
    told = [(line["config_id"], line["epoch"]) for line in read_lines(run / "metrics.jsonl")]
    assert sorted(told) == [(config, epoch) for config in range(4) for epoch in range(4)]
    again = mpirun(2, "mophpc", "run", toml, "--out", run, "--resume")
    assert again.returncode == 0, again.stderr
    assert "has ended already" in again.stderr + again.stdout
