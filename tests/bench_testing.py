"""What the tests of benchmarks share."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

# Starts a process that its own end does not end, as a rank can be, and runs for ever.
LAUNCHER = """#!/bin/sh
setsid sleep 300 </dev/null >/dev/null 2>&1 &
echo $! >"$RANK_FILE.part" && mv "$RANK_FILE.part" "$RANK_FILE"
exec sleep 300
"""


def refused(
    main: Callable[[Sequence[str]], Any], capsys: pytest.CaptureFixture[str], words: Sequence[str]
) -> str:
    """Return the one sentence with which a command is refused."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    return told.err


def write_launcher(file: Path) -> None:
    """Write a command that starts a rank, whose process number it tells in $RANK_FILE."""
    file.write_text(LAUNCHER)
    file.chmod(0o755)


def ends_its_rank(command: Sequence[str], environment: Mapping[str, str], rank_file: Path) -> bool:
    """Start a benchmark, end it with SIGTERM once it has a rank, and tell whether that ended too.

    Args:
        command: whose launcher is that of `write_launcher`.
        environment: the command's, where RANK_FILE is added.
        rank_file: that the launcher writes.
    """
    process = subprocess.Popen(
        command, env={**environment, "RANK_FILE": str(rank_file)}, stdout=subprocess.DEVNULL
    )
    rank = 0
    try:
        deadline = time.monotonic() + 60
        while not rank_file.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        rank = int(rank_file.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        return not is_running(rank)
    finally:
        process.kill()
        process.wait()
        if rank and is_running(rank):
            os.kill(rank, signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
