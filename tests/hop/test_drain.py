"""What a rank has said is read before the ranks are ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mophpc.hop import drain as module
from mophpc.hop.drain import drain_output


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_it_waits_until_all_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_S", 60.0)
    with pipe() as (reading, writing):
        os.write(writing, b"a sentence\n")
        is_read: list[bool] = []

        def read() -> None:
            time.sleep(0.1)
            is_read.append(True)
            os.read(reading, 100)

        reader = threading.Thread(target=read)
        reader.start()
        drain_output([writing])
        assert is_read == [True]
        reader.join()


def test_a_launcher_that_does_not_read_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "READ_S", 0.05)
    with pipe() as (_, writing):
        os.write(writing, b"a sentence\n")
        drain_output([writing])  # or this test hangs


def test_files_and_what_is_closed_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "READ_S", 1e9)
    with (tmp_path / "out").open("wb") as file:
        file.write(b"a sentence\n")
        file.flush()
        file.seek(0)  # now the kernel counts bytes before its end as unread
        drain_output([file.fileno(), 10**6])
