"""Ranks that go on without those that were killed, under mpirun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mpi_launch
import psutil
import pytest
from mpi_launch import end, is_open_mpi, launched, mpirun
from whole_testing import command, complaint, journal_is_whole, rank_process

from mophpc.run.faults.places import read_place, read_places

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
needs_ulfm = pytest.mark.skipif(
    not is_open_mpi(), reason="MPICH's launcher ends all ranks when one dies"
)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed_run(
    patch: pytest.MonkeyPatch, toml: Path, run: Path, ranks: int, deaths: Sequence[tuple[int, int]]
) -> str:
    """Run; kill a rank (as it is numbered then) after so many ends of epochs, one after another."""
    process = launched_with_ulfm(patch, ranks, toml, run)
    try:
        left = ranks
        for after, rank in deaths:
            deadline_s = time.monotonic() + 180.0
            while lines(run / "metrics.jsonl") < after or not is_there(run, rank, left):
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
            where = read_place(run, rank)
            assert where is not None
            os.kill(where.pid, signal.SIGKILL)
            left -= 1
        out, err = process.communicate(timeout=180.0)
    finally:
        end(process)
    assert process.returncode == 0, err
    assert all(where.is_gone for where in read_places(run))
    assert "run folder: " in out
    return err


def launched_with_ulfm(
    patch: pytest.MonkeyPatch, ranks: int, toml: Path, run: Path
) -> subprocess.Popen[str]:
    """Start a run that is to survive."""
    real = mpi_launch.mpirun_command

    def with_ulfm(*given: object) -> list[str]:
        first, *rest = real(*given)  # type: ignore[arg-type]
        return [first, "--with-ft", "ulfm", *rest]

    patch.setattr(mpi_launch, "mpirun_command", with_ulfm)
    options = ["--out", run, "--survive", "--progress", "off"]
    return launched(ranks, "mophpc", "run", toml, *options)


def is_there(run: Path, rank: int, num_ranks: int) -> bool:
    """Whether a rank of so many has begun."""
    where = read_place(run, rank)
    return where is not None and where.num_ranks == num_ranks and not where.is_gone


GONE = {1: "2", 2: "0, 1"}
"""Ranks that are lost in the end, by their numbers at the launch, by how many deaths there were."""


@needs_ulfm
@pytest.mark.parametrize(
    ("ranks", "deaths"),
    [(4, [(2, 2)]), (3, [(2, 0), (6, 0)])],
    ids=["one", "rank 0, and again, down to one"],
)
def test_ranks_go_on_without_one_that_was_killed(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, write_experiment: Write, tmp_path: Path,
    ranks: int, deaths: list[tuple[int, int]],
) -> None:  # fmt: skip
    toml, run = write_experiment("unhurried", epochs="epochs = 4"), tmp_path / "run"
    err = killed_run(monkeypatch, toml, run, ranks, deaths)
    said = re.findall(r"mophpc: rank \d of (\d).*?(\d) go on, connected in", err)
    assert said == [(str(ranks - i), str(ranks - i - 1)) for i in range(len(deaths))], err
    assert re.search(rf"without {GONE[len(deaths)]} of the {ranks} that were launched", err), err
    rows = json.loads((run / "results.json").read_text())["configs"]
    assert [row["status"] for row in rows] == ["done"] * 4
    assert [row["epochs"] for row in rows] == [4] * 4
    assert journal_is_whole(run)
    assert not list((run / "states").glob("*/*"))
    assert command(capsys, "verify", run)[0] == 0
    assert command(capsys, "status", run)[1].startswith("ended")


@needs_ulfm
@pytest.mark.parametrize("beside", [True, False], ids=["later", "at once"])
def test_a_rank_that_dies_before_all_have_met_ends_all(
    monkeypatch: pytest.MonkeyPatch, write_experiment: Write, tmp_path: Path, *, beside: bool
) -> None:
    process = launched_with_ulfm(monkeypatch, 3, write_experiment(), tmp_path / "run")
    try:
        top = psutil.Process(process.pid)
        while (found := rank_process([p.pid for p in top.children()], 1, beside=beside)) is None:
            assert process.poll() is None
            time.sleep(0.002)
        found.kill()
        _, err = process.communicate(timeout=60.0)
    finally:
        end(process)
    assert process.returncode not in (0, 2), err
    who = "rank 1" if beside else "1 of the 3 ranks"
    said = [line for line in err.splitlines() if line.startswith("mophpc: ")]
    assert [line.partition(" on ")[0] for line in said] == [f"mophpc: {who}"], err
    assert "ended before all 3 ranks had met" in said[0]
    assert not (tmp_path / "run").exists()


def test_survival_needs_an_mpi_that_allows_it(write_experiment: Write, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = mpirun(2, "mophpc", "run", write_experiment(), "--out", run, "--survive")
    assert done.returncode == 2, done.stderr
    assert "'mpirun --with-ft ulfm'" in complaint(done.stderr)
    assert not run.exists()
