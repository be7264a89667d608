"""The thread that writes files while a rank trains."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from mophpc.events import EventLog
from mophpc.files import read_lines
from mophpc.run import writer as writing
from mophpc.run.writer import Job, Writer


class Disk:
    """Writes files when it is let to, and keeps their order."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.goes = threading.Event()
        self.goes.set()
        self.full: set[str] = set()

    def write(self, path: Path) -> int:
        assert self.goes.wait(10)
        if path.name in self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self.written.append(path.name)
        return path.write_bytes(b"weights")

    def job(self, path: Path, **facts) -> Job:
        return Job(path, self.write, facts.pop("snapshot", object()), **facts)


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def writer(tmp_path, disk):
    events = EventLog(tmp_path / "events.jsonl", 0, 0.0)
    made = Writer(events, logging.getLogger("mophpc.test"))
    yield made
    disk.goes.set()
    made.close()
    events.close()


def busy(writer: Writer, disk: Disk, tmp_path: Path) -> None:
    """Let the thread hang in a first file."""
    disk.goes.clear()
    writer.put(disk.job(tmp_path / "first"))
    deadline = time.monotonic() + 5
    while writer._writing is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_files_are_written_in_order_and_told_of(tmp_path, writer, disk):
    for number in range(5):
        writer.put(disk.job(tmp_path / "c000" / f"{number}", facts={"config": number}))
    writer.flush()
    assert disk.written == ["0", "1", "2", "3", "4"]
    events = read_lines(tmp_path / "events.jsonl")
    assert [(e["kind"], e["config"], e["file"], e["nbytes"]) for e in events] == [
        ("checkpoint", number, str(number), 7) for number in range(5)
    ]


def test_an_event_says_what_a_file_took_from_the_processor(tmp_path, writer):
    def digest(_: Path) -> int:
        begin_s = time.thread_time()
        while time.thread_time() - begin_s < 0.05:
            hash(bytes(1000))
        return 7

    writer.put(Job(tmp_path / "file", digest))
    writer.flush()
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert event["cpu_s"] >= 0.05


def test_nobody_waits_for_the_disk_until_memory_would_run_full(tmp_path, writer, disk):
    busy(writer, disk, tmp_path)
    for name in ("a", "b"):
        writer.put(disk.job(tmp_path / name))
    calls = []

    def meanwhile() -> None:
        calls.append(len(writer._waiting))
        if len(calls) == 3:
            disk.goes.set()

    writer._meanwhile = meanwhile
    writer.put(disk.job(tmp_path / "c"))  # waits, and messages are looked after
    assert len(calls) >= 3
    assert max(calls) == 2
    writer.flush()
    assert disk.written == ["first", "a", "b", "c"]


def test_files_of_one_snapshot_count_once_and_small_ones_not_at_all(tmp_path, writer, disk):
    busy(writer, disk, tmp_path)
    writer._meanwhile = lambda: pytest.fail("it waited")
    one, other = object(), object()
    for name, snapshot in (("a", one), ("b", one), ("m", None), ("c", other), ("n", None)):
        writer.put(disk.job(tmp_path / name, snapshot=snapshot))
    assert len(writer._waiting) == 5


def test_a_newer_file_takes_the_place_of_a_waiting_one(tmp_path, writer, disk):
    for name in ("old", "epoch-0"):
        (tmp_path / name).touch()
    busy(writer, disk, tmp_path)
    writer._meanwhile = lambda: pytest.fail("it waited")
    writer.put(disk.job(tmp_path / "epoch-1", removes=(tmp_path / "epoch-0",)))
    writer.put(disk.job(tmp_path / "model"))
    writer.put(disk.job(tmp_path / "model", removes=(tmp_path / "old",)))
    writer.put(disk.job(tmp_path / "epoch-2", removes=(tmp_path / "epoch-1",)))
    assert [job.path.name for job in writer._waiting] == ["epoch-2", "model"]
    writer._meanwhile = lambda: None
    disk.goes.set()
    writer.flush()
    assert disk.written == ["first", "epoch-2", "model"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-2",
        "events.jsonl",
        "first",
        "model",
    ]


def test_a_file_is_removed_only_when_the_one_in_its_place_is_there(tmp_path, writer, disk):
    (tmp_path / "epoch-0").touch()
    disk.full.add("epoch-1")
    writer.put(disk.job(tmp_path / "epoch-1", removes=(tmp_path / "epoch-0",)))
    writer.flush()
    assert (tmp_path / "epoch-0").exists()


def test_a_full_disk_is_told_once_and_the_run_goes_on(tmp_path, writer, disk, caplog):
    disk.full |= {"a", "b"}
    for name in ("a", "b", "c"):
        writer.put(disk.job(tmp_path / name))
    writer.flush()
    assert disk.written == ["c"]
    assert [record.getMessage() for record in caplog.records] == [
        f"'{tmp_path / 'a'}' cannot be written: No space left on device; the run goes on without "
        f"it, and says so once"
    ]


def test_a_final_file_that_cannot_be_written_ends_the_run_and_is_named(tmp_path, writer, disk):
    disk.full |= {"model", "later"}
    writer.put(disk.job(tmp_path / "model", is_final=True))
    said = r"model' cannot be written: No space left on device"
    with pytest.raises(OSError, match=said):
        writer.flush()
    writer.put(disk.job(tmp_path / "later", is_final=True))
    with pytest.raises(OSError, match=said):
        writer.check()


def test_a_disk_that_hangs_does_not_keep_a_failed_run_from_ending(
    tmp_path, writer, disk, monkeypatch
):
    monkeypatch.setattr(writing, "CLOSE_S", 0.1)
    busy(writer, disk, tmp_path)
    writer.put(disk.job(tmp_path / "never"))
    begin_s = time.monotonic()
    writer.close()
    assert time.monotonic() - begin_s < 5
    disk.goes.set()
    time.sleep(0.05)
    assert "never" not in disk.written
