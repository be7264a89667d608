"""Files written whole or not at all, and lines that are appended whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mophpc.errors import RunFolderError

_BLOCK = 65536


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees all of it or the old one: write, fsync, rename.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old file stays.
    """
    raw = data.encode() if isinstance(data, str) else data
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    try:
        # "x": never through a link that somebody has put there
        with naming(path), scratch.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the operating system name a file, as those of writing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON (RFC 8259: a float that is not finite becomes null), whole."""
    write_whole(path, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return `value` with floats that JSON cannot hold replaced by None."""
    if isinstance(value, float):
        return value if value - value == 0.0 else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class LineWriter:
    """Append-only JSON lines: each line is one `write`, so a killed process leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._mend()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record.

        Raises:
            OSError: the disk is full; what was written of the line is taken back.
        """
        line = json.dumps(plain(record), separators=(",", ":"), allow_nan=False) + "\n"
        data = line.encode()
        with naming(self._path):
            written = os.write(self._fd, data)
        if written < len(data):  # a disk that fills up takes a part first
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _mend(self) -> None:
        """Take back half a line that a machine which went down has left."""
        size = end = os.fstat(self._fd).st_size
        while end > 0:
            begin = max(0, end - _BLOCK)
            newline = os.pread(self._fd, end - begin, begin).rfind(b"\n")
            end = begin if newline < 0 else begin + newline + 1
            if newline >= 0:
                break
        if end < size:
            os.ftruncate(self._fd, end)

    def close(self) -> None:
        """Put all lines on disk and close; calling it twice is fine."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                with naming(self._path):
                    os.fsync(fd)
            finally:
                os.close(fd)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; half a line at its end is none.

    Raises:
        RunFolderError: another line is damaged.
        OSError: the file cannot be read.
    """
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        if isinstance(item, dict):
            found.append(item)
        elif number < len(lines):
            raise RunFolderError(f"line {number} of '{path}' is damaged; restore the file")
    return found
