"""Trackers are told of a run, and a run is never the slower or the poorer for one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
import tiny
from test_local_run import EQUAL, make_store, run
from tracked import (
    check_mlflow,
    check_tensorboard,
    check_wandb,
    mlflow_runs,
    need,
)

import mophpc
from mophpc.errors import ExperimentError
from mophpc.experiment import Objective, load_experiment
from mophpc.outputs import Track
from mophpc.report.trackers import feed
from mophpc.report.trackers.feed import Trackers, check_installed
from mophpc.run.rank0.telling import Telling
from mophpc.search.space import Config

KEEPS = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"
SLEEPS = "import time; time.sleep(1000)"
SLEEPS_AT_EXIT = "import atexit, sys, time; atexit.register(time.sleep, 1000); sys.stdin.read()"
RAISES = "import sys; sys.stdin.readline(); raise ValueError('no such project')"
CRASHES = "import os; os.kill(os.getpid(), 11)"
SOON_S = 2.0

ACCURACY = Objective(metric="accuracy", mode="max")


@pytest.fixture
def notes():
    return []


@pytest.fixture
def make(tmp_path, notes):
    def make(program: str, *arguments: str, **settings) -> Trackers:
        command = [sys.executable, "-c", program, *arguments]
        return Trackers({"fake": command}, tmp_path, notes.append, **{"wait_s": 30.0} | settings)

    return make


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_tracker_is_told_everything_in_order(tmp_path, make, notes):
    trackers = make(KEEPS, str(tmp_path / "said"))
    trackers.begin({"name": "run"}, {"fake": True})
    trackers.config(0, "c000", {"lr": 0.1, "arch": "cnn"})
    trackers.epoch(0, 0, {"accuracy": 0.5, "valid_loss": float("nan")})
    trackers.final(0, "done", 0.5)
    trackers.end("done", "c000")
    trackers.end("again")
    said = [json.loads(line) for line in (tmp_path / "said").read_text().splitlines()]
    assert said[0] == {"kind": "begin", "name": "run", "target": True}
    assert [
        (record["kind"], record["facts"]) for record in said[1:] if record["kind"] != "epoch"
    ] == [
        ("config", [0, "c000", {"lr": 0.1, "arch": "cnn"}]),
        ("final", [0, "done", 0.5]),
        ("end", ["done", "c000"]),
    ]
    assert notes == []


def test_one_that_raises_is_turned_off_with_one_word(make, notes):
    trackers = make(RAISES)
    trackers.begin({}, {"fake": True})
    wait_for(lambda: trackers.epoch(0, 0, {"accuracy": 0.5}) or notes)
    for epoch in range(5):
        trackers.epoch(0, epoch, {"accuracy": 0.5})
    trackers.end("done")
    assert len(notes) == 1
    assert notes[0].startswith(
        "note: fake has failed and is told nothing more: ValueError: no such project (see "
    )
    assert notes[0].endswith("tracker-fake.log)")


def test_one_that_crashes_or_cannot_be_started_ends_nothing_else(tmp_path, make, notes):
    trackers = make(CRASHES)
    trackers.begin({}, {"fake": True})
    trackers.end("done")
    missing = Trackers({"missing": [str(tmp_path / "none")]}, tmp_path, notes.append, wait_s=9.0)
    missing.end("done")
    assert "its process ended with status -11" in notes[0]
    assert "missing has failed and is told nothing more: FileNotFoundError" in notes[1]


@pytest.mark.parametrize("program", [SLEEPS, SLEEPS_AT_EXIT])
def test_one_that_blocks_delays_nobody(make, notes, program):
    trackers = make(program, most_waiting=50, wait_s=0.5)
    trackers.begin({}, {"fake": True})
    begin_s = time.monotonic()
    for epoch in range(20_000):
        trackers.epoch(0, epoch, {"accuracy": 0.5})
    assert time.monotonic() - begin_s < SOON_S
    process = trackers._feeds[0]._process
    begin_s = time.monotonic()
    trackers.end("done")
    assert time.monotonic() - begin_s < SOON_S
    assert process.poll() is not None
    assert len(notes) == 1
    assert notes[0].startswith("note: fake was slower than the run: ")
    assert re.search(r"; it was ended 0\.\d s after the run$", notes[0])
    if program == SLEEPS:
        dropped = int(notes[0].split(": ")[2].split()[0])
        assert 15_000 < dropped < 20_000


def test_one_that_is_slow_but_alive_is_waited_for(tmp_path, make, notes):
    slow = "import sys, time\nfor line in sys.stdin: time.sleep(1); print(line, flush=True)"
    trackers = make(slow, wait_s=4.0)
    for epoch in range(5):
        trackers.epoch(0, epoch, {"accuracy": 0.5})
    begin_s = time.monotonic()
    trackers.end("done")
    assert time.monotonic() - begin_s > 4.2
    assert notes == []


def test_one_that_gives_no_sign_has_the_time_that_was_asked_for(make, notes, monkeypatch):
    monkeypatch.setattr(feed, "ALONE_S", 0.2)
    trackers = make("import sys, time; sys.stdin.read(); time.sleep(1.5)", wait_s=30.0)
    trackers.epoch(0, 0, {"accuracy": 0.5})
    trackers.end("done")
    assert notes == []


@pytest.mark.parametrize("last", ['trackers.end("done")', "time.sleep(0.5)"])
def test_a_process_ends_though_its_tracker_does_not(tmp_path, last):
    script = f"""
import sys, time
from pathlib import Path
from mophpc.report.trackers.feed import Trackers
command = [sys.executable, "-c", {SLEEPS!r}]
trackers = Trackers({{"fake": command}}, Path({str(tmp_path)!r}), print, wait_s=0.5)
for epoch in range(5000):
    trackers.epoch(0, epoch, {{"accuracy": 0.5}})
{last}
print("ended", trackers._feeds[0]._process.pid)
"""
    begin_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert time.monotonic() - begin_s < 10
    assert done.stderr == ""
    said, pid = done.stdout.splitlines()[-1].split()
    assert said == "ended"
    with suppress(ProcessLookupError):  # one that is no host of ours does not look for rank 0
        os.kill(int(pid), signal.SIGKILL)


def test_the_process_of_a_rank_that_was_killed_ends_whatever_its_library_does(tmp_path):
    child = (
        "import os, threading, time; from mophpc.report.trackers import host; host.LAST_S = 0.1; "
        "threading.Thread(target=host.watch, args=(os.getppid(),), daemon=True).start(); "
        "print('up', flush=True); time.sleep(1000)"
    )
    script = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
print(child.pid, flush=True)
child.stdout.readline()
os.kill(os.getpid(), 9)
"""
    out = tmp_path / "out"
    with out.open("w") as file:
        subprocess.run([sys.executable, "-c", script], stdout=file, check=False, timeout=30)
    pid = int(out.read_text())
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


def test_a_run_that_fails_lets_its_trackers_end_by_themselves(tmp_path, make, notes):
    trackers = make(KEEPS, str(tmp_path / "said"))
    trackers.begin({}, {"fake": True})
    trackers.abandon()
    wait_for((tmp_path / "said").exists)
    wait_for(lambda: not trackers._feeds[0]._thread.is_alive())
    assert '"end"' not in (tmp_path / "said").read_text()
    assert notes == []


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


def test_all_have_what_the_journal_has(tmp_path, store):
    need("tensorboard", "mlflow", "wandb")
    space = {"lr": [0.01, 0.03, 1e30], "kind": ["a", "b"]}  # two diverge
    folder = tmp_path / "run"
    track = {"tensorboard": True, "mlflow": True, "wandb": {"project": "tried"}, "wait_s": 60.0}
    given = {"objective": ACCURACY, "space": space, "epochs": 3, **EQUAL}
    with_all = run(folder, store, 2, track=track, **given)
    check_tensorboard(folder, folder / "tensorboard")
    check_mlflow(folder, f"sqlite:///{folder / 'mlflow.db'}")
    check_wandb(folder, "tried")
    logs = sorted((folder / "logs").glob("tracker-*.log"))
    assert [log.read_text() for log in logs] == ["", "", ""]
    without = run(tmp_path / "without", store, 2, **given)
    assert with_all.configs == without.configs
    assert load_experiment(folder / "experiment.toml").track == Track(**track)


@pytest.mark.parametrize("method", ["halving", "population"])
def test_all_have_what_a_directed_run_found(tmp_path, store, method):
    need("tensorboard", "mlflow", "wandb")
    search = {"method": method, "configs": 4 if method == "population" else 9}
    track = {"tensorboard": True, "mlflow": True, "wandb": True, "wait_s": 60.0}
    space = {"lr": mophpc.loguniform(1e-3, 1e-1)}
    given = {"search": search, "space": space, "epochs": 4, "objective": ACCURACY}
    results = run(tmp_path / "run", store, 2, track=track, **given)
    if method == "halving":
        assert {row.status for row in results.configs} == {"done", "stopped"}
    check_tensorboard(tmp_path / "run", tmp_path / "run/tensorboard", changed=method != "halving")
    uri = f"sqlite:///{tmp_path / 'run/mlflow.db'}"
    check_mlflow(tmp_path / "run", uri, changed=method != "halving")
    check_wandb(tmp_path / "run", "mophpc", changed=method != "halving")


class Told:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def config(self, config_id, name, values) -> None:
        self.said.append(("config", config_id))

    def epoch(self, config_id, epoch, metrics) -> None:
        self.said.append(("epoch", config_id, epoch))

    def final(self, config_id, status, best) -> None:
        self.said.append(("final", config_id, status, best))


def test_the_end_of_a_config_is_told_once_after_its_last_epoch():
    told, configs = Told(), [Config(0, {}, "c000"), Config(1, {}, "c001")]
    telling = Telling(told, configs, num_shards=4)
    telling.epoch(0, 0, {})
    final = {"status": "done", "steps": 8}
    telling.final(0, final, {0: {}}, 0.5)  # the epoch that ended elsewhere is still on its way
    telling.epoch(0, 1, {})
    telling.final(0, final, {0: {}, 1: {}}, 0.6)
    telling.final(1, None, {}, None)
    configs.append(Config(2, {}, "c002"))
    telling.final(2, {"status": "diverged", "steps": 3}, {}, None)
    telling.final(1, {"status": "done", "steps": 8}, {}, None, at_last=True)
    telling.final(0, final, {0: {}, 1: {}}, 0.6, at_last=True)
    assert told.said == [
        ("config", 0),
        ("config", 1),
        ("epoch", 0, 0),
        ("epoch", 0, 1),
        ("final", 0, "done", 0.6),
        ("config", 2),
        ("final", 2, "diverged", None),
        ("final", 1, "done", None),
    ]


def test_several_runs_share_a_folder_and_a_data_base(tmp_path, store):
    need("tensorboard", "mlflow")
    uri = f"sqlite:///{tmp_path / 'all.db'}"
    for name in ("first", "second"):
        track = Track(tensorboard=str(tmp_path / "boards"), mlflow=uri, wait_s=60.0)
        run(tmp_path / name, store, 1, track=track, objective=ACCURACY, epochs=1)
        check_tensorboard(tmp_path / name, tmp_path / "boards" / name)
    assert {found.info.run_name for found in mlflow_runs(uri)} > {"first", "second"}
    assert len(mlflow_runs(uri)) == 2 * 5


def test_a_run_with_trackers_that_block_or_fail_is_like_any_other(
    tmp_path, store, monkeypatch, capfd
):
    need("mlflow")
    for name, program in (("blocks", SLEEPS), ("raises", RAISES)):
        monkeypatch.setattr(feed, "HOST", (sys.executable, "-c", program))
        data = mophpc.Data(store=str(store))
        experiment = mophpc.Experiment(
            build=f"{Path(__file__).parent}/tiny.py:build",
            data=data,
            epochs=2,
            seed=5,
            space={"lr": [0.01, 0.03]},
            track=Track(mlflow=True, wait_s=0.5),
        )
        results = mophpc.run_experiment(
            experiment, tmp_path / name, transport="local", ranks=2, progress="lines"
        )
        assert [row.status for row in results.configs] == ["done", "done"]
        said = capfd.readouterr().err
        assert said.count("note: mlflow ") == 1
    assert "note: mlflow has failed and is told nothing more: ValueError: no such project" in said


def test_a_run_that_fails_is_said_to_have_failed(tmp_path, store):
    need("mlflow")
    with pytest.raises(mophpc.errors.RunError):
        run(tmp_path / "run", store, 2, build=tiny.refuses_later, track=Track(mlflow=True))

    def status() -> list[str]:  # not by MLflow, which would make the data base itself
        try:
            with closing(sqlite3.connect(f"file:{tmp_path}/run/mlflow.db?mode=ro", uri=True)) as db:
                return [row[0] for row in db.execute("select status from runs")]
        except sqlite3.OperationalError:
            return []

    wait_for(lambda: status() == ["KILLED"] * 5)


def test_a_library_that_is_missing_is_a_mistake_before_the_run(tmp_path, store, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(feed, "find_spec", lambda name: None if name == "wandb" else real(name))
    said = (
        r"track.wandb needs wandb, which is not installed; install it with pip install "
        r"'mophpc\[wandb\]', or leave track.wandb out"
    )
    with pytest.raises(ExperimentError, match=said):
        run(tmp_path / "run", store, 2, track={"wandb": True})
    assert not (tmp_path / "run").exists()


def test_a_folder_called_like_a_library_is_none(tmp_path, monkeypatch):
    (tmp_path / "imaginary").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(feed.PACKAGES, "wandb", ("imaginary",))
    with pytest.raises(ExperimentError, match="needs imaginary"):
        check_installed(Track(wandb=True))


def test_settings_are_checked(tmp_path):
    common = {"build": "a:b", "data": "x.zarr", "epochs": 1, "space": {"lr": [1]}}
    for settings, said in (
        ({"tensorboard": 3}, "field 'track.tensorboard' is 3; allowed: true, false or a folder"),
        ({"mlflow": ""}, "field 'track.mlflow' is ''; allowed: true, false or a tracking URI"),
        ({"wandb": "x"}, "field 'track.wandb' is 'x'; allowed: true, false or a table"),
        ({"wandb": {"mode": "on"}}, "'track.wandb.mode' is 'on'; allowed: 'offline' or 'online'"),
        ({"neptune": True}, "unknown field 'track.neptune'; allowed here: tensorboard, mlflow"),
    ):
        with pytest.raises(ExperimentError, match=said):
            mophpc.Experiment(track=settings, **common)
    toml = tmp_path / "sub/x.toml"
    toml.parent.mkdir()
    toml.write_text(
        'build = "a.py:b"\nepochs = 1\ndata = "x.zarr"\nspace = {lr = [1]}\n'
        '[track]\ntensorboard = "boards"\nwandb = false\n'
    )
    track = load_experiment(toml).track
    assert track.tensorboard == str(tmp_path / "sub/boards")
    assert track.asked == ("tensorboard",)


def test_without_progress_one_that_fails_is_still_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(feed, "check_installed", lambda track: None)
    monkeypatch.setattr(feed, "HOST", (sys.executable, "-c", RAISES))
    monkeypatch.setattr("mophpc.run.rank0.claim.check_installed", lambda track: None)
    store = make_store(tmp_path, 2)
    run(tmp_path / "run", store, 2, track={"mlflow": "foo://bar"})
    err = capsys.readouterr().err
    assert err.count("note: mlflow has failed and is told nothing more: ") == 1
    assert "no such project" in err
