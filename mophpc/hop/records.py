"""Small records while the run goes on: reports to rank 0, and orders from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mophpc.hop.transport import Buffer, Request, Transport

PIECE_BYTES = 16384
_TAG = 1
_LAST, _MORE = 0, 1

Record = dict[str, Any]


class RecordSender:
    """Sends records; never waits for who takes them.

    Args:
        transport: of this rank.
        channel: of the records.
    """

    def __init__(self, transport: Transport, channel: int) -> None:
        self._transport = transport
        self._channel = channel
        self._requests: list[Request] = []

    def send(self, record: Record, dest: int = 0) -> None:
        """Start to send one record, in pieces where it is long."""
        data = json.dumps(record, separators=(",", ":")).encode()
        size = PIECE_BYTES - 1
        for start in range(0, len(data), size):
            kind = _MORE if start + size < len(data) else _LAST
            piece = np.frombuffer(bytes([kind]) + data[start : start + size], dtype=np.uint8)
            self._requests.append(self._transport.isend(piece, dest, _TAG, self._channel))

    def test(self) -> bool:
        """Let the records progress; return whether all have left."""
        self._requests = [request for request in self._requests if not request.test()]
        return not self._requests


class RecordReceiver:
    """Receives records: one open receive per source, until a record that says it is the `last`.

    Args:
        transport: of this rank.
        channel: of the records.
        sources: the ranks that send any.
        handle: takes them.
    """

    def __init__(
        self,
        transport: Transport,
        channel: int,
        sources: Iterable[int],
        handle: Callable[[Record], None],
    ) -> None:
        self.transport = transport
        self._channel = channel
        self._handle = handle
        self._open: dict[int, tuple[Request, Buffer]] = {}
        """By source."""
        self._pieces: dict[int, bytes] = {}
        for source in sources:
            self._post(source)

    def _post(self, source: int) -> None:
        buffer: Buffer = np.zeros(PIECE_BYTES, dtype=np.uint8)
        self._open[source] = (self.transport.irecv(buffer, source, _TAG, self._channel), buffer)

    @property
    def is_open(self) -> bool:
        """Whether anything may still come."""
        return bool(self._open)

    def cancel(self) -> None:
        """Take nothing more."""
        for request, _ in self._open.values():
            request.cancel()
        self._open = {}

    @property
    def waiting(self) -> list[tuple[int, Request]]:
        """The sources that may still send, each with its open receive."""
        return [(source, request) for source, (request, _) in self._open.items()]

    def test(self) -> None:
        """Handle what has arrived."""
        take_arrived([self])

    def take(self, source: int) -> None:
        """Handle what has arrived from a source, whose receive is done."""
        _, buffer = self._open.pop(source)
        raw = buffer.tobytes()
        # A message shorter than the buffer leaves zeros behind, which JSON does not contain.
        data = self._pieces.pop(source, b"") + raw[1:].rstrip(b"\0")
        if raw[0] == _MORE:
            self._pieces[source] = data
            self._post(source)
            return
        record = json.loads(data)
        if not record.get("last"):
            self._post(source)
        self._handle(record)


def take_arrived(receivers: Sequence[RecordReceiver]) -> None:
    """Handle what has arrived at some receivers of one rank.

    They are tested together, since a test costs a round of all that MPI looks after, and rank 0
    has a receive open from every other rank.
    """
    most = sum(len(receiver.waiting) for receiver in receivers)
    for _ in range(most):  # ranks that never stop sending must not hold this one
        waiting = [(own, source, open_) for own in receivers for source, open_ in own.waiting]
        if not waiting:
            return
        index = receivers[0].transport.test_any([open_ for _, _, open_ in waiting])
        if index is None:
            return
        receiver, source, _ = waiting[index]
        receiver.take(source)
