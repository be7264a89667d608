"""What a hop needs of a message-passing system; MPI and its in-process twin provide it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

Buffer = np.ndarray[Any, np.dtype[np.uint8]]

HOPS, RESTS, REPORTS, ORDERS, CONTROL = range(5)
"""Channels: messages on one are never matched by receives on another (communicators in MPI)."""
NUM_CHANNELS = 5


class Request(Protocol):
    """A message under way."""

    def test(self) -> bool:
        """Let the message progress; return whether its buffer may be used again.

        Raises:
            HopError: the peer or the library failed.
        """


class Transport(Protocol):
    """Point-to-point messages of bytes, matched by (source, dest, tag, channel) in order."""

    rank: int
    size: int

    def isend(self, buffer: Buffer, dest: int, tag: int, channel: int) -> Request:
        """Start to send; `buffer` must not change until the request is done."""

    def irecv(self, buffer: Buffer, source: int, tag: int, channel: int) -> Request:
        """Start to receive at most `len(buffer)` bytes; a shorter message fills the front."""

    def abort(self, status: int) -> None:
        """End all ranks of the run with an exit status; may not return."""


Check = Callable[[], None]


def wait_until(done: Callable[[], bool], check: Check = lambda: None) -> None:
    """Wait politely: a waiting rank leaves its processor to those that train.

    MPI's own waiting calls spin. Here the pauses grow to a millisecond, which is small against a
    visit and leaves a waiting rank under one percent of a core.

    Args:
        done: tests requests, so that they progress.
        check: called between tests; may raise to stop waiting.
    """
    pause_s = 20e-6
    while not done():
        check()
        time.sleep(pause_s)
        pause_s = min(1e-3, pause_s * 1.3)
