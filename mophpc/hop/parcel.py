"""A hop: a config's state as raw bytes, from one rank straight into an arena of the next.

On the wire: a header of at most 4 KiB, the arena in chunks, and, only where the rest of the state
does not fit into the header, the rest. All have the hop's tag; MPI keeps messages of equal
(source, dest, tag, comm) in order (MPI 4.1, section 3.5), so no message needs a probe or a
wildcard, and the receives of header and arena are posted before the sender sends. The rest has a
channel of its own, since its receive is posted when the header is here: on the same one it could
be taken by the receive of a later hop of the same config.

A hop may carry a checksum of the state. The receiver then answers; a state that was damaged is
sent once more, on a channel of its own.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from mophpc.errors import HopError
from mophpc.hop.checksum import checksum
from mophpc.hop.transport import AGAIN, ANSWERS, HOPS, RESTS, Buffer, Request, Transport

HEADER_BYTES = 4096
CHUNK_BYTES = 4 << 20
"""Messages of 2^31 bytes fail with some MPIs. A chunk that is done tells that bytes flow, so that
whoever waits knows when to stay awake; that wants many of them in a large state."""

FLOW_S = 1e-3
"""Bytes flow for so long after a message was done: a slow link leaves time to sleep between."""

_HEADER = struct.Struct("<4sHHIQQQ")
_CHECKSUM = struct.Struct("<Q")
_STATE_AT, _HEAD_AT = _HEADER.size, _HEADER.size + _CHECKSUM.size
FIXED_BYTES = _HEAD_AT + _CHECKSUM.size
INLINE_BYTES = HEADER_BYTES - FIXED_BYTES
"""The longest rest that travels in the header."""
_MAGIC, _VERSION = b"MOPH", 2
_DIVERGED, _CHECKED = 1, 2
_FINE, _DAMAGED = 1, 2


class Held(Protocol):
    """What has the newest bytes of a state after a visit, where its arena has not."""

    def land(self) -> None:
        """Begin to bring them into the arena."""

    def test(self) -> bool:
        """Return whether they are there; begins to bring them there."""

    def direct(self) -> Any:
        """Return (nbytes,) bytes in a device's memory for MPI to send, or None."""

    def drop(self) -> None:
        """Nobody needs them any more."""


@dataclass(slots=True)
class Parcel:
    """A config's state between two visits."""

    config_id: int
    step: int
    """The visit that it is ready for."""
    arena: Buffer
    rest: bytes = b""
    """What the trainer needs besides the arena; opaque here."""
    diverged: bool = False
    """The config has left the schedule: only the header travels on."""
    held: Held | None = None
    """None: the arena has the state."""


class _Fields(NamedTuple):
    magic: bytes
    version: int
    flags: int
    config_id: int
    step: int
    arena_nbytes: int
    rest_nbytes: int


class _Messages:
    """Messages under way, of which the earlier ones are done first."""

    def __init__(self, requests: Iterable[Request] = ()) -> None:
        self._requests = deque(requests)
        self._moved_s = 0.0

    def add(self, request: Request) -> None:
        """Follow one more."""
        self._requests.append(request)

    def test(self) -> bool:
        """Let them progress; return whether all are done."""
        while self._requests and self._requests[0].test():
            self._requests.popleft()
            self._moved_s = time.perf_counter()
        return not self._requests

    def cancel(self) -> None:
        """Give up those that are not done."""
        while self._requests:
            self._requests.popleft().cancel()

    @property
    def flow(self) -> bool:
        """Whether one was done just now, and others are not."""
        return bool(self._requests) and time.perf_counter() - self._moved_s < FLOW_S


def _chunks(arena: Buffer, chunk_bytes: int) -> list[Buffer]:
    return [arena[i : i + chunk_bytes] for i in range(0, len(arena), chunk_bytes)]


def _bytes(raw: bytes) -> Buffer:
    return np.frombuffer(raw, dtype=np.uint8)


class Outgoing:
    """A hop that leaves; the parcel's arena must not change until it is done.

    Args:
        transport: of this rank.
        parcel: the state.
        dest: rank that expects it.
        tag: of the hop.
        checked: send a checksum along, and wait for the answer.
        direct: the arena's bytes in a device's memory, to be sent in its place; never `checked`.
        chunk_bytes: as the receiver has it.
    """

    def __init__(
        self,
        transport: Transport,
        parcel: Parcel,
        dest: int,
        tag: int,
        *,
        checked: bool = False,
        direct: Any = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.parcel = parcel
        self._arena = parcel.arena if direct is None else direct
        self._transport = transport
        self._to = (dest, tag)
        self._chunk_bytes = chunk_bytes
        self._rest = b"" if parcel.diverged else parcel.rest
        self._head = self._header(checked)
        self._inline = len(self._rest) <= INLINE_BYTES
        self._answer: Buffer = np.zeros(1, dtype=np.uint8)
        self._answered = transport.irecv(self._answer, dest, tag, ANSWERS) if checked else None
        self._messages = _Messages(transport.isend(m, dest, tag, HOPS) for m in self._parts())
        if not self._inline:
            self._messages.add(transport.isend(_bytes(self._rest), dest, tag, RESTS))

    @property
    def header_nbytes(self) -> int:
        """Bytes that travel besides the arena and a rest too large for the header."""
        return len(self._head)

    @property
    def nbytes(self) -> int:
        """Bytes of state: the arena, and the rest where it is too large for the header."""
        arena = 0 if self.parcel.diverged else len(self.parcel.arena)
        return arena + (0 if self._inline else len(self._rest))

    @property
    def flows(self) -> bool:
        """Whether bytes were moving just now."""
        return self._messages.flow

    def test(self) -> bool:
        """Let it progress; return whether the arena is free again."""
        if not self._messages.test():
            return False
        if self._answered is None:
            return True
        if not self._answered.test():
            return False
        self._answered = None
        if self._answer[0] == _FINE:
            return True
        # The whole of it again, on a channel where its receives wait for nothing else.
        parts = [*self._parts(), *([] if self._inline else [_bytes(self._rest)])]
        self._messages = _Messages(self._transport.isend(m, *self._to, AGAIN) for m in parts)
        return self._messages.test()

    def _header(self, checked: bool) -> bytes:
        parcel = self.parcel
        arena = parcel.arena[:0] if parcel.diverged else parcel.arena
        flags = (_DIVERGED if parcel.diverged else 0) | (_CHECKED if checked else 0)
        fixed = _HEADER.pack(
            _MAGIC, _VERSION, flags, parcel.config_id, parcel.step, len(arena), len(self._rest)
        )
        total = checksum(fixed, arena, self._rest) if checked else 0
        fixed += _CHECKSUM.pack(total)
        inline = self._rest if len(self._rest) <= INLINE_BYTES else b""
        return fixed + _CHECKSUM.pack(checksum(fixed)) + inline

    def _parts(self) -> list[Buffer]:
        chunks = _chunks(self._arena, self._chunk_bytes)
        # The receiver has posted one receive per chunk; a diverged config fills them with nothing.
        if self.parcel.diverged:
            chunks = [chunk[:0] for chunk in chunks]
        return [_bytes(self._head), *chunks]


class Incoming:
    """A hop that is expected; its receives are posted.

    Args:
        transport: of this rank.
        arena: takes the state.
        source: rank that sends it.
        tag: of the hop.
        chunk_bytes: as the sender has it.
    """

    def __init__(
        self,
        transport: Transport,
        arena: Buffer,
        source: int,
        tag: int,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.source = source
        self.arena = arena
        self.begun_s: float | None = None
        """When its header was here, by `time.perf_counter`: so far nothing had been sent."""
        self._transport = transport
        self._tag = tag
        self._chunk_bytes = chunk_bytes
        self._header: Buffer = np.zeros(HEADER_BYTES, dtype=np.uint8)
        self._rest: Buffer | None = None
        self._repeated = self._verified = self._done = False
        self._head = transport.irecv(self._header, source, tag, HOPS)
        self._messages = _Messages(
            transport.irecv(chunk, source, tag, HOPS) for chunk in _chunks(arena, chunk_bytes)
        )

    def test(self) -> bool:
        """Let it progress; return whether all of it is here.

        Raises:
            HopError: what arrives is no state, one of another size, or damaged twice.
        """
        if self._done:
            return True
        if self.begun_s is None:
            if not self._head.test():
                return False
            self.begun_s = time.perf_counter()
            self._check_head()  # now: chunks that were never sent would be waited for without end
            if self._rest_is_separate():
                self._rest = np.empty(self._fields().rest_nbytes, dtype=np.uint8)
                self._messages.add(self._transport.irecv(self._rest, self.source, self._tag, RESTS))
        while self._messages.test():
            if self._verified or not self._fields().flags & _CHECKED:
                self._done = True
                return True
            self._verify()
        return False

    @property
    def flows(self) -> bool:
        """Whether bytes were moving just now."""
        if self.begun_s is None:
            return False
        return self._messages.flow or time.perf_counter() - self.begun_s < FLOW_S

    @property
    def header_nbytes(self) -> int:
        """Bytes that travelled besides the arena and a rest too large for the header."""
        return FIXED_BYTES + (0 if self._rest_is_separate() else self._fields().rest_nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of state that travelled."""
        fields = self._fields()
        return fields.arena_nbytes + (fields.rest_nbytes if self._rest_is_separate() else 0)

    def cancel(self) -> None:
        """Give up: nothing will be sent."""
        self._head.cancel()
        self._messages.cancel()

    def parcel(self, config_id: int, step: int) -> Parcel:
        """Return what arrived.

        Raises:
            HopError: it is not the state of `config_id` before its visit `step`.
        """
        fields = self._fields()
        if (fields.config_id, fields.step) != (config_id, step):
            raise HopError(
                f"rank {self.source} sent config {fields.config_id} before step {fields.step}; the "
                f"plan says config {config_id} before step {step}"
            )
        diverged = bool(fields.flags & _DIVERGED)
        return Parcel(config_id, step, self.arena, self._got_rest(), diverged)

    def _got_rest(self) -> bytes:
        if self._rest is not None:
            return self._rest.tobytes()
        return self._header[FIXED_BYTES : FIXED_BYTES + self._fields().rest_nbytes].tobytes()

    def _verify(self) -> None:
        """Look whether what is here is whole, and answer; where not, ask for it once more."""
        fields = self._fields()
        arena = self.arena[: fields.arena_nbytes]
        total = checksum(self._header[: _HEADER.size], arena, self._got_rest())
        if _CHECKSUM.unpack_from(self._header.data, _STATE_AT)[0] == total:
            self._verified = True
            if not self._repeated:
                self._answer(_FINE)
            return
        if self._repeated:
            raise HopError(
                f"the state of config {fields.config_id} before step {fields.step} was damaged on "
                f"its way from rank {self.source} to rank {self._transport.rank}, twice; look at "
                f"the memory and the network of their hosts"
            )
        self._repeated = True
        self._answer(_DAMAGED)
        parts = [self._header, *_chunks(self.arena, self._chunk_bytes)]
        parts += [] if self._rest is None else [self._rest]
        for part in parts:
            self._messages.add(self._transport.irecv(part, self.source, self._tag, AGAIN))

    def _answer(self, answer: int) -> None:
        raw = _bytes(bytes([answer]))
        self._messages.add(self._transport.isend(raw, self.source, self._tag, ANSWERS))

    def _check_head(self) -> None:
        fields = self._fields()
        if (fields.magic, fields.version) != (_MAGIC, _VERSION):
            raise HopError(f"rank {self.source} sent something that is no hop of this version")
        # Its lengths say what to wait for: one that is wrong would be waited for without end.
        (total,) = _CHECKSUM.unpack_from(self._header.data, _HEAD_AT)
        if checksum(self._header[:_HEAD_AT]) != total:
            raise HopError(
                f"the header of a hop was damaged on its way from rank {self.source} to rank "
                f"{self._transport.rank}; look at the memory and the network of their hosts"
            )
        diverged = fields.flags & _DIVERGED
        if fields.arena_nbytes != (0 if diverged else len(self.arena)):
            raise HopError(
                f"rank {self.source} sent {fields.arena_nbytes} bytes of config "
                f"{fields.config_id}, whose arena has {len(self.arena)}"
            )

    def _fields(self) -> _Fields:
        return _Fields(*_HEADER.unpack_from(self._header.data))

    def _rest_is_separate(self) -> bool:
        return self._fields().rest_nbytes > INLINE_BYTES
