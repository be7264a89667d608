"""Files that a thread writes while the rank trains: nothing on a hop's path waits for a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mophpc.events import EventLog

MOST_WAITING = 2
"""Snapshots of weights that wait in memory, besides the one that is being written."""
POLL_S = 0.01
CLOSE_S = 3.0


@dataclass(frozen=True, slots=True)
class Job:
    """A file to be written."""

    path: Path
    write: Callable[[Path], int]
    """Writes it whole or not at all; returns its bytes."""
    snapshot: object | None = None
    """What it holds in memory; jobs may share one."""
    removes: tuple[Path, ...] = ()
    """Files that it takes the place of; they go when it is there."""
    is_final: bool = False
    """Whether the run must not end well without it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the event that says that it was written."""
    is_silent: bool = False
    """Whether no event says so: nothing is written."""


class Writer:
    """Writes files one after the other, in a thread of its own.

    Args:
        events: gets a `checkpoint` for each file.
        log: is told once where a file that is not final cannot be written.
        meanwhile: called again and again while a caller waits for the disk; it may raise.
        most_waiting: snapshots that may wait.
    """

    def __init__(
        self,
        events: EventLog,
        log: logging.Logger,
        meanwhile: Callable[[], None] = lambda: None,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._events = events
        self._log = log
        self._meanwhile = meanwhile
        self._most_waiting = most_waiting
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._writing: Job | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._has_warned = False
        self._failure: OSError | None = None

    def put(self, job: Job) -> None:
        """Hand a file over; wait only where the disk is so slow that memory would run full.

        A waiting older file of the same name is not written any more, nor is one that this one
        would remove.
        """
        while not self._offer(job):
            self._meanwhile()
            with self._changed:
                self._changed.wait(POLL_S)

    @property
    def has_room(self) -> bool:
        """Whether a snapshot could be handed over without waiting."""
        with self._changed:
            held = {id(job.snapshot) for job in self._waiting if job.snapshot is not None}
            return len(held) < self._most_waiting

    def check(self) -> None:
        """Raise what kept a final file from being written.

        Raises:
            OSError: names the file.
        """
        if self._failure is not None:
            raise self._failure

    def flush(self, is_late: Callable[[], bool] = lambda: False) -> None:
        """Wait until all is written, or it is too late.

        Raises:
            OSError: a final file could not be written.
        """
        while not self._is_idle() and not is_late():
            self.check()
            self._meanwhile()
            with self._changed:
                self._changed.wait(POLL_S)
        self.check()

    def close(self) -> None:
        """Let go of the thread and of what was not written yet."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)  # a disk may hang

    def _is_idle(self) -> bool:
        with self._changed:
            return not self._waiting and self._writing is None

    def _offer(self, job: Job) -> bool:
        """Take a job if there is room for what it holds in memory."""
        with self._changed:
            gone = {job.path, *job.removes}
            stale = [other for other in self._waiting if other.path in gone]
            others = [other for other in self._waiting if other.path not in gone]
            held = {id(other.snapshot) for other in (*others, job) if other.snapshot is not None}
            if len(held) > self._most_waiting and job.snapshot is not None:
                return False
            # What a stale one would have removed is still there.
            inherited = dict.fromkeys(path for other in stale for path in other.removes)
            removes = tuple(dict.fromkeys((*job.removes, *inherited)))
            place = self._waiting.index(stale[0]) if stale else len(others)
            others.insert(place, replace(job, removes=removes))
            self._waiting = others
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                self._writing = job = self._waiting.pop(0)
                self._changed.notify_all()
            try:
                self._write(job)
            except Exception as error:  # whatever it is, the rank must learn of it
                self._note(job, error)
            with self._changed:
                self._writing = None
                del job  # and its snapshot, before the next wait
                self._changed.notify_all()

    def _write(self, job: Job) -> None:
        if job.is_silent:
            job.write(job.path)
            return
        with self._events.timed("checkpoint", **job.facts, file=job.path.name) as facts:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            begin_s = time.thread_time()
            facts["nbytes"] = job.write(job.path)
            facts["cpu_s"] = time.thread_time() - begin_s
        for path in job.removes:
            path.unlink(missing_ok=True)

    def _note(self, job: Job, error: Exception) -> None:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        text = f"'{job.path}' cannot be written: {why}"
        if job.is_final:
            failure = OSError(text)
            failure.__cause__ = error
            with self._changed:
                self._failure = self._failure or failure
        elif not self._has_warned:
            self._has_warned = True
            self._log.warning("%s; the run goes on without it, and says so once", text)
