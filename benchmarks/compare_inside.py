"""Runs one system of `compare.py` and watches it; started in namespaces of its own.

    python compare_inside.py SPEC.json SCRIPT

All processes of a system are descendants of this one, also those that others have left behind.
Every half second their processor time, and every second their memory (proportional set size), is
read; when the system has ended, or its time is over, all of them are ended. A process that lives
for less than half a second may be missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from children import adopt, stop_all

PERIOD_S = 0.5
MOST_SAID = 200  # characters of a line of a log that make a row of a table


class Watch:
    """Processor time and memory of all descendants."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, int | None]] = []
        """When, processor seconds since the start, bytes of memory (every other time)."""
        self._seconds: dict[tuple[int, float], float] = {}

    def look(self) -> None:
        with_memory = len(self.samples) % 2 == 0
        memory = 0
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
                memory += process.memory_full_info().pss if with_memory else 0
            except psutil.Error:  # it has ended meanwhile
                continue
        spent = sum(self._seconds.values())
        self.samples.append((time.time(), spent, memory if with_memory else None))


def isolate() -> None:
    """Bring up the loopback interface of this namespace, and a /dev/shm that ends with it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)


def main() -> int:
    spec_file, script = Path(sys.argv[1]), sys.argv[2]
    settings: dict[str, Any] = json.loads(spec_file.with_suffix(".watch.json").read_text())
    scratch = Path(settings["scratch"])
    adopt()
    if settings["isolated"]:
        isolate()
    watch, why = Watch(), ""
    deadline = time.monotonic() + settings["timeout_s"]
    with (scratch / "log.txt").open("wb") as log:
        try:
            command = [sys.executable, script, str(spec_file)]
            driver = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=scratch
            )
            while driver.poll() is None and not why:
                if time.monotonic() > deadline:
                    why = f"it took more than {settings['timeout_s']} s"
                watch.look()
                time.sleep(PERIOD_S)
            if not why and driver.returncode != 0:
                why = f"exit status {driver.returncode}: {last_line(scratch / 'log.txt')}"
        finally:
            stop_all()
    (scratch / "watch.json").write_text(json.dumps({"why": why, "samples": watch.samples}))
    return 0


def last_line(log: Path) -> str:
    """Return what the log says last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line[:MOST_SAID] for line in reversed(lines) if line), "it said nothing")


if __name__ == "__main__":
    # As the first process of its namespace it would else be left with what its children leave.
    status = main()
    sys.stdout.flush()
    os._exit(status)
