"""Timed records of what each rank does: facts for analysis, one JSON line each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mophpc.files import LineWriter

KINDS = (
    "clock",  # offset_s, error_s: what is added to this rank's times to have rank 0's, and how
    #           wrong that may be; at the start, and again at the end
    "load",  # shard, rows, nbytes: a shard was read
    "probe",  # config: its state was laid out
    "compile",  # config: what its visits run was compiled
    "pilot",  # config: a few of its batches were timed
    "link",  # hops between neighbours were timed
    "plan",  # makespan_s, pilot_s: the first plan was made
    "visit",  # config, epoch, shard, rows, data_s, copy_s (waiting for the state to get to the
    #           device): training, with bind and release
    "eval",  # config, epoch
    "hop",  # config, step, source, dest, nbytes, header_nbytes, direction: send, or receive with
    #         transfer_s, exposed_s (of it while the rank had nothing to train), hidden (none was)
    "build",  # config, step: a Task was built while its state was on its way
    "wait",  # config, step, cpu_s: the rank had nothing to train until this state came, and took
    #          so much of a processor meanwhile
    "resume",  # config, step: a state was read from its file
    "told",  # the rank had to wait until it was told its next visits
    "snapshot",  # config, epoch: weights were copied, and the disk waited for where it was slow
    "checkpoint",  # config, epoch, file, nbytes: a thread wrote weights, or what is known of them
    "end",  # spent (seconds of PARTS), most_arenas, start_rss_bytes, peak_rss_bytes: the rank has
    #         made all its visits
)

PARTS = ("compute_s", "evaluation_s", "exposed_hop_s", "data_s", "checkpoint_s", "idle_s")
"""Of a rank's visits, in seconds: `exposed_hop_s` is waiting for a state that was on its way to
the rank or from there to its device,
`data_s` is making batches ready, `idle_s` is all the rest of the waiting."""


class EventLog:
    """The events of one rank, in `events/rank-RRRR.jsonl`.

    Times are seconds since `epoch_s`, a wall-clock time that all ranks share, so that their logs
    lie on one timeline as far as their hosts' clocks agree.
    """

    def __init__(self, path: Path | None, rank: int, epoch_s: float) -> None:
        self._lines = LineWriter(path) if path else None
        self._rank = rank
        self.begun_s = epoch_s
        """The time, since 1970, from which seconds are counted."""
        self._offset = time.time() - time.perf_counter() - epoch_s

    def now(self) -> float:
        """Return the seconds since the run's common start; it never goes backwards."""
        return time.perf_counter() + self._offset

    def write(self, kind: str, start_s: float, end_s: float, **facts: Any) -> None:
        """Record that something took place from `start_s` to `end_s`."""
        if self._lines is not None:
            record = {"kind": kind, "rank": self._rank, "start": start_s, "end": end_s, **facts}
            self._lines.write(record)

    @contextmanager
    def timed(self, kind: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Record the time that the body takes; it may add facts to the dict it is given."""
        start_s = self.now()
        yield facts
        self.write(kind, start_s, self.now(), **facts)

    def close(self) -> None:
        """Put the log on disk."""
        if self._lines is not None:
            self._lines.close()
