"""Small records from every rank to rank 0 while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from mophpc.hop.transport import REPORTS, Buffer, Request, Transport

PIECE_BYTES = 16384
_TAG = 1
_LAST, _MORE = 0, 1

Record = dict[str, Any]


class ReportSender:
    """Sends records to rank 0; never waits for it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._requests: list[Request] = []

    def send(self, record: Record) -> None:
        """Start to send one record, in pieces where it is long."""
        data = json.dumps(record, separators=(",", ":")).encode()
        size = PIECE_BYTES - 1
        for start in range(0, len(data), size):
            kind = _MORE if start + size < len(data) else _LAST
            piece = np.frombuffer(bytes([kind]) + data[start : start + size], dtype=np.uint8)
            self._requests.append(self._transport.isend(piece, 0, _TAG, REPORTS))

    def test(self) -> bool:
        """Let the records progress; return whether all have left."""
        self._requests = [request for request in self._requests if not request.test()]
        return not self._requests


class ReportReceiver:
    """Receives the records of the other ranks on rank 0: one open receive per source."""

    def __init__(self, transport: Transport, handle: Callable[[Record], None]) -> None:
        self._transport = transport
        self._handle = handle
        self._open: dict[int, tuple[Request, Buffer]] = {}
        self._pieces: dict[int, bytes] = {}
        for source in range(1, transport.size):
            self._post(source)

    def _post(self, source: int) -> None:
        buffer: Buffer = np.zeros(PIECE_BYTES, dtype=np.uint8)
        self._open[source] = (self._transport.irecv(buffer, source, _TAG, REPORTS), buffer)

    def test(self) -> None:
        """Handle what has arrived."""
        for source in list(self._open):
            request, buffer = self._open[source]
            if request.test():
                self._take(source, buffer.tobytes())

    def _take(self, source: int, raw: bytes) -> None:
        # A message shorter than the buffer leaves zeros behind, which JSON does not contain.
        data = self._pieces.pop(source, b"") + raw[1:].rstrip(b"\0")
        del self._open[source]
        if raw[0] == _MORE:
            self._pieces[source] = data
            self._post(source)
            return
        record = json.loads(data)
        if not record.get("last"):
            self._post(source)
        self._handle(record)
