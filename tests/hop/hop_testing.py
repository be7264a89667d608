"""Ranks that are threads, for tests of what happens between ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.transport import Request, Transport, wait_until

Body = Callable[[Transport], Any]
LIMIT_S = 30.0


def in_threads(size: int, body: Body) -> list[Any]:
    """Run `body` on every rank; return by rank what each returned or raised."""
    world = LocalWorld(size)
    outcomes: list[Any] = [TimeoutError("the rank did not end")] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = body(LocalTransport(world, rank))
        except Exception as error:
            outcomes[rank] = error
            if not isinstance(error, ExpectedError):
                world.failed = True

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    return outcomes


class ExpectedError(Exception):
    """A test raises it on one rank without ending the others."""


def all_well(outcomes: list[Any]) -> None:
    """Raise the first error that is not the echo of another rank's."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    for error in sorted(errors, key=lambda e: type(e).__name__ == "PeerError"):
        raise error


def wait(*requests: Request) -> None:
    for request in requests:
        wait_until(request.test)


def data(*values: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(values, dtype=np.uint8)


def noise(seed: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
