"""Runs in which a method or people decide, under mpirun: verified, and walked again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpi_launch import end, launched, mpirun
from whole_testing import command

from mophpc.files import read_lines
from mophpc.status_file import read_status

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

Capture = pytest.CaptureFixture[str]

TOML = """
build = "{file}:{build}"
epochs = 4
seed = 3
[data]
store = "{store}"
[objective]
metric = "accuracy"
mode = "max"
[space]
width = [4]
lr = {{ loguniform = [1e-3, 1e-1] }}
[search]
{search}
"""

SEARCHES = {
    "hyperband": 'method = "hyperband"\nreduction = 2',
    "asha": 'method = "asha"\nconfigs = 8\nreduction = 2',
    "population": 'method = "population"\nconfigs = 6\ninterval = 1\nexplore = ["lr"]',
    "tpe": 'method = "tpe"\nconfigs = 5',
}


def write(folder: Path, store: Path, search: str, build: str = "build") -> Path:
    file = Path(__file__).parent / "user_code.py"
    path = folder / "experiment.toml"
    path.write_text(TOML.format(file=file, build=build, store=store, search=search))
    return path


def rows_of(run: Path) -> list[dict]:
    return json.loads((run / "results.json").read_text())["configs"]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", SEARCHES)
def test_verified_and_walked_again(
    capsys: Capture, store: Path, tmp_path: Path, name: str, ranks: int
) -> None:
    if name == "tpe":
        pytest.importorskip("optuna")
    toml, run = write(tmp_path, store, SEARCHES[name]), tmp_path / "run"
    done = mpirun(ranks, "mophpc", "run", toml, "--out", run)
    assert done.returncode == 0, done.stderr
    status, out, _ = command(capsys, "verify", run)
    assert status == 0, out
    if name == "population":
        assert any(row["lineage"] for row in rows_of(run))
    again = tmp_path / "again"
    done = mpirun(ranks, "mophpc", "run", toml, "--out", again, "--replay", run / "plan.json")
    assert done.returncode == 0, done.stderr
    assert rows_of(again) == rows_of(run)
    digests = [json.loads((folder / "plan.json").read_text())["digest"] for folder in (run, again)]
    assert digests[0] == digests[1]


def hops_after_copies(run: Path) -> int:
    """Count copies that were trained first on another rank than the one that made them."""
    plan = json.loads((run / "plan.json").read_text())
    ranks = {}
    for rank, own in enumerate(plan["visits_by_rank"]):
        for token in own:
            config, step = token.partition("e")[0][1:], token.rpartition("n")[2]
            ranks[int(config), int(step)] = rank
    forks = [tuple(fork) for fork in plan["forks"]]
    return sum(
        ranks[config, step] != ranks[config, step - 1]
        for config, step, _ in forks
        if (config, step - 1) in ranks
    )


def test_copies_lie_on_other_ranks_than_what_they_replace(store: Path, tmp_path: Path) -> None:
    search = SEARCHES["population"].replace("configs = 6", "configs = 8")
    toml = write(tmp_path, store, search)
    done = mpirun(4, "mophpc", "run", toml, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert hops_after_copies(tmp_path / "run") > 0


def wait_for(run: Path, configs: int, process: subprocess.Popen[str]) -> None:
    """Wait until the status of a run has visits and so many configs."""
    deadline_s = time.monotonic() + 180.0
    while not (
        (found := read_status(run / "status.json"))
        and found.visits
        and len(found.configs) >= configs
    ):
        assert time.monotonic() < deadline_s, "the run did not start"
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def mophpc(*words: object) -> str:
    arguments = [sys.executable, "-m", "mophpc", *map(str, words)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("search", ["", 'method = "asha"\nreduction = 2\n'])
def test_people(capsys: Capture, store: Path, tmp_path: Path, search: str) -> None:
    """Stop, clone and add through the command line while the run goes on."""
    toml, run = write(tmp_path, store, f"{search}configs = 3", "held"), tmp_path / "run"
    (hold := tmp_path / "hold").touch()  # three configs would have ended before Python starts
    process = launched(2, "mophpc", "run", toml, "--out", run, env={"HOLD": str(hold)})
    try:
        wait_for(run, 3, process)
        cloned = mophpc("clone", run, "2", "--set", "lr=0.005", "--fresh", "--epochs", 99)
        hold.unlink()
        added = mophpc("add", run, "--set", "lr=0.02", "--set", "width=4", "--epochs", 1)
        clone = cloned.partition("-")[0]
        wait_for(run, int(clone[1:]) + 1, process)
        stopped = mophpc("stop", run, clone)
        _, err = process.communicate(timeout=180)
    finally:
        end(process)
    assert process.returncode == 0, err
    assert "begins, to make 1 epochs" in added
    assert "begins, to make 99 epochs" in cloned
    assert stopped.startswith(clone)
    rows = rows_of(run)
    assert rows[int(clone[1:])]["epochs"] < 99
    assert sum(row["hyperparameters"] == {"width": 4, "lr": 0.02} for row in rows) == 1
    assert {note["kind"] for note in read_lines(run / "decisions.jsonl")} >= {"start", "stop"}
    status, out, _ = command(capsys, "verify", run)
    assert status == 0, out
