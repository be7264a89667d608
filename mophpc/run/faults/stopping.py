"""Signals that ask the run to stop are noted, and looked at where it is safe."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from mophpc.errors import InterruptError, LostError

SIGNALS = (signal.SIGINT, signal.SIGTERM)

FORCED = 130
"""Exit status after a second SIGINT, as of shells."""


class StopFlag:
    """While entered, SIGINT, SIGTERM and one more signal are noted.

    `check` raises after the first, until visits begin: then it is for `Halt` to see. A second
    SIGINT ends the process at once.

    Args:
        also: names of further signals, as `SIGUSR1`.
        is_last: nothing follows in this process. MPI and Python take a while to end, and the exit
            status says by then how the run did: signals change nothing from the exit on.
    """

    def __init__(self, also: Sequence[str] = (), *, is_last: bool = False) -> None:
        self._is_last = is_last
        self._numbers = dict.fromkeys([*SIGNALS, *(signal.Signals[name] for name in also)])
        self._signal: int | None = None
        self._noted_s = 0.0
        self._loss: LostError | None = None
        self._before: dict[int, Any] = {}
        self.is_orderly = False
        """Whether whoever trains stops in an orderly way, so that `check` must not raise."""

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            # At once: a signal between one handler and the next would end the process.
            handler = signal.SIG_IGN if self._is_last else before
            if handler is not None:  # None: not set from Python, and cannot be put back
                signal.signal(number, handler)
        self._before = {}

    def check(self) -> None:
        """Return, or raise if a signal came and nothing is trained yet.

        Raises:
            InterruptError: it did.
            LostError: `end` was called.
        """
        if self._loss is not None:
            raise self._loss
        if self._signal is not None and not self.is_orderly:
            raise InterruptError(f"interrupted by {self.signal_name}")

    @property
    def signal_name(self) -> str | None:
        """The first signal that came."""
        return None if self._signal is None else signal.Signals(self._signal).name

    @property
    def is_terminated(self) -> bool:
        """Whether SIGTERM came."""
        return self._signal == signal.SIGTERM

    def end(self, loss: LostError) -> None:
        """Let `check` raise this from now on; other threads may call it."""
        self._loss = loss

    @property
    def loss(self) -> LostError | None:
        """What `end` was told."""
        return self._loss

    def go_on(self) -> None:
        """Forget the rank that is lost: the others go on without it."""
        self._loss, self.is_orderly = None, False

    @property
    def signalled_s(self) -> float | None:
        """How many seconds ago the signal came; None: none came."""
        return None if self._signal is None else time.monotonic() - self._noted_s

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            os.write(2, b"mophpc: interrupted twice: ends at once; the last states may be lost\n")
            os._exit(FORCED)
        if self._signal is None:
            self._signal, self._noted_s = number, time.monotonic()
