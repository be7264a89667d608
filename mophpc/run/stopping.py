"""Signals become an error at the next safe point."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from mophpc.errors import InterruptError, LostError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """While entered, SIGINT and SIGTERM are noted; `check` raises after the first.

    A second signal acts as it would have without us.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._noted_s = 0.0
        self._loss: LostError | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    def check(self) -> None:
        """Return, or raise if a signal came.

        Raises:
            InterruptError: it did.
            LostError: `end` was called.
        """
        if self._loss is not None:
            raise self._loss
        if self._signal is not None:
            raise InterruptError(f"interrupted by {signal.Signals(self._signal).name}")

    @property
    def is_terminated(self) -> bool:
        """Whether SIGTERM came."""
        return self._signal == signal.SIGTERM

    def end(self, loss: LostError) -> None:
        """Let `check` raise this from now on; other threads may call it."""
        self._loss = loss

    @property
    def signalled_s(self) -> float | None:
        """How many seconds ago the signal came; None: none came."""
        return None if self._signal is None else time.monotonic() - self._noted_s

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal, self._noted_s = number, time.monotonic()
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: not set from Python, and cannot be put back
                signal.signal(number, handler)
        self._before = {}
