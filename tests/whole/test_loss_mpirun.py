"""Ranks that are killed or hang, and messages that MPI cannot bring, under mpirun."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mpi_launch import is_open_mpi, mpirun
from whole_testing import command, journal_is_whole

from mophpc.run.faults.places import read_places

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
ENDS_WITHIN_S = 10.0
HERE = Path(__file__).parent


def failed_run(toml: Path, run: Path, ranks: int) -> tuple[str, int]:
    """Make a run that fails; return what it said, and which rank is to blame."""
    done = mpirun(ranks, "mophpc", "run", toml, "--out", run, "--costs", "equal")
    ended_s = time.time()
    assert done.returncode != 0
    (failure,) = run.glob("failure-rank-*.json")
    assert ended_s - failure.stat().st_mtime < ENDS_WITHIN_S
    assert all(where.is_gone for where in read_places(run))
    said = [line for line in done.stderr.splitlines() if "mophpc: " in line and "rank " in line]
    assert len(said) == 1, done.stderr
    rank = int(failure.stem[-4:])
    place = rf"rank {rank} of {ranks} on \S+, config c003-width=8,lr=0.05, epoch 1, shard \d: "
    assert re.search(place, said[0]), said
    assert journal_is_whole(run)
    return said[0], rank


def test_a_rank_that_is_killed_is_named(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said, rank = failed_run(write_experiment("is_killed"), run, 3)
    assert "it is lost: its process has ended without a word" in said
    if is_open_mpi():  # MPICH's launcher leaves the others no time
        for other in {0, 1, 2} - {rank}:
            log = (run / f"logs/rank-{other:04d}.log").read_text()
            assert f"rank {rank} of 3" in log
            assert "it is lost" in log
    status, out, _ = command(capsys, "status", run)
    assert status == 0
    assert out.startswith("failed after ")
    assert re.search(rf"rank {rank} of 3 on \S+, config c003-width=8,lr=0.05, epoch 1", out)
    # Where nobody was left to say it:
    next(run.glob("failure-rank-*.json")).unlink()
    record = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(record | {"state": "running"}))
    _, out, _ = command(capsys, "status", run)
    assert re.search(rf"gone without a word: rank {rank} of 3 on \S+, config c003-", out)


@pytest.mark.parametrize("how", ["sleeps", "sleeps_with_the_lock"])
def test_a_rank_that_hangs_is_named(write_experiment: Write, tmp_path: Path, how: str) -> None:
    toml = write_experiment(how)
    with toml.open("a") as file:
        file.write("[faults]\nhang_s = 3\n")
    run = tmp_path / "run"
    said, rank = failed_run(toml, run, 2)
    assert "it hangs: no minibatch for " in said
    assert f"it is in <lambda> ({HERE / 'user_code.py'}, line " in said
    log = (run / f"logs/rank-{rank:04d}.log").read_text()
    assert re.search(r'user_code.py", line \d+ in transform', log)
    assert "it hangs" in (run / f"logs/rank-{1 - rank:04d}.log").read_text()


def test_an_error_of_mpi_ends_all_and_names_the_peer(store: Path, tmp_path: Path) -> None:
    script = tmp_path / "tune.py"
    script.write_text(
        f"""
import os
import sys
sys.path.insert(0, {str(HERE)!r})
import mophpc
from mophpc.hop.mpi import MpiTransport
from mophpc.hop.transport import HOPS
from mophpc.launcher import launched_rank
from user_code import build

receive, count = MpiTransport.irecv, 0

def too_small(self, buffer, source, tag, channel):
    global count
    if channel == HOPS and launched_rank(os.environ) == 1:
        count += 1
        if count == 5:
            buffer = buffer[:1]
    return receive(self, buffer, source, tag, channel)

MpiTransport.irecv = too_small
if __name__ == "__main__":
    experiment = mophpc.Experiment(
        build=build,
        data={str(store)!r},
        epochs=3,
        schedule=mophpc.Schedule(costs="equal"),
        space={{"width": [4, 8], "lr": [0.01, 0.05]}},
    )
    mophpc.run_experiment(experiment, {str(tmp_path / "run")!r})
"""
    )
    done = mpirun(2, "python", script)
    assert done.returncode != 0
    said = next(line for line in done.stderr.splitlines() if "UnreachableError" in line)
    assert re.search(r"mophpc: rank 1 of 2 on \S+", said)
    assert re.search(r"MPI: .*, in a message from or to rank 0, last seen as rank 0 of 2 on", said)
