"""Messages move while the rank trains: MPI moves them in its calls, and nowhere else.

The training calls it between two minibatches. Where the MPI allows calls of several threads (MPI
4.1, section 11.6.1, MPI_THREAD_MULTIPLE), a thread does so too: while bytes flow, and now and then
in minibatches that are long. Each time it takes Python's lock from the training, which costs as
much as several small operators: looking every millisecond makes small minibatches much longer.
So do looks by the training itself, each a round of all that MPI looks after. While no bytes flow,
the training looks ever more seldom, and the thread only where the training has not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

PAUSE_S = 1e-3
"""Between two looks at the messages while training, at least."""
FIRST_S = 5e-3
"""Before the training's first look, where a thread helps: a rank that has just looked, and waited,
gains little by it, and where ranks share a core, MPI gives it up in each look."""
FLOW_PAUSE_S = 50e-6
"""The thread's, while bytes flow: what is to be moved must be moved, and the training goes on
beside it."""
QUIET, REST_S = 10, 50e-3
"""Pauses are else a tenth of the time since bytes flowed or the training began, and this at most:
who waits for an answer waits for a small part of what it has waited for."""
LEAST_QUIET = 1
"""The same where ten and more ranks share a core: a pause is as long as that time. A look takes the
core from a rank that trains then, and who waits for an answer waits for the core anyway."""
THREAD_PAUSES = 1.25
"""The thread looks where nobody has for so many pauses: a training of small minibatches has by
then, and over a slow link more is much."""
END_S = 10.0


class Progress:
    """Looks after messages while this rank trains; used as `with progress: train()`.

    Args:
        step: lets messages progress; returns whether bytes flow. Called under `lock`, by the
            thread or by who trains.
        threaded: whether a thread may call it.
        begin: called once by that thread.
        crowding: how many ranks there are for each core that they may use; below 1 it counts as 1.
    """

    def __init__(
        self,
        step: Callable[[], bool],
        *,
        threaded: bool,
        begin: Callable[[], None] = lambda: None,
        crowding: float = 1.0,
    ) -> None:
        self.lock = threading.RLock()
        """Held by who touches what `step` touches, while training."""
        self._step = step
        self._begin = begin
        self._quiet = max(min(QUIET, LEAST_QUIET), QUIET / max(1.0, crowding))
        self._due_s = self._looked_s = self._quiet_since_s = 0.0
        self._training = threading.Event()
        self._flowing = threading.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if threaded:
            self._thread = threading.Thread(target=self._look_after, name="progress", daemon=True)
            self._thread.start()

    def __enter__(self) -> Progress:
        """Begin to train."""
        self._quiet_since_s = self._looked_s = time.perf_counter()
        if self._thread is None:  # the pauses of the training before are not this one's
            self._due_s = min(self._due_s, self._quiet_since_s + PAUSE_S)
        else:
            self._due_s = self._quiet_since_s + FIRST_S
        self._training.set()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        """Rest; what the training raised comes before what the messages did."""
        self._training.clear()
        with self.lock:  # the thread is not in a step any more
            pass
        if error is None:
            self._raise()
        return False

    def between(self) -> None:
        """Called after each minibatch.

        Raises:
            MophpcError: what the messages raised, on this thread or the other.
        """
        self._raise()
        if time.perf_counter() < self._due_s:
            return
        if self.lock.acquire(blocking=False):  # else the thread is at it
            try:
                self._look()
            finally:
                self.lock.release()

    def end(self) -> None:
        """Let go of the thread."""
        self._ended = True
        self._training.set()
        self._flowing.set()
        if self._thread is not None:
            self._thread.join(END_S)  # MPI may hang in it when another rank has died

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _look(self) -> None:
        """Let messages progress, under the lock."""
        flows = self._step()
        now_s = self._looked_s = time.perf_counter()
        if flows:
            self._quiet_since_s = now_s
            self._flowing.set()
        else:
            self._flowing.clear()
        self._due_s = now_s + self._pause_s(now_s)

    def _pause_s(self, now_s: float) -> float:
        """Return how long messages may be left alone."""
        return min(REST_S, max(PAUSE_S, (now_s - self._quiet_since_s) / self._quiet))

    def _pause(self) -> None:
        """Let the training go on, until it is the thread's turn to look."""
        if self._flowing.is_set():
            time.sleep(FLOW_PAUSE_S)
            return
        woken = False
        while not woken and not self._ended:
            now_s = time.perf_counter()
            left_s = self._looked_s + THREAD_PAUSES * self._pause_s(now_s) - now_s
            if left_s <= 0.0:
                return
            woken = self._flowing.wait(left_s)

    def _look_after(self) -> None:
        self._begin()
        while not self._ended:
            self._training.wait()
            self._pause()  # first: a visit that is over by then needs no help
            with self.lock:
                if not self._training.is_set() or self._ended:
                    continue
                try:
                    self._look()
                except BaseException as error:  # raised again by the thread that trains
                    self._error = error
                    return
