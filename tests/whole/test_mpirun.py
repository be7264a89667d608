"""Whole runs under mpirun, as a user starts them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mpi_launch import end, is_open_mpi, launched, mpirun
from whole_testing import command, complaint, journal_is_whole

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
ENDS_WITHIN_S = 10.0
LAUNCH = Path(__file__).parents[2] / "launch"


def test_run_verify_and_the_local_twin(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    toml = write_experiment()
    done = mpirun(4, "mophpc", "run", toml, "--out", tmp_path / "run", "--costs", "equal")
    assert done.returncode == 0, done.stderr
    assert "run folder:" in done.stdout
    assert command(capsys, "verify", tmp_path / "run")[0] == 0
    local = ["--transport", "local", "--ranks", 4, "--progress", "off", "--costs", "equal"]
    assert command(capsys, "run", toml, "--out", tmp_path / "local", *local)[0] == 0
    same = [(tmp_path / run / "results.csv").read_bytes() for run in ("run", "local")]
    assert same[0] == same[1]


def test_a_run_from_measured_costs_is_verified_and_walked_again(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    toml = write_experiment(epochs="epochs = 6")
    done = mpirun(2, "mophpc", "run", toml, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "timed a few batches of each config" in done.stderr
    assert command(capsys, "verify", tmp_path / "run")[0] == 0
    again = ["--out", tmp_path / "again", "--replay", tmp_path / "run/plan.json"]
    done = mpirun(2, "mophpc", "run", toml, *again)
    assert done.returncode == 0, done.stderr
    same = [(tmp_path / run / "results.csv").read_bytes() for run in ("run", "again")]
    assert same[0] == same[1]
    known = ["--costs", tmp_path / "run/costs.json", "--out", tmp_path / "known"]
    done = mpirun(2, "mophpc", "run", toml, *known)
    assert done.returncode == 0, done.stderr
    assert "timed a few batches" not in done.stderr


def test_the_doctor_sees_all_ranks() -> None:
    done = mpirun(2, "mophpc", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    page = json.loads(done.stdout)
    assert [facts["rank"] for facts in page["ranks"]] == [0, 1]
    assert all(facts["wire"]["bytes_per_s"] > 0 for facts in page["ranks"])
    topics = {finding["topic"] for finding in page["findings"]}
    assert {"MPI", "threads", "versions", "host", "GPU", "disk", "hops", "overlap"} <= topics
    assert not any(finding["level"] == "problem" for finding in page["findings"])


def test_the_doctor_alone(capsys: Capture, tmp_path: Path) -> None:
    status, out, _ = command(capsys, "doctor")
    assert status == 0
    assert "no launcher: nothing between ranks was looked at" in out
    status, _, err = command(capsys, "doctor", tmp_path / "none.zarr")
    assert status == 2
    assert "none.zarr" in complaint(err)


def test_the_doctor_names_a_launcher_of_another_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "PMI_SIZE" if is_open_mpi() else "OMPI_COMM_WORLD_SIZE"
    monkeypatch.setenv(variable, "2")
    done = subprocess.run(
        [sys.executable, "-m", "mophpc", "doctor"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "problem  launcher" in done.stdout
    assert "the launcher is that of " in done.stdout


@pytest.mark.slow
def test_the_quickstart(tmp_path: Path, capsys: Capture) -> None:
    """The experiment that `launch/quickstart.sh` runs, at the same relative places."""
    shutil.copytree(LAUNCH / "experiments", tmp_path / "launch/experiments")
    store = tmp_path / "stores/digits.zarr"
    assert command(capsys, "prepare", "digits", store, "--shards", 4)[0] == 0
    toml = tmp_path / "launch/experiments/digits.toml"
    done = mpirun(4, "mophpc", "run", toml, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run/results.json").read_text())["configs"]
    assert len(rows) >= 8
    assert max(row["best"] for row in rows) >= 0.96
    assert command(capsys, "verify", tmp_path / "run", "--config", 0)[0] == 0


def test_prepare_in_parallel_gives_the_same_store(tmp_path: Path, capsys: Capture) -> None:
    done = mpirun(3, "mophpc", "prepare", "digits", tmp_path / "a.zarr", "--shards", "4")
    assert done.returncode == 0, done.stderr
    assert command(capsys, "prepare", "digits", tmp_path / "b.zarr", "--shards", 4)[0] == 0
    files = sorted(p.relative_to(tmp_path / "a.zarr") for p in (tmp_path / "a.zarr").rglob("*"))
    assert files == sorted(
        p.relative_to(tmp_path / "b.zarr") for p in (tmp_path / "b.zarr").rglob("*")
    )
    for file in files:
        if (tmp_path / "a.zarr" / file).is_file():
            pair = [(tmp_path / name / file).read_bytes() for name in ("a.zarr", "b.zarr")]
            assert pair[0] == pair[1], file


def test_a_mistake_is_said_once(write_experiment: Write, tmp_path: Path) -> None:
    done = mpirun(2, "mophpc", "run", write_experiment("raises"), "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "config c002-width=8,lr=0.01: build raised KeyError" in complaint(done.stderr)


def test_user_code_that_leaves_the_process_ends_all(
    write_experiment: Write, tmp_path: Path
) -> None:
    toml = write_experiment("exits_late")
    done = mpirun(2, "mophpc", "run", toml, "--out", tmp_path / "run")
    assert done.returncode != 0
    assert "epoch 1" in done.stderr
    assert "SystemExit" in done.stderr


def test_an_exception_on_one_rank_ends_all(write_experiment: Write, tmp_path: Path) -> None:
    process = launched(
        4, "mophpc", "run", write_experiment("fails_late"), "--out", tmp_path / "run"
    )
    try:
        _, err = process.communicate(timeout=120)
        ended = time.time()
    finally:
        end(process)
    assert process.returncode != 0
    said = complaint(err)
    assert "rank " in said
    assert " of 4 on " in said
    assert "config c003-width=8,lr=0.05, epoch 1, shard " in said
    assert "ValueError: a batch that user code does not like" in said
    failure = next((tmp_path / "run").glob("failure-rank-*.json"))
    assert ended - failure.stat().st_mtime < ENDS_WITHIN_S
    rank = failure.stem[-4:]
    log = (tmp_path / f"run/logs/rank-{rank}.log").read_text()
    assert "Traceback" in log
    assert "user_code.py" in log
    assert journal_is_whole(tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption(write_experiment: Write, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = launched(2, "mophpc", "run", write_experiment("slow"), "--out", run)
    try:
        _wait_for(lambda: (run / "metrics.jsonl").exists() and _visits(run) >= 2)
        start = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=60)
        assert time.monotonic() - start < ENDS_WITHIN_S
    finally:
        end(process)
    assert process.returncode != 0
    assert journal_is_whole(run)
    assert json.loads((run / "plan.json").read_text())["num_ranks"] == 2
    assert not (run / "results.json").exists()


def _visits(run: Path) -> int:
    return sum('"visit"' in file.read_text() for file in (run / "events").glob("*.jsonl"))


def _wait_for(ready: Callable[[], bool], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.05)


def test_a_script_under_mpirun(store: Path, tmp_path: Path) -> None:
    script = tmp_path / "tune.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import mophpc
from user_code import build

if __name__ == "__main__":
    experiment = mophpc.Experiment(
        build=build,
        data={str(store)!r},
        epochs=2,
        seed=3,
        objective=mophpc.Objective(metric="accuracy", mode="max"),
        space={{"width": [4, 8], "lr": [0.01, 0.05]}},
    )
    results = mophpc.run_experiment(experiment, {str(tmp_path / "run")!r})
    assert len(results.configs) == 4
"""
    )
    done = mpirun(2, "python", script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/results.csv").exists()


def test_a_device_of_its_own_memory_gives_the_same_results(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    toml = write_experiment()
    with toml.open("a") as file:
        file.write("[device]\ndirect = true\n[hop]\nchecksum = false\n")
    for device in ("cpu", "twin"):
        options = ["--out", tmp_path / device, "--costs", "equal", "--device", device]
        done = mpirun(4, "mophpc", "run", toml, *options)
        assert done.returncode == 0, done.stderr
        assert ("states are sent from device memory" in done.stderr) == (device == "twin")
    same = [(tmp_path / device / "results.csv").read_bytes() for device in ("cpu", "twin")]
    assert same[0] == same[1]
    assert command(capsys, "verify", tmp_path / "twin")[0] == 0
