"""How far a rank's clock is from rank 0's: a few round trips, of which the shortest counts.

After Cristian, "Probabilistic clock synchronization" (Distributed Computing 3, 1989): rank 0's
answer was made at some time between a rank's question and the answer's arrival. The middle of the
two is the best guess, and half of what lies between them is the most that it can be wrong by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mophpc.hop.collectives import Group
from mophpc.hop.transport import CONTROL, Request, Transport, wait_until

ROUNDS = 8
"""The first one includes the wait for rank 0, which answers one rank after the other."""

_ASK_TAG, _ANSWER_TAG = 3, 4


@dataclass(frozen=True, slots=True)
class Clock:
    """What is added to a rank's times to have rank 0's, and how wrong that may be, in seconds."""

    offset_s: float
    error_s: float


def compare_clocks(transport: Transport, group: Group, now: Callable[[], float]) -> Clock:
    """Collective. Return how this rank's clock is to be read on rank 0's.

    Args:
        transport: of this rank.
        group: all ranks.
        now: reads this rank's clock, in seconds.
    """
    if group.rank == 0:
        for rank in range(1, group.size):
            for turn in range(ROUNDS):
                _answer(transport, group, rank, now, patient=turn == 0)
        return Clock(0.0, 0.0)
    found = [_ask(transport, group, now, patient=turn == 0) for turn in range(ROUNDS)]
    return min(found, key=lambda clock: clock.error_s)


def _answer(
    transport: Transport, group: Group, rank: int, now: Callable[[], float], *, patient: bool
) -> None:
    question = np.zeros(1, dtype=np.uint8)
    _wait(transport.irecv(question, rank, _ASK_TAG, CONTROL), group, patient=patient)
    answer = np.array([now()], dtype="<f8").view(np.uint8)
    _wait(transport.isend(answer, rank, _ANSWER_TAG, CONTROL), group, patient=False)


def _ask(transport: Transport, group: Group, now: Callable[[], float], *, patient: bool) -> Clock:
    answer = np.zeros(8, dtype=np.uint8)
    coming = transport.irecv(answer, 0, _ANSWER_TAG, CONTROL)
    asked_s = now()
    question = transport.isend(np.zeros(1, dtype=np.uint8), 0, _ASK_TAG, CONTROL)
    _wait(coming, group, patient=patient)
    heard_s = now()
    _wait(question, group, patient=False)
    told_s = float(answer.view("<f8")[0])
    return Clock(told_s - (asked_s + heard_s) / 2, (heard_s - asked_s) / 2)


def _wait(request: Request, group: Group, *, patient: bool) -> None:
    """Wait; without patience, in looks that only let others run, since a sleep costs accuracy."""
    if patient:
        wait_until(request.test, group.check)
        return
    while not request.test():
        group.check()
        time.sleep(0)
