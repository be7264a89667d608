"""The few collectives of a run's set-up, over point-to-point messages.

They wait politely where MPI's own would spin, and work over every transport. All ranks must call
them in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from mophpc import errors
from mophpc.errors import LostError, MophpcError, RunError, UnreachableError
from mophpc.hop.transport import CONTROL, Buffer, Check, Request, Transport, wait_until

T = TypeVar("T")

_SIZE_TAG, _DATA_TAG = 1, 2


def _nothing() -> None:
    pass


class Group:
    """All ranks of a transport; what they agree on before and after a run."""

    def __init__(self, transport: Transport, check: Check = _nothing) -> None:
        self.rank = transport.rank
        self.size = transport.size
        self._transport = transport
        self.check = check
        """Called while waiting; may raise to stop."""

    def gather(self, value: Any) -> list[Any]:
        """Collective. Return every rank's JSON value on rank 0, by rank; elsewhere nothing."""
        if self.rank != 0:
            self._send(_encode(value), 0)
            return []
        return [value if rank == 0 else _decode(self._receive(rank)) for rank in range(self.size)]

    def share(self, value: Any = None) -> Any:
        """Collective. Return rank 0's JSON value on every rank, along a binomial tree."""
        data = _encode(value)
        step = 1
        while step < self.size:
            if step <= self.rank < 2 * step:
                data = self._receive(self.rank - step)
            elif self.rank < step and self.rank + step < self.size:
                self._send(data, self.rank + step)
            step *= 2
        return _decode(data)

    def agree(self, error: BaseException | None = None) -> None:
        """Collective. Return on all ranks, or raise on all the error of the lowest that has one."""
        found = self.gather(None if error is None else describe(error))
        first = self.share(next((f for f in found if f is not None), None))
        if first is not None:
            own = isinstance(error, MophpcError) and describe(error) == first
            agreed = error if own and isinstance(error, MophpcError) else restore(first)
            agreed.agreed = True
            raise agreed from (None if own else error)

    def attempt(self, action: Callable[[], T]) -> T:
        """Collective. Run `action` on every rank; if it fails on any, raise that error on all."""
        try:
            result = action()
        except (LostError, UnreachableError):  # nothing can be agreed on with a rank that is lost
            raise
        except (Exception, SystemExit) as error:  # told to all ranks, then raised
            self.agree(error)
            raise  # not reached: agree raises on every rank
        self.agree()
        return result

    def from_root(self, action: Callable[[], Any]) -> Any:
        """Collective. Run `action` on rank 0; return its JSON value, or raise its error, on all."""
        value = self.attempt(action if self.rank == 0 else _nothing)
        return self.share(value)

    def barrier(self) -> None:
        """Collective. Return when all ranks are here."""
        self.share(self.gather(None) and None)

    def _send(self, data: bytes, dest: int) -> None:
        buffer = np.frombuffer(data, dtype=np.uint8)
        size = np.array([len(data)], dtype="<u8").view(np.uint8)
        self._wait(
            self._transport.isend(size, dest, _SIZE_TAG, CONTROL),
            self._transport.isend(buffer, dest, _DATA_TAG, CONTROL),
        )

    def _receive(self, source: int) -> bytes:
        size = np.zeros(8, dtype=np.uint8)
        self._wait(self._transport.irecv(size, source, _SIZE_TAG, CONTROL))
        buffer: Buffer = np.empty(int(size.view("<u8")[0]), dtype=np.uint8)
        self._wait(self._transport.irecv(buffer, source, _DATA_TAG, CONTROL))
        return buffer.tobytes()

    def _wait(self, *requests: Request) -> None:
        for request in requests:
            wait_until(request.test, self.check)


def describe(error: BaseException) -> list[str]:
    """Return an error as JSON: its class in `mophpc.errors`, and its message."""
    name = type(error).__name__
    if not isinstance(error, MophpcError):
        return ["MophpcError", f"{name}: {error}"]
    known = getattr(errors, name, None) is type(error) and not isinstance(error, RunError)
    if not known:  # a room's own subclass: its nearest ancestor that every rank knows
        ancestors = (c.__name__ for c in type(error).__mro__ if hasattr(errors, c.__name__))
        name = next((a for a in ancestors if a != "RunError"), "MophpcError")
    return [name, str(error)]


def restore(described: list[str]) -> MophpcError:
    """Return the error that `describe` was given, as far as this rank can have it."""
    name, message = described
    kind = getattr(errors, name, MophpcError)
    return kind(message)


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _decode(data: bytes) -> Any:
    return json.loads(data)
