"""What a hop needs of a message-passing system; MPI and its in-process twin provide it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

Buffer = np.ndarray[Any, np.dtype[np.uint8]]

HOPS, RESTS, ANSWERS, AGAIN, REPORTS, ORDERS, CONTROL, STOPS, KEPT, BEATS = range(10)
"""Channels: messages on one are never matched by receives on another (communicators in MPI)."""
NUM_CHANNELS = 10


class Request(Protocol):
    """A message under way."""

    def test(self) -> bool:
        """Let the message progress; return whether its buffer may be used again.

        Raises:
            HopError: the peer or the library failed.
        """

    def cancel(self) -> None:
        """Give up a receive that nobody will send to."""


class Transport(Protocol):
    """Point-to-point messages of bytes, matched by (source, dest, tag, channel) in order."""

    rank: int
    size: int
    threaded: bool
    """Whether several threads may call at the same time, so that one can look after messages."""
    takes_devices: bool
    """Whether what is sent may be in a device's memory, if the library can."""

    def isend(self, buffer: Buffer, dest: int, tag: int, channel: int) -> Request:
        """Start to send; `buffer` must not change until the request is done."""

    def irecv(self, buffer: Buffer, source: int, tag: int, channel: int) -> Request:
        """Start to receive at most `len(buffer)` bytes; a shorter message fills the front."""

    def test_any(self, requests: Sequence[Request]) -> int | None:
        """Let messages progress, once for all; return the index of one that is done, if any is.

        Args:
            requests: of this transport; none of them was done at the last test.

        Raises:
            HopError: a peer or the library failed.
        """

    @property
    def survives(self) -> bool:
        """Whether ranks can go on when another one dies."""

    def all_well(self, *, is_well: bool) -> bool:
        """Collective among the ranks that live. Return whether none is lost, and all say so."""

    def survivors(self) -> Transport:
        """Collective among the ranks that live. Return the transport that connects them."""

    def launched_as(self) -> list[int]:
        """Return by rank what its number was at the launch."""

    def abort(self, status: int) -> None:
        """End all ranks of the run with an exit status; may not return."""


Check = Callable[[], None]


LEAST_PAUSE_S, MOST_PAUSE_S = 20e-6, 1e-3


def _never() -> bool:
    return False


def wait_until(
    done: Callable[[], bool], check: Check = lambda: None, flows: Callable[[], bool] = _never
) -> None:
    """Wait politely: a waiting rank leaves its processor to those that train.

    MPI's own waiting calls spin. Here the pauses are a twentieth of the time waited so far, up to
    a millisecond, which is small against a visit and leaves a waiting rank under one percent of a
    core. While bytes flow there are none: MPI moves them in our calls, and nowhere else.

    Args:
        done: tests requests, so that they progress.
        check: called between tests; may raise to stop waiting.
        flows: whether bytes were moving just now.
    """
    begun_s = time.perf_counter()
    while not done():
        check()
        if flows():
            os.sched_yield()
            continue
        waited_s = time.perf_counter() - begun_s
        time.sleep(min(MOST_PAUSE_S, max(LEAST_PAUSE_S, waited_s / 20)))
