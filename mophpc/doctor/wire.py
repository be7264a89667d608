"""What lies between the ranks: latency, bandwidth against memory, and what compute hides."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from mophpc.hop.collectives import Group
from mophpc.hop.link import TINY_BYTES, Ring
from mophpc.hop.progress import Progress
from mophpc.hop.transport import Transport

BYTES = 64 << 20
ROUNDS = 5
DEADLINE_S = 60.0


class Deadline:
    """A check that raises when its time is over.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds
        self._seconds = seconds

    def __call__(self) -> None:
        """Look at the clock.

        Raises:
            TimeoutError: the time is over.
        """
        if time.monotonic() > self._end_s:
            raise TimeoutError(f"a rank did not answer within {self._seconds:g} s")


def measure_wire(transport: Transport, group: Group) -> dict[str, Any]:
    """Collective. Return what this rank measured with the ranks beside it, all at the same time.

    Returns:
        latency_s: of a hop of a few bytes.
        bytes_per_s: of a hop of 64 MiB to the next rank, while all ranks do so.
        memcpy_bytes_per_s: of a copy of as many bytes in memory, while all ranks do so.
        hidden, hidden_alone: share of such a hop that three times as long a computation hides, with
            the runtime's progress and with none.

    Raises:
        HopError: a message was lost or mixed up.
        TimeoutError: a rank does not answer.
    """
    ring = Ring(transport, group, BYTES)
    tiny_s = ring.time(TINY_BYTES, warm_up=group.size, rounds=3 * ROUNDS)
    hop_s = ring.time(BYTES, warm_up=2, rounds=ROUNDS)
    return {
        "latency_s": tiny_s,
        "bytes_per_s": BYTES / hop_s,
        "memcpy_bytes_per_s": BYTES / _copy_s(group),
        "hidden": _hidden(ring, transport, hop_s, progresses=True),
        "hidden_alone": _hidden(ring, transport, hop_s, progresses=False),
    }


def _copy_s(group: Group) -> float:
    """Return the least seconds of a copy, at the same time on all ranks."""
    source = np.ones(BYTES, dtype=np.uint8)
    target = np.zeros(BYTES, dtype=np.uint8)
    group.barrier()
    found = []
    for _ in range(ROUNDS):
        begin_s = time.perf_counter()
        np.copyto(target, source)
        found.append(time.perf_counter() - begin_s)
    return min(found)


def _hidden(ring: Ring, transport: Transport, hop_s: float, *, progresses: bool) -> float:
    """Return the share of a hop that a computation of three times its length hides."""

    def compute(test: Callable[[], bool]) -> None:
        progress: AbstractContextManager[Any] = nullcontext()
        own = Progress(test, threaded=transport.threaded) if progresses else None
        try:
            with own or progress:
                end_s = time.perf_counter() + 3 * hop_s
                matrix = np.ones((64, 64), dtype=np.float32)
                while time.perf_counter() < end_s:
                    matrix @ matrix
                    if own is not None:
                        own.between()
        finally:
            if own is not None:
                own.end()

    exposed_s = ring.exposed(BYTES, compute)
    return min(1.0, max(0.0, 1.0 - exposed_s / hop_s))
