"""Runs under mpirun that are asked to stop by a signal, and go on afterwards."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from mpi_launch import end, launched, mpirun
from whole_testing import command, journal_is_whole

from mophpc.files import read_lines
from mophpc.run.faults.places import read_places

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
ENDS_WITHIN_S = 25.0


@pytest.mark.parametrize(
    ("whom", "number", "ranks", "then"),
    [("mpirun", signal.SIGUSR1, 3, 2), ("a rank", signal.SIGTERM, 2, 3)],
)
def test_a_signal_stops_all_and_the_run_goes_on(
    capsys: Capture, write_experiment: Write, tmp_path: Path, whom: str, number: int, ranks: int,
    then: int,
) -> None:  # fmt: skip
    toml, run = write_experiment("unhurried", epochs="epochs = 4"), tmp_path / "run"
    options = ["mophpc", "run", toml, "--out", run, "--progress", "off"]
    process = launched(ranks, *options)
    try:
        deadline_s = time.monotonic() + 180.0
        while not (run / "metrics.jsonl").exists() or not read_lines(run / "metrics.jsonl"):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        last = max(read_places(run), key=lambda where: where.rank)
        os.kill(process.pid if whom == "mpirun" else last.pid, number)
        _, err = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        end(process)
    assert process.returncode == 75, err
    assert f"mophpc: interrupted by {signal.Signals(number).name} on rank" in err
    assert all(where.is_gone for where in read_places(run))
    assert journal_is_whole(run)
    assert not (run / "results.json").exists()
    made = visits(run)
    done = mpirun(then, *options, "--resume")
    assert done.returncode == 0, done.stderr
    rows = json.loads((run / "results.json").read_text())["configs"]
    assert [row["status"] for row in rows] == ["done"] * 4
    assert len(visits(run)) == len(set(visits(run))) == 4 * 4 * 4 > len(made)
    assert command(capsys, "verify", run)[0] == 0


def test_a_signal_after_the_end_changes_nothing(write_experiment: Write, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launched(2, "mophpc", "run", write_experiment(), "--out", run, "--progress", "off")
    try:
        deadline_s = time.monotonic() + 180.0
        while not (run / "results.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.002)
        while process.poll() is None:
            for where in read_places(run):
                with suppress(ProcessLookupError):
                    if not where.is_gone:
                        os.kill(where.pid, signal.SIGTERM)
            time.sleep(0.005)
        out, err = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        end(process)
    assert process.returncode == 0, err
    assert "run folder: " in out


def visits(run: Path) -> list[tuple[int, int]]:
    """Return (config, step) of all whole visits, as often as they were made."""
    return [
        (event["config"], event["step"])
        for path in (run / "events").iterdir()
        for event in read_lines(path)
        if event["kind"] == "visit"
    ]
