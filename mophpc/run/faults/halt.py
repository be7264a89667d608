"""A run that is asked to stop: every rank ends its minibatch, and all states go to disk.

A signal may come on any rank. That rank tells rank 0, which tells all; each stops where it is and
writes the states that it has, until rank 0 knows that the newest state of every config is on disk.
What hops just then is written by whoever has it: the same state has the same name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from mophpc.errors import InterruptError, MophpcError, UnreachableError
from mophpc.hop.records import RecordReceiver, RecordSender
from mophpc.hop.transport import STOPS, Transport
from mophpc.run.faults.stopping import StopFlag

Record = dict[str, Any]

SAID_S = 0.7
"""People are told so late: where a rank fails, a launcher sends the others SIGTERM, and ends them
half a second later. Then that rank has said why, and it was no request to stop."""


class Halt:
    """What one rank knows of being stopped.

    Args:
        transport: of this rank.
        stop: notices signals.
        limit_s: seconds that states may take to be written.
        report: takes a record for rank 0.
        survives: whether the others go on when a rank is lost.
    """

    def __init__(
        self,
        transport: Transport,
        stop: StopFlag,
        limit_s: float,
        report: Callable[[Record], None],
        *,
        survives: bool = False,
    ) -> None:
        self._rank = transport.rank
        self._stop = stop
        self._limit_s = limit_s
        self._report = report
        self._survives = survives
        self.loss: MophpcError | None = None
        """Why messages are of no use any more: a rank is lost, and the others go on."""
        self._is_announced = False
        self._deadline_s: float | None = None
        self.receivers: list[RecordReceiver] = []
        """Of what rank 0 says; to be looked at with all others."""
        if transport.rank > 0:
            self.receivers.append(RecordReceiver(transport, STOPS, [0], self.take))
        self.is_over = False
        """Whether all that can be written is written, or the run has ended well."""
        self.reason = ""
        self.wanted: list[tuple[int, int]] = []
        """(config, visit) of states that may be on their way here, or somewhere else."""

    def notice(self) -> None:
        """Tell rank 0 of a signal that came here.

        Raises:
            LostError: another rank is lost.
        """
        if self._survives and self._stop.loss is not None:
            self.loss = self.loss or self._stop.loss
            return
        self._stop.check()
        name = self._stop.signal_name
        if name is not None and not (self._is_announced or self.is_over):
            self._is_announced = True
            self._report({"kind": "signal", "rank": self._rank, "signal": name})

    def take(self, record: Record) -> None:
        """Take what rank 0 says."""
        if record.get("last"):
            self.is_over = True
        elif "wanted" in record:
            self.wanted += [(config_id, step) for config_id, step in record["wanted"]]
        elif self._deadline_s is None:
            self.reason = record["reason"]
            self._deadline_s = time.monotonic() + self._limit_s

    @property
    def is_asked(self) -> bool:
        """Whether this rank should stop at its next safe point."""
        return self._deadline_s is not None or self.loss is not None

    @property
    def is_late(self) -> bool:
        """Whether no time is left to write states."""
        return self._deadline_s is not None and time.monotonic() > self._deadline_s

    def lose(self, error: UnreachableError) -> None:
        """Take a message that failed.

        Raises:
            UnreachableError: the run does not go on without the other rank.
        """
        if not self._survives:
            raise error
        self.loss = self.loss or error

    def error(self) -> MophpcError:
        """Return what a rank that has stopped raises."""
        if self.loss is not None:
            return self.loss
        return InterruptError(f"interrupted by {self.reason}")


class Muster:
    """Rank 0's side: it follows whose states are on disk.

    Args:
        transport: of rank 0.
        halt: of rank 0.
        note: takes a sentence for people.
    """

    def __init__(self, transport: Transport, halt: Halt, note: Callable[[str], None]) -> None:
        self._size = transport.size
        self._halt = halt
        self._note = note
        self._sender = RecordSender(transport, STOPS)
        self._asked_s: float | None = None
        self._is_said = self._has_told_end = self._has_asked_for = False
        self._paused: dict[int, bool] = {}
        self._written: dict[int, int] = {}
        self.unwritten: dict[int, int] = {}
        """By config_id, the visit before which a state could not be written."""

    def begin(self, rank: int, signal: str) -> None:
        """Have all ranks stop."""
        if self._asked_s is None and not self._has_told_end:
            self._asked_s = time.monotonic()
            self._tell({"reason": f"{signal} on rank {rank}" if self._size > 1 else signal})

    def take(self, record: Record) -> None:
        """Take a record of a rank that stops: `paused`, once, or `written`."""
        if record["kind"] == "paused":
            self._paused[record["rank"]] = True
            return
        for config_id, step, is_there in record["states"]:
            found = self._written if is_there else self.unwritten
            found[config_id] = max(step, found.get(config_id, 0))

    def poll(self, newest: Callable[[], Iterable[tuple[int, int]]]) -> None:
        """Let all ranks end when every state is on disk; never waits.

        Args:
            newest: gives (config, the visit that its newest state is ready for) of all that are
                to go on; asked when all ranks have stopped.
        """
        self._sender.test()
        if self._asked_s is None or self._has_told_end:
            return
        if not self._is_said and time.monotonic() - self._asked_s > SAID_S:
            self._is_said = True
            self._note(f"{self._halt.reason}: the states of all configs are being written")
        if len(self._paused) < self._size:
            return
        settled = {**self.unwritten}
        for config_id, step in self._written.items():
            settled[config_id] = max(step, settled.get(config_id, 0))
        missing = [(c, step) for c, step in newest() if settled.get(c, 0) < step]
        if not missing:
            self.end()
        elif not self._has_asked_for:
            # A small state may have left its rank and not be looked for yet where it goes to.
            self._has_asked_for = True
            self._tell({"wanted": missing})

    def end(self) -> None:
        """Let all ranks end, whether they were asked to stop or have done all."""
        if not self._has_told_end:
            self._has_told_end = True
            self._tell({"last": True})

    @property
    def is_asked(self) -> bool:
        """Whether the ranks were asked to stop."""
        return self._asked_s is not None

    @property
    def has_told_all(self) -> bool:
        """Whether all that was said has left."""
        return self._sender.test()

    def _tell(self, record: Record) -> None:
        self._halt.take(record)
        for rank in range(1, self._size):
            self._sender.send(record, rank)
