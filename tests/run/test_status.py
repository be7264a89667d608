"""How far a run is, as rank 0 writes it."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import replace

import cutting
import pytest
import tiny
from cutting import Cut
from test_local_run import make_store, run

import mophpc
from mophpc.errors import RunError, RunFolderError
from mophpc.run.rank0 import status
from mophpc.run.rank0.status import Progress, Row, StatusFile
from mophpc.status_file import clock_text, read_status

ROW = Row(0, "c000-lr=0.1", "training", 2, {"lr": 0.1}, {"valid_loss": 0.5}, 0.25, 1)
PROGRESS = Progress(3, 8, 1.5, {"metric": "valid_loss", "mode": "min"}, 0, (ROW,))


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(status.time, "monotonic", lambda: self.now_s)


def settled(file: StatusFile) -> None:
    if file._thread is not None:
        file._thread.join()


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "status.json"
    assert read_status(path) is None
    before = int(time.time())
    file = StatusFile(path, lambda: PROGRESS)
    file.update()
    settled(file)
    found = read_status(path)
    assert (found.state, found.pid, found.host) == ("running", os.getpid(), socket.gethostname())
    assert (found.visits, found.planned_visits, found.left_s, found.best) == (3, 8, 1.5, 0)
    assert (found.objective.metric, found.objective.mode) == ("valid_loss", "min")
    assert before <= found.updated_s <= time.time()
    assert found.running_s >= 0.0
    (row,) = found.configs
    assert row.model_dump() == {
        "config_id": 0,
        "config": "c000-lr=0.1",
        "status": "training",
        "epochs": 2,
        "hyperparameters": {"lr": 0.1},
        "metrics": {"valid_loss": 0.5},
        "best": 0.25,
        "best_epoch": 1,
    }
    file.end("ended")
    assert read_status(path).state == "ended"


def test_what_is_not_finite_is_null(tmp_path):
    row = replace(ROW, metrics={"valid_loss": float("nan")}, best=float("inf"))
    StatusFile(tmp_path / "status.json", lambda: replace(PROGRESS, configs=[row])).end("failed")
    found = read_status(tmp_path / "status.json")
    assert found.configs[0].metrics == {"valid_loss": None}
    assert found.configs[0].best is None


def test_news_are_written_once_a_second_and_signs_of_life_without(tmp_path, monkeypatch):
    clock, looks = Clock(monkeypatch), []
    monkeypatch.setattr(status.time, "thread_time", lambda: 0.0)
    monkeypatch.setattr(status.time, "perf_counter", lambda: 0.0)

    def look() -> Progress:
        looks.append(clock.now_s - 1000.0)
        return PROGRESS

    file = StatusFile(tmp_path / "status.json", look)
    for tenth in range(150):
        clock.now_s = 1000.0 + tenth / 10
        if tenth in (0, 1, 2, 15, 16, 17):
            file.update()
        else:
            file.beat()
        settled(file)
    assert looks == [0.0, 1.0, 2.0, 7.0, 12.0]


def test_a_large_status_is_written_less_often(tmp_path, monkeypatch):
    clock, looks = Clock(monkeypatch), []
    ticks = iter(range(1000))
    monkeypatch.setattr(status.time, "perf_counter", lambda: 0.1 * next(ticks))

    def look() -> Progress:
        looks.append(clock.now_s)
        return PROGRESS

    file = StatusFile(tmp_path / "status.json", look)
    for second in range(31):
        clock.now_s = 1000.0 + second
        file.update()
        settled(file)
    assert 3 <= len(looks) <= 4  # each look takes 0.1 s, a hundredth of ten seconds


def test_a_disk_that_is_full_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    clock, told = Clock(monkeypatch), []

    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "status.json"
    file = StatusFile(path, lambda: PROGRESS, told.append)
    with monkeypatch.context() as patch:
        patch.setattr(status, "write_whole", full)
        for _ in range(3):
            file.update()
            settled(file)
            clock.now_s += 60.0
    assert told == [f"'{path}' cannot be written: No space left on device; the run goes on"]
    file.end("ended")
    assert read_status(path).state == "ended"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "field 'format' is 2; allowed: 1"),
        ({"state": "lost"}, "field 'state' is 'lost'"),
        ({"visits": -1}, "field 'visits' is -1; allowed: at least 0"),
        ({"configs": [{}]}, "field 'configs.0."),
        ({"updated_at": "yesterday"}, "Invalid isoformat string: 'yesterday'"),
    ],
)
def test_a_damaged_status_is_named(tmp_path, change, said):
    path = tmp_path / "status.json"
    StatusFile(path, lambda: PROGRESS).end("ended")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunFolderError) as found:
        read_status(path)
    assert str(found.value).startswith(f"'{path}' is damaged: ")
    assert said in str(found.value)
    path.write_text("{")
    with pytest.raises(RunFolderError, match=r"status\.json' is damaged: Expecting"):
        read_status(path)


def test_times_are_those_of_the_world():
    assert clock_text(0.0) == "1970-01-01T00:00:00Z"


def test_a_run_that_ends_says_so(tmp_path):
    store = make_store(tmp_path, 2)
    objective = mophpc.Objective(metric="accuracy", mode="max")
    results = run(
        tmp_path / "run", store, 2, space={"lr": [0.01, 1e30]}, epochs=3, objective=objective
    )
    found = read_status(tmp_path / "run/status.json")
    assert found.state == "ended"
    assert found.visits == found.planned_visits == 12
    assert found.left_s == pytest.approx(0.0, abs=1.0)
    assert found.best == results.best == 0
    assert [row.status for row in found.configs] == ["done", "diverged"]
    for row, expected in zip(found.configs, results.configs, strict=True):
        assert (row.config, row.epochs) == (expected.config, expected.epochs)
        assert row.hyperparameters == expected.hyperparameters
        assert (row.best, row.best_epoch) == (expected.best, expected.best_epoch)
        assert {k: v for k, v in row.metrics.items() if k != "seconds"} == expected.final


def test_a_run_that_fails_says_so(tmp_path):
    store = make_store(tmp_path, 2)
    with pytest.raises(RunError):
        run(tmp_path / "run", store, 2, build=tiny.refuses_later)
    assert read_status(tmp_path / "run/status.json").state == "failed"


def all_written(monkeypatch) -> list:
    """Have every change written; return the list of all that is, as it grows."""
    seen = []
    real = status.write_whole

    def keep(path, text):
        seen.append(json.loads(text))
        real(path, text)

    monkeypatch.setattr(status, "write_whole", keep)
    monkeypatch.setattr(status, "EVERY_S", 0.0)
    monkeypatch.setattr(status, "_SHARE", 0.0)
    return seen


def test_while_a_run_goes_on_its_configs_begin_and_train(tmp_path, monkeypatch):
    seen = all_written(monkeypatch)
    run(tmp_path / "run", make_store(tmp_path, 2), 1, epochs=3)
    assert [row["status"] for row in seen[0]["configs"]] == ["waiting"] * 4
    assert seen[0]["left_s"] is None or seen[0]["left_s"] >= 0.0
    assert {"training"} <= {row["status"] for one in seen for row in one["configs"]}
    visits = [one["visits"] for one in seen]
    assert visits == sorted(visits)
    assert visits[0] == 0
    assert visits[-1] == 24


@pytest.mark.parametrize("renew", [True, False])
def test_a_run_that_goes_on_counts_what_was_made_before(tmp_path, monkeypatch, renew):
    store = make_store(tmp_path, 4)
    cut = Cut("batch", 60, waits=True)
    schedule = mophpc.Schedule(renew=renew)
    ended = cutting.cut_off(tmp_path / "run", store, 2, cut, schedule=schedule)
    assert ended == cutting.KILLED
    seen = all_written(monkeypatch)
    cutting.resume(tmp_path / "run", store, 2, schedule=schedule)
    assert {one["planned_visits"] for one in seen} == {4 * 3 * 4}
    assert seen[-1]["visits"] == 48
