"""Rank 0 tells people outside how far the run is: `status.json`, written again and again.

It is written in a thread of its own, so that no visit and no hop waits for a disk, and never more
often than a hundredth of the time allows.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mophpc.dimensions import Value
from mophpc.files import plain, write_whole
from mophpc.status_file import Standing, State, clock_text

EVERY_S = 1.0
"""News are written no more often."""
BEAT_S = 5.0
"""Without news the file is written so often, to show that the run is alive."""
MOST_S = 30.0
"""News are never held back for longer."""
_SHARE = 100.0


@dataclass(frozen=True, slots=True)
class Row:
    """How far a config is; see `mophpc.status_file.ConfigStatus`."""

    config_id: int
    config: str
    status: Standing
    epochs: int
    hyperparameters: dict[str, Value]
    metrics: dict[str, float]
    best: float | None
    best_epoch: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; see `mophpc.status_file.Status`."""

    visits: int
    planned_visits: int
    left_s: float | None
    objective: dict[str, str]
    best: int | None
    configs: Sequence[Row]


class StatusFile:
    """Writes the status of a run. An error in writing never ends the run.

    Args:
        path: `RUN/status.json`.
        look: returns how far the run is; called by whoever calls `update`, `beat` or `end`.
        warn: takes a sentence, once, when the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        look: Callable[[], Progress],
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._path = path
        self._look = look
        self._warn = warn
        self._begun_s = time.time()
        self._thread: threading.Thread | None = None
        self._next_s = self._beat_s = -float("inf")
        self._has_news = False
        self._took_s = 0.0
        self._error: OSError | None = None
        self._is_warned = False

    def update(self) -> None:
        """Take note that there is news; written now, or soon."""
        self._has_news = True
        self.beat()

    def beat(self) -> None:
        """Write what is due. Costs nothing where nothing is, so it may be called all the time."""
        now_s = time.monotonic()
        if now_s < (self._next_s if self._has_news else self._beat_s):
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._tell()
        begin_s = time.perf_counter()
        progress = self._look()
        took_s = time.perf_counter() - begin_s
        self._has_news = False
        wait_s = min(MOST_S, max(EVERY_S, _SHARE * (took_s + self._took_s)))
        self._next_s, self._beat_s = now_s + wait_s, now_s + max(BEAT_S, wait_s)
        self._thread = threading.Thread(target=self._write, args=("running", progress), daemon=True)
        self._thread.start()

    def end(self, state: State) -> None:
        """Write the last status, and wait until it is on disk."""
        if self._thread is not None:
            self._thread.join()
        self._write(state, self._look())
        self._tell()

    def _record(self, state: State, progress: Progress) -> dict[str, Any]:
        facts = {
            "format": 1,
            "state": state,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": clock_text(self._begun_s),
            "updated_at": clock_text(time.time()),
        }
        rows = [_flat(row) for row in progress.configs]
        for row in rows:
            if state != "running" and row["status"] in ("waiting", "training", "paused"):
                row["status"] = "unfinished"
        return facts | _flat(progress) | {"configs": rows}

    def _write(self, state: State, progress: Progress) -> None:
        begin_s = time.thread_time()
        try:
            record = plain(self._record(state, progress))
            text = json.dumps(record, indent=1, allow_nan=False)
            write_whole(self._path, text + "\n")
        except OSError as error:  # the disk is full, for example; perhaps not for ever
            self._error = error
        self._took_s = time.thread_time() - begin_s

    def _tell(self) -> None:
        if self._error is not None and not self._is_warned:
            self._is_warned = True
            self._warn(f"'{self._path}' cannot be written: {self._error.strerror}; the run goes on")


def _flat(part: Progress | Row) -> dict[str, Any]:
    """Return the fields of one object; `asdict` copies all that is in them, which takes long."""
    return {field.name: getattr(part, field.name) for field in fields(part)}
