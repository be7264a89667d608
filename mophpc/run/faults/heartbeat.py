"""Finds a host that cannot be reached: no beat of it comes by MPI, and none in the run folder.

The lowest ranks of the hosts form a ring, in which each sends the next one a beat every second. A
process beside each of them counts in a file of the run folder. Either may be late for reasons of
its own: C code that holds Python's lock, a file server that is away for a while. Where both are
silent, or beats do not come that were sent, the host is given up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mophpc.errors import CutOffError
from mophpc.hop.records import RecordReceiver, RecordSender
from mophpc.hop.transport import BEATS, Transport
from mophpc.run.faults.places import (
    BEAT_S,
    RUNNING,
    Sign,
    Whereabouts,
    count_file,
    firsts_of,
    read_place,
)

_LATE_S = 2.5
"""When this rank could not look for so long, nobody is to blame for silence."""
_MISSING = 3
"""So many beats that were sent and do not come have been lost on the way."""
_DIGITS = 20


class Heartbeat:
    """Of the lowest rank of a host, in a run on several.

    `test` and `end` belong to the thread that looks after messages, `look` to the one that watches.

    Args:
        transport: of this rank.
        sign: of this rank.
        ranks: all of them.
        run: the run folder.
        silent_s: a host that was not heard for so long is given up.
    """

    def __init__(
        self,
        transport: Transport,
        sign: Sign,
        ranks: Sequence[Whereabouts],
        run: Path,
        silent_s: float,
    ) -> None:
        firsts = firsts_of(ranks)
        place = firsts.index(sign.own.rank)
        self._to = firsts[(place + 1) % len(firsts)]
        self._from = ranks[firsts[place - 1]]
        self._others = [
            where.rank
            for where in ranks
            if where.realm == self._from.realm and where.rank != self._from.rank
        ]
        self._sign = sign
        self._run = run
        self._silent_s = silent_s
        self._sender = RecordSender(transport, BEATS)
        self._receiver = RecordReceiver(transport, BEATS, [self._from.rank], self._take)
        self._heard = 0
        self._heard_s = self._tested_s = self._due_s = self._looked_s = time.monotonic()
        self._life = ("", -1)  # how far the host and its lowest rank have counted in files
        self._lived_s: float | None = None  # since when; None: nothing is known of this run

    # By MPI.

    def test(self) -> None:
        """Let beats progress, and send the next one when it is due."""
        now_s = time.monotonic()
        if now_s - self._tested_s > _LATE_S:
            self._heard_s = now_s
        self._tested_s = now_s
        self._receiver.test()
        if self._sender.test() and now_s >= self._due_s:
            self._due_s = now_s + BEAT_S
            self._sign.sent += 1
            self._sender.send({"beat": self._sign.sent}, self._to)

    def _take(self, record: dict[str, Any]) -> None:
        self._heard = record.get("beat", 0)
        self._heard_s = time.monotonic()

    def end(self) -> None:
        """Send no more; the others are told so."""
        self._due_s = float("inf")
        self._sender.send({"last": True}, self._to)

    @property
    def is_closed(self) -> bool:
        """Whether the last beats have left and come."""
        return self._sender.test() and not self._receiver.is_open

    def cancel(self) -> bool:
        """Take no more beats; return whether those that were sent have left."""
        self._due_s = float("inf")
        self._receiver.cancel()
        return self._sender.test()

    # In the run folder.

    def look(self) -> CutOffError | None:
        """Return what is to be said of a host that cannot be reached."""
        now_s = time.monotonic()
        if now_s - self._looked_s < 0.8 * BEAT_S:
            return None
        if now_s - self._looked_s > _LATE_S and self._lived_s is not None:
            self._lived_s = now_s
        self._looked_s = now_s
        self._sign.say_sent()
        where = read_place(self._run, self._from.rank)
        if where is not None and where.pid != self._from.pid:
            where = None
        self._note(_read(count_file(self._run, self._from.rank)), where, now_s)
        is_deaf = now_s - self._tested_s > _LATE_S
        silent_s = now_s - self._heard_s
        if is_deaf or not self._receiver.is_open or silent_s < self._silent_s:
            return None
        where = where or self._from
        if where.state != RUNNING:
            return None
        if self._lived_s is not None and now_s - self._lived_s >= self._silent_s:
            cause = "neither by MPI nor in the run folder"
            return self._lost(where, f"for {silent_s:.0f} s nothing has come from it, {cause}")
        if where.sent >= self._heard + _MISSING:
            missing = where.sent - self._heard
            text = f"for {silent_s:.0f} s nothing has come from it by MPI, which it has sent"
            return self._lost(where, f"{text} {missing} beats, as it says in the run folder")
        return None

    def _note(self, count: str, where: Whereabouts | None, now_s: float) -> None:
        """Note whether the other host has given a sign; a file that cannot be read is none.

        What an earlier run has left says nothing, nor does a folder that the hosts do not share.
        """
        life = (count or self._life[0], self._life[1] if where is None else where.beats)
        if life != self._life:
            is_first = self._life == ("", -1)
            self._lived_s = None if is_first and where is None else now_s
            self._life = life

    def _lost(self, where: Whereabouts, why: str) -> CutOffError:
        others = ", ".join(map(str, self._others[:8])) + (", ..." if self._others[8:] else "")
        also = f"; on the same host: rank {others}" if others else ""
        return CutOffError(where.place, f"its host cannot be reached: {why}{also}")


def _read(path: Path) -> str:
    """Return how far a host has counted; empty: it cannot be known."""
    with suppress(OSError), path.open("rb") as file:
        text = file.read(_DIGITS).strip().decode("ascii", errors="replace")
        return text if text.isdecimal() else ""
    return ""
