"""The in-process twin of MPI: ranks are threads of one process.

A send completes only when its receive is posted, as with MPI's rendezvous: a plan that ends here
does not rely on the library's buffers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mophpc.errors import HopError
from mophpc.hop.transport import Buffer, Request

_Key = tuple[int, int, int, int]


class PeerError(HopError):
    """Another rank of this process failed, and has said why."""


@dataclass(slots=True, eq=False)
class _Posted:
    buffer: Buffer
    world: LocalWorld
    done: bool = False

    def test(self) -> bool:
        if self.world.failed:
            raise PeerError("another rank of this process failed")
        return self.done

    def cancel(self) -> None:
        """See `Request`; nothing has to be taken back between threads."""


@dataclass(slots=True)
class LocalWorld:
    """What the ranks of one process share."""

    size: int
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held by the rank that computes: torch's generators are the process's, not the thread's."""
    failed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sends: dict[_Key, deque[_Posted]] = field(default_factory=dict)
    _receives: dict[_Key, deque[_Posted]] = field(default_factory=dict)

    def post_send(self, key: _Key, buffer: Buffer) -> _Posted:
        """Post a send and deliver it if its receive is there."""
        send = _Posted(buffer, self)
        with self._lock:
            waiting = self._receives.get(key)
            if waiting:
                _deliver(send, waiting.popleft())
            else:
                self._sends.setdefault(key, deque()).append(send)
        return send

    def post_receive(self, key: _Key, buffer: Buffer) -> _Posted:
        """Post a receive and fill it if its send is there."""
        receive = _Posted(buffer, self)
        with self._lock:
            waiting = self._sends.get(key)
            if waiting:
                _deliver(waiting.popleft(), receive)
            else:
                self._receives.setdefault(key, deque()).append(receive)
        return receive


def _deliver(send: _Posted, receive: _Posted) -> None:
    size = len(send.buffer)
    if size > len(receive.buffer):
        raise HopError(f"a message of {size} bytes came where {len(receive.buffer)} were expected")
    receive.buffer[:size] = send.buffer
    send.done = receive.done = True


class LocalTransport:
    """The transport of one rank of a `LocalWorld`."""

    def __init__(self, world: LocalWorld, rank: int) -> None:
        self.rank = rank
        self.size = world.size
        self.threaded = False  # a thread per rank is enough
        self.takes_devices = False
        self.survives = False  # threads die together
        self._world = world

    def all_well(self, *, is_well: bool) -> bool:
        """Return what is said: threads end together."""
        return is_well

    def survivors(self) -> LocalTransport:
        """Return the transport as it is."""
        return self

    def launched_as(self) -> list[int]:
        """Return the ranks: no number has changed."""
        return list(range(self.size))

    def isend(self, buffer: Buffer, dest: int, tag: int, channel: int) -> _Posted:
        """Start to send; see `Transport`."""
        return self._world.post_send((self.rank, dest, tag, channel), buffer)

    def irecv(self, buffer: Buffer, source: int, tag: int, channel: int) -> _Posted:
        """Start to receive; see `Transport`."""
        return self._world.post_receive((source, self.rank, tag, channel), buffer)

    def test_any(self, requests: Sequence[Request]) -> int | None:
        """Return the index of one that is done; see `Transport`."""
        return next((index for index, own in enumerate(requests) if own.test()), None)

    def abort(self, status: int) -> None:  # noqa: ARG002  # all ranks share one exit status
        """Make every rank's next test raise."""
        self._world.failed = True
