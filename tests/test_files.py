"""Files written whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mophpc.cli import main
from mophpc.events import KINDS, EventLog
from mophpc.files import LineWriter, plain, read_lines, write_json, write_whole
from mophpc.run.folder import RunFolder
from mophpc.run.logs import close_logger, rank_logger


@pytest.mark.parametrize("data", ["ü\n", b"\x00\xff", ""])
def test_a_file_is_written_and_replaced_whole(tmp_path, data):
    path = tmp_path / "file"
    for content in ("old and longer", data):
        write_whole(path, content)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_when_writing_fails_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "file"
    texts = ["a" * 200_000, "b" * 100_000]
    write_whole(path, texts[0])
    stop = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(20):
        write_whole(path, texts[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(texts)


def test_json_has_no_numbers_that_json_does_not_know(tmp_path):
    value = {"a": [1.5, float("nan"), (float("inf"), {"b": -float("inf")})], "c": True}
    assert plain(value) == {"a": [1.5, None, [None, {"b": None}]], "c": True}
    write_json(tmp_path / "f.json", value)
    assert json.loads((tmp_path / "f.json").read_text()) == plain(value)


def test_lines_are_there_at_once_and_whole(tmp_path):
    path = tmp_path / "lines"
    writer = LineWriter(path)
    for n in range(3):
        writer.write({"n": n, "x": float("nan"), "s": "ü\n"})
        assert read_lines(path)[-1] == {"n": n, "x": None, "s": "ü\n"}
    writer.close()
    writer.close()
    again = LineWriter(path)  # appends
    again.write({"n": 3})
    again.close()
    assert [line["n"] for line in read_lines(path)] == [0, 1, 2, 3]
    assert path.read_bytes().count(b"\n") == 4


def test_events_have_a_rank_and_lie_on_the_common_timeline(tmp_path):
    import time

    log = EventLog(tmp_path / "events", 3, time.time() - 100)
    assert 100 <= log.now() < 130
    with log.timed("load", shard=2) as facts:
        facts["rows"] = 7
    log.write("wait", 1.0, 2.0, config=0, step=1)
    log.close()
    load, wait = read_lines(tmp_path / "events")
    assert {k: load[k] for k in ("kind", "rank", "shard", "rows")} == {
        "kind": "load",
        "rank": 3,
        "shard": 2,
        "rows": 7,
    }
    assert 100 <= load["start"] <= load["end"]
    assert wait == {"kind": "wait", "rank": 3, "start": 1.0, "end": 2.0, "config": 0, "step": 1}
    assert {"load", "wait"} <= set(KINDS)


def test_events_without_a_file_go_nowhere():
    log = EventLog(None, 0, 0.0)
    log.write("wait", 0.0, 1.0)
    log.close()


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    script = f"""
import pathlib, resource
from mophpc.files import LineWriter
from mophpc.run.folder import RunFolder
from mophpc.run.logs import close_logger, rank_logger
lines = LineWriter(pathlib.Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for number in range(1000):
        lines.write({{"number": number}})
except OSError as error:
    print("OSError", error.errno)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("OSError")
    found = read_lines(path)
    assert [line["number"] for line in found] == list(range(len(found)))
    assert 1000 - 20 < path.stat().st_size <= 1000


def test_an_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        LineWriter(full).write({"a": 1})

    def fails(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match=r"No space left on device: '.*/results.json'"):
        write_json(tmp_path / "results.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_says_nothing_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(RunFolder, "log", lambda self, rank: Path("/dev/full"))
    log = rank_logger(RunFolder(tmp_path), 0)
    log.warning("one")
    log.error("two")
    close_logger(log)
    assert capsys.readouterr().err == "mophpc: two\n"


def test_an_error_without_a_file_is_said_without_one(monkeypatch, capsys):
    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mophpc.cli.app", fails)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "mophpc: No space left on device\n"
