"""A hop: a config's state as raw bytes, from one rank straight into an arena of the next.

On the wire: a header of at most 4 KiB, the arena in chunks, and, only where the rest of the state
does not fit into the header, the rest. All have the hop's tag; MPI keeps messages of equal
(source, dest, tag, comm) in order (MPI 4.1, section 3.5), so no message needs a probe or a
wildcard, and the receives of header and arena are posted before the sender sends. The rest has a
channel of its own, since its receive is posted when the header is here: on the same one it could
be taken by the receive of a later hop of the same config.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from mophpc.errors import HopError
from mophpc.hop.transport import HOPS, RESTS, Buffer, Request, Transport

HEADER_BYTES = 4096
CHUNK_BYTES = 64 << 20
"""Messages of 2^31 bytes fail with some MPIs; 64 MiB also lets the ends of a hop overlap."""

_HEADER = struct.Struct("<4sHHIQQQ")
_MAGIC, _VERSION = b"MOPH", 1
_DIVERGED = 1


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


def _chunks(arena: Buffer, chunk_bytes: int) -> list[Buffer]:
    return [arena[i : i + chunk_bytes] for i in range(0, len(arena), chunk_bytes)]


def _pending(requests: list[Request]) -> list[Request]:
    return [request for request in requests if not request.test()]


@dataclass(slots=True)
class Outgoing:
    """A hop that leaves."""

    parcel: Parcel
    header_nbytes: int
    """Bytes that travel besides the arena and a rest too large for the header."""
    nbytes: int
    """Bytes of state: the arena, and the rest where it is too large for the header."""
    _requests: list[Request] = field(default_factory=list)

    def test(self) -> bool:
        """Let it progress; return whether the arena is free again."""
        self._requests = _pending(self._requests)
        return not self._requests


def post_send(
    transport: Transport, parcel: Parcel, dest: int, tag: int, chunk_bytes: int = CHUNK_BYTES
) -> Outgoing:
    """Start to send a parcel; its arena must not change until the hop is done."""
    arena, rest = parcel.arena, parcel.rest
    if parcel.diverged:
        arena, rest = arena[:0], b""
    flags = _DIVERGED if parcel.diverged else 0
    fixed = (_MAGIC, _VERSION, flags, parcel.config_id, parcel.step, len(arena), len(rest))
    head = _HEADER.pack(*fixed)
    inline = len(rest) <= HEADER_BYTES - len(head)
    if inline:
        head += rest
    # The receiver has posted one receive per chunk; a diverged config fills them with nothing.
    chunks = _chunks(parcel.arena, chunk_bytes)
    messages = [np.frombuffer(head, dtype=np.uint8)]
    messages += [chunk[:0] for chunk in chunks] if parcel.diverged else chunks
    requests: list[Request] = [transport.isend(m, dest, tag, HOPS) for m in messages]
    if not inline:
        requests.append(transport.isend(np.frombuffer(rest, dtype=np.uint8), dest, tag, RESTS))
    nbytes = len(arena) + (0 if inline else len(rest))
    return Outgoing(parcel, len(head), nbytes, requests)


class Incoming:
    """A hop that is expected; its receives are posted."""

    def __init__(
        self,
        transport: Transport,
        arena: Buffer,
        source: int,
        tag: int,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.source = source
        self._transport = transport
        self._tag = tag
        self._arena = arena
        self._header: Buffer = np.zeros(HEADER_BYTES, dtype=np.uint8)
        self._rest: Buffer | None = None
        self._head = transport.irecv(self._header, source, tag, HOPS)
        self._requests: list[Request] = [
            transport.irecv(chunk, source, tag, HOPS) for chunk in _chunks(arena, chunk_bytes)
        ]
        self._head_done = False

    def test(self) -> bool:
        """Let it progress; return whether all of it is here.

        Raises:
            HopError: what arrives is no state, or one of another size.
        """
        if not self._head_done and self._head.test():
            self._head_done = True
            self._check_head()  # now: chunks that were never sent would be waited for without end
            if self._rest_is_separate():
                self._rest = np.empty(self._fields()[-1], dtype=np.uint8)
                request = self._transport.irecv(self._rest, self.source, self._tag, RESTS)
                self._requests.append(request)
        self._requests = _pending(self._requests)
        return self._head_done and not self._requests

    @property
    def header_nbytes(self) -> int:
        """Bytes that travelled besides the arena and a rest too large for the header."""
        inline = 0 if self._rest_is_separate() else self._fields()[-1]
        return _HEADER.size + inline

    @property
    def nbytes(self) -> int:
        """Bytes of state that travelled."""
        *_, arena, rest = self._fields()
        return arena + (rest if self._rest_is_separate() else 0)

    def parcel(self, config_id: int, step: int) -> Parcel:
        """Return what arrived.

        Raises:
            HopError: it is not the state of `config_id` before its visit `step`.
        """
        _, _, flags, got_config, got_step, _, rest_nbytes = self._fields()
        if (got_config, got_step) != (config_id, step):
            raise HopError(
                f"rank {self.source} sent config {got_config} before step {got_step}; the plan "
                f"says config {config_id} before step {step}"
            )
        if self._rest is not None:
            rest = self._rest.tobytes()
        else:
            rest = self._header[_HEADER.size : _HEADER.size + rest_nbytes].tobytes()
        return Parcel(config_id, step, self._arena, rest, bool(flags & _DIVERGED))

    def _check_head(self) -> None:
        magic, version, flags, config_id, _, nbytes, _ = self._fields()
        if (magic, version) != (_MAGIC, _VERSION):
            raise HopError(f"rank {self.source} sent something that is no hop of this version")
        if not flags & _DIVERGED and nbytes != len(self._arena):
            raise HopError(
                f"rank {self.source} sent {nbytes} bytes of config {config_id}, whose arena "
                f"has {len(self._arena)}"
            )

    def _fields(self) -> tuple[bytes, int, int, int, int, int, int]:
        return _HEADER.unpack_from(self._header.data)

    def _rest_is_separate(self) -> bool:
        return self._fields()[-1] > HEADER_BYTES - _HEADER.size
