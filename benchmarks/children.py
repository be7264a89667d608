"""Processes that a benchmark starts, and those that they leave behind: none stays after its end."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import NoReturn

import psutil

PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """From now on: what a child leaves behind becomes a child of this process.

    mpirun's ranks can outlive it. SIGTERM ends this process as an error would, so that whoever has
    started others can end them with `stop_all`.
    """
    signal.signal(signal.SIGTERM, _leave)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stop_all() -> None:
    """End all descendants: those that are asked to and do not are killed."""
    found = psutil.Process().children(recursive=True)
    for process in found:
        try:
            process.terminate()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(found, timeout=5)
    for process in alive + psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.Error:
            continue


def _leave(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only once: what cleans up is not to be cut off
    sys.exit(143)
