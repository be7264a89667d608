"""People and a run that goes on: status, stop, clone and add."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from whole_testing import command, complaint, local_run

from mophpc import people
from mophpc.errors import RunFolderError
from mophpc.files import write_whole
from mophpc.requests import RequestBox, Stop, Wish, describe, send
from mophpc.run.rank0.status import Progress, Row, StatusFile
from mophpc.status_file import clock_text, read_status

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]

TOML = """
build = "nowhere.py:build"
epochs = 5
[data]
store = "nowhere.zarr"
[objective]
metric = "accuracy"
mode = "max"
[search]
configs = 4
[space]
arch = ["mlp", "cnn"]
lr = { loguniform = [1e-4, 1e-1] }
width = { integer = [4, 64], when = { arch = "mlp" } }
"""


def row(config_id: int, status: str, best: float | None, **values) -> Row:
    given = {"arch": "mlp", "lr": 0.01, "width": 8} | values
    name = f"c{config_id:03d}-lr={given['lr']}"
    metrics = {} if best is None else {"accuracy": best / 2, "valid_loss": 0.25}
    epochs = 0 if best is None else 3
    return Row(config_id, name, status, epochs, given, metrics, best, None if best is None else 1)


ROWS = (
    row(0, "training", 0.5),
    row(1, "waiting", None, lr=0.02),
    row(2, "training", 0.75, lr=0.03),
    row(3, "diverged", 0.9, lr=0.04),
)
PROGRESS = Progress(34, 128, 190.0, {"metric": "accuracy", "mode": "max"}, 2, ROWS)


def write_status(run: Path, state: str = "running", **changes) -> None:
    """Write the status of a run whose rank 0 is this process."""
    StatusFile(run / "status.json", lambda: PROGRESS).end(state)
    record = json.loads((run / "status.json").read_text())
    write_whole(run / "status.json", json.dumps(record | changes))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that goes on, made by hand."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "experiment.toml").write_text(TOML)
    write_status(folder)
    return folder


@pytest.fixture
def rank_0(run: Path) -> Iterator[list[Wish]]:
    """What a thread that plays rank 0 was asked: it refuses what is about c000."""
    asked: list[Wish] = []
    over = threading.Event()

    def play() -> None:
        box = RequestBox(run / "requests", every_s=0.05)
        while not over.is_set():
            for request in box.poll():
                asked.append(request.wish)
                if "c000" in str(request):
                    box.answer(request, False, "c000 is about to end; nothing is left to stop")
                else:
                    box.answer(request, True, f"taken up: {request}\x1b[31m")
            time.sleep(0.02)

    thread = threading.Thread(target=play)
    thread.start()
    yield asked
    over.set()
    thread.join()


def test_stop(run: Path, rank_0: list[Wish], capsys: Capture) -> None:
    status, out, err = command(capsys, "stop", run, "1", "c002", "c001-lr=0.02")
    assert (status, err) == (0, "")
    assert out == "taken up: stop c001?[31m\ntaken up: stop c002?[31m\n"
    assert [describe(wish) for wish in rank_0] == ["stop c001", "stop c002"]


def test_what_rank_0_refuses_is_a_mistake(run: Path, rank_0: list[Wish], capsys: Capture) -> None:
    status, out, err = command(capsys, "stop", run, "0", "2")
    assert status == 2
    assert complaint(err) == "c000 is about to end; nothing is left to stop"
    assert out.startswith("taken up: stop c002")


def test_clone(run: Path, rank_0: list[Wish], capsys: Capture) -> None:
    arguments = ["--set", "lr=3", "--set", "width = 16", "--epochs", "9", "--fresh"]
    status, out, err = command(capsys, "clone", run, "c002", *arguments)
    assert status == 0
    assert err == "note: lr = 3.0 is outside the space: 0.0001 to 0.1\n"
    (wish,) = rank_0
    assert wish.model_dump() == {
        "format": 1,
        "kind": "clone",
        "config": "c002",
        "set": {"lr": 3.0, "width": 16},
        "epochs": 9,
        "fresh": True,
    }
    assert type(wish.set["lr"]) is float
    assert out == "taken up: clone c002 --set lr=3.0 --set width=16 --epochs 9 --fresh?[31m\n"


def test_add(run: Path, rank_0: list[Wish], capsys: Capture) -> None:
    status, _, err = command(capsys, "add", run, "--set", "arch=cnn", "--set", "lr=3e-4")
    assert (status, err) == (0, "")
    assert [wish.set for wish in rank_0] == [{"arch": "cnn", "lr": 3e-4}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.toml", '[[configs]]\narch = "cnn"\nlr = 0.1\n[[configs]]\narch = "cnn"\nlr = 1\n'),
        ("rows.json", '[{"arch": "cnn", "lr": 0.1}, {"arch": "cnn", "lr": 1}]'),
        ("rows", '{"configs": [{"arch": "cnn", "lr": 0.1}, {"arch": "cnn", "lr": 1}]}'),
    ],
)
def test_add_several(
    run: Path, rank_0: list[Wish], capsys: Capture, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    status, out, err = command(capsys, "add", run, "--file", tmp_path / name, "--epochs", 2)
    assert status == 0
    assert err == "note: lr = 1.0 is outside the space: 0.0001 to 0.1\n"
    assert [(wish.set["lr"], wish.epochs) for wish in rank_0] == [(0.1, 2), (1.0, 2)]
    assert len(out.splitlines()) == 2


def test_nobody_answers(run: Path, capsys: Capture) -> None:
    begin_s = time.monotonic()
    status, out, _ = command(capsys, "stop", run, "1", "--wait", "0.3")
    assert status == 0
    assert time.monotonic() - begin_s < 5.0
    assert out == (
        f"no answer yet to: stop c001; it is taken up at the next boundary, and 'mophpc status "
        f"{run}' shows what waits\n"
    )
    (request,) = RequestBox(run / "requests").poll()
    assert request.wish == Stop(config="c001")
    _, out, _ = command(capsys, "status", run)
    assert out.splitlines()[-1] == "waits to be taken up: stop c001"


def test_the_run_ends_meanwhile(run: Path, capsys: Capture) -> None:
    def end_when_asked() -> None:
        while len(list((run / "requests").glob("*.json"))) < 2:
            time.sleep(0.01)
        write_status(run, "ended")

    ends = threading.Thread(target=end_when_asked, daemon=True)
    ends.start()
    status, _, err = command(capsys, "stop", run, "1", "2", "--wait", "30")
    ends.join()
    assert status == 2
    assert complaint(err) == f"the run '{run}' ended before it took this up: stop c001, stop c002"
    assert list((run / "requests").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stop", "c9"], "the run '{run}' has no config 'c9'; allowed: 0 to 3, or a name"),
        (["stop", "1", "4"], "the run '{run}' has no config '4'; allowed: 0 to 3, or a name"),
        (["stop", "3"], "c003 cannot be stopped: it is diverged"),
        (["clone", "c9", "--set", "lr=1"], "the run '{run}' has no config 'c9'; allowed"),
        (["clone", "0"], "a clone without --set NAME=VALUE or --epochs would be the same again"),
        (["clone", "0", "--fresh"], "a clone without --set"),
        (["clone", "0", "--set", "lrr=1"], "the run has no hyperparameter 'lrr'; allowed: arch,"),
        (["clone", "0", "--set", "lr=fast"], "lr is 'fast'; allowed: a number"),
        (["clone", "0", "--set", "lr"], "--set is 'lr'; allowed: NAME=VALUE"),
        (["clone", "0", "--set", "width=1.5"], "width is 1.5; allowed: an integer"),
        (["clone", "0", "--set", "arch=cnn", "--set", "width=4"], "'width' has no effect here"),
        (["clone", "0", "--epochs", "3"], "--epochs 3 leaves nothing to train: c000 has made 3"),
        (["add"], "give either --set NAME=VALUE or --file ROWS; neither is given"),
        (["add", "--set", "lr=0.1"], "a value is missing for arch; add --set arch=..."),
        (["add", "--set", "lr=0.1", "--file", "x"], "give either --set NAME=VALUE or --file ROWS;"),
        (["add", "--file", "{run}/no"], "--file '{run}/no' cannot be read: No such file"),
        (["add", "--file", "{run}/experiment.toml"], "--file '{run}/experiment.toml' has no conf"),
        (["add", "--file", "{run}/bad.toml"], "--file '{run}/bad.toml' is not TOML: "),
        (["add", "--file", "{run}/bad.json"], "--file '{run}/bad.json' is not JSON: "),
        (["add", "--file", "{run}/odd.json"], "field 'set.arch' is [1]; allowed: a boolean, "),
        (["status", "--watch", "--json"], "--watch and --json exclude each other"),
    ],
)
def test_mistakes(run: Path, capsys: Capture, words: list[str], said: str) -> None:
    for name in ("bad.toml", "bad.json"):
        (run / name).write_text("{")
    (run / "odd.json").write_text('[{"arch": [1]}]')
    words = [word.format(run=run) for word in words]
    status, out, err = command(capsys, words[0], run, *words[1:])
    assert (status, out) == (2, "")
    assert complaint(err).startswith(said.format(run=run))
    assert not (run / "requests").exists()


@pytest.mark.parametrize("words", [["stop", "0"], ["clone", "0"], ["add"], ["status"]])
def test_a_folder_without_a_run(tmp_path: Path, capsys: Capture, words: list[str]) -> None:
    status, _, err = command(capsys, words[0], tmp_path, *words[1:])
    assert status == 2
    assert complaint(err) == (f"'{tmp_path}' holds no run; give the folder that 'mophpc run' made")
    (tmp_path / "experiment.toml").write_text(TOML)
    status, _, err = command(capsys, words[0], tmp_path, *words[1:])
    assert status == 2
    assert complaint(err).startswith(f"the run '{tmp_path}' has no status: its visits have not")


@pytest.mark.parametrize(
    ("state", "said"),
    [("ended", "has ended"), ("failed", "has failed"), ("interrupted", "was interrupted")],
)
def test_a_run_that_is_over_takes_nothing(
    run: Path, capsys: Capture, state: str, said: str
) -> None:
    write_status(run, state)
    status, _, err = command(capsys, "stop", run, "0")
    assert status == 2
    assert complaint(err) == f"the run '{run}' {said}; nothing can be asked of it any more"


def ago(seconds: float) -> str:
    return clock_text(time.time() - seconds)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def shown_s(before: str, text: str) -> int:
    """Return the seconds of a time such as 0:12:31 that a text begins with, after some words."""
    found = re.match(rf"{before}(\d+):(\d\d):(\d\d) on ", text)
    assert found is not None, text
    hours, minutes, seconds = map(int, found.groups())
    return 3600 * hours + 60 * minutes + seconds


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no time pass between what a test writes and what a command reads."""
    now_s = float(int(time.time()))
    monkeypatch.setattr(time, "time", lambda: now_s)


@pytest.mark.usefixtures("still_clock")
def test_status_of_a_run_that_goes_on(run: Path, capsys: Capture) -> None:
    write_status(run, host="[n1]", started_at=ago(751))
    status, out, err = command(capsys, "status", run)
    assert (status, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0] == (
        "running for 0:12:31 on [n1], 34 of 128 visits, about 0:03:10 left, best c002 with "
        "accuracy 0.75"
    )
    assert lines[1] == ""
    assert lines[2].split() == [
        *("config", "arch", "lr", "width", "epochs", "accuracy", "best", "accuracy", "epoch"),
        *("train_loss", "valid_loss", "status"),
    ]
    assert [line.split()[0] for line in lines[3:]] == ["c002", "c000", "c001", "c003"]
    assert lines[3].split() == [
        *("c002", "mlp", "0.03", "8", "3", "0.375", "0.75", "1", "-", "0.25", "training")
    ]
    assert lines[5].split() == [
        *("c001", "mlp", "0.02", "8", "0", "-", "-", "-", "-", "-", "waiting")
    ]
    assert len(lines) == 7


def test_status_for_programs(run: Path, capsys: Capture) -> None:
    send(run / "requests", Stop(config="c001"))
    status, out, _ = command(capsys, "status", run, "--json")
    assert status == 0
    record = json.loads(out)
    assert record["state"] == "running"
    assert record["doubt"] is None
    assert record["failures"] == []
    assert [r["config"] for r in record["requests"]] == ["c001"]
    assert [r["status"] for r in record["configs"]] == [r.status for r in ROWS]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"updated_at": 60}, None),
        ({"updated_at": 310}, "not updated for 5 minutes; it may have died"),
        ({"host": "elsewhere", "updated_at": 7300}, "not updated for 2 hours; it may have died"),
        ({"pid": dead_pid, "updated_at": 5}, None),  # perhaps its host is another of this name
        (
            {"pid": dead_pid, "updated_at": 20},
            "not updated for 20 seconds, and its process {pid} is gone: it has died",
        ),
        ({"pid": dead_pid, "host": "elsewhere", "updated_at": 60}, None),
        (
            {"pid": 10**30, "updated_at": 65},
            "not updated for 1 minute, and its process {pid} is gone",
        ),
    ],
)
@pytest.mark.usefixtures("still_clock")
def test_a_run_that_seems_dead(run: Path, capsys: Capture, changes: dict, said: str | None) -> None:
    changes = {key: value() if callable(value) else value for key, value in changes.items()}
    if "updated_at" in changes:
        changes["updated_at"] = ago(changes["updated_at"])
    write_status(run, **{"host": socket.gethostname()} | changes)
    status, out, _ = command(capsys, "status", run)
    assert status == 0
    second = out.splitlines()[1]
    assert second.startswith((said or "").format(pid=changes.get("pid")))
    assert bool(second) == bool(said)
    is_dead = bool(said) and "its process" in said
    assert out.startswith("ran for " if is_dead else "running for ")
    if is_dead:
        status, _, err = command(capsys, "stop", run, "0")
        assert status == 2
        assert complaint(err).startswith(f"the run '{run}' has died: not updated for ")


@pytest.mark.usefixtures("still_clock")
@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_status_of_a_run_that_failed(run: Path, capsys: Capture, state: str) -> None:
    write_status(run, state)  # the rank that fails ends rank 0 with a signal
    failure = {"place": "rank 1 of 2 on n1, config c000", "cause": "KeyError: \x1b[31m'x'"}
    (run / "failure-rank-0001.json").write_text(json.dumps(failure))
    (run / "failure-rank-0002.json").write_text("{")
    send(run / "requests", Stop(config="c001"))
    _, out, _ = command(capsys, "status", run)
    lines = out.splitlines()
    assert lines[0].startswith("failed after 0:00:00 on ")
    assert lines[1] == "rank 1 of 2 on n1, config c000: KeyError: ?[31m'x'"
    assert lines[-1] == "was not taken up: stop c001"


def test_a_large_run_shows_its_best(run: Path, capsys: Capture) -> None:
    rows = tuple(row(i, "training", i / 100) for i in range(60))
    StatusFile(run / "status.json", lambda: replace(PROGRESS, configs=rows, best=59)).end("running")
    _, out, _ = command(capsys, "status", run)
    lines = out.splitlines()
    assert lines[3].startswith("c059")
    assert lines[-2].startswith("c020")
    assert lines[-1] == "… and 20 more in status.json"


def test_what_somebody_else_wrote_does_not_move_the_cursor(run: Path, capsys: Capture) -> None:
    write_status(run, host="a\x1b[2Jb")
    send(run / "requests", Stop(config="a\x1b[2Jb"))
    record = json.loads((run / "status.json").read_text())
    record["configs"][2]["hyperparameters"] = {"x\x1b": "[red]\x1b[2J\ud800"}
    (run / "status.json").write_text(json.dumps(record))
    status, out, _ = command(capsys, "status", run)
    assert status == 0
    assert "\x1b" not in out
    assert "[red]?[2J?" in out


def test_watching_ends_with_the_run(run: Path, capsys: Capture, monkeypatch) -> None:
    monkeypatch.setattr(people, "_WATCH_S", 0.05)
    ends = threading.Timer(0.3, write_status, [run, "ended"])
    ends.start()
    status, out, _ = command(capsys, "status", run, "--watch")
    ends.join()
    assert status == 0
    assert re.search(r"ended after 0:00:0[01] on ", out)  # a second may begin meanwhile


def test_a_damaged_status_is_a_sentence(run: Path, capsys: Capture) -> None:
    (run / "status.json").write_text("{")
    for words in (["status"], ["stop", "0"]):
        status, _, err = command(capsys, words[0], run, *words[1:])
        assert status == 2
        assert complaint(err).startswith(f"'{run / 'status.json'}' is damaged: ")


def test_status_of_a_run_that_ended_has_its_results(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    run, begin_s = tmp_path / "run", time.monotonic()
    assert local_run(capsys, write_experiment(), run)[0] == 0
    most_s = time.monotonic() - begin_s + 1.0
    status, out, _ = command(capsys, "status", run)
    assert status == 0
    lines = out.splitlines()
    assert shown_s("ended after ", lines[0]) <= most_s
    assert ", 32 of 32 visits, best c00" in lines[0]
    assert lines[2].split()[:6] == ["config", "width", "lr", "best", "accuracy", "epoch"]
    assert len(lines) == 7
    (run / "status.json").unlink()  # as an older version leaves it
    status, older, _ = command(capsys, "status", run)
    assert status == 0
    assert older.splitlines() == lines[2:]


@pytest.mark.slow
def test_as_a_user_does_it(write_experiment: Write, tmp_path: Path) -> None:
    """A real run in another process, looked at and interrupted."""
    run, python = tmp_path / "run", [sys.executable, "-m", "mophpc"]
    begin_s = time.monotonic()
    toml = write_experiment("slow", epochs="epochs = 1000")
    process = subprocess.Popen(
        [*python, "run", toml, "--out", run, "--transport", "local", "--progress", "off"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def mophpc(*words: object) -> subprocess.CompletedProcess[str]:
        arguments = [*python, *map(str, words)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)

    try:
        deadline_s = time.monotonic() + 180.0
        while not ((found := read_status(run / "status.json")) and found.visits > 1):
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.1)
        done = mophpc("status", run)
        assert done.returncode == 0, done.stderr
        assert shown_s("running for ", done.stdout) <= time.monotonic() - begin_s + 1.0
        assert f" on {socket.gethostname()}, " in done.stdout
        record = json.loads(mophpc("status", run, "--json").stdout)
        assert record["pid"] == process.pid
        done = mophpc("stop", run, "c9")
        assert done.returncode == 2
        assert complaint(done.stderr).endswith("has no config 'c9'; allowed: 0 to 3, or a name")
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        most_s = time.monotonic() - begin_s + 1.0
    finally:
        process.kill()
        process.communicate()
    assert shown_s("interrupted after ", mophpc("status", run).stdout) <= most_s
    done = mophpc("stop", run, "0")
    assert done.returncode == 2
    assert complaint(done.stderr) == (
        f"the run '{run}' was interrupted; nothing can be asked of it any more"
    )


def test_asking_of_nobody_raises(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        people.look_running(tmp_path)
