"""The process of one tracker: reads records from its standard input, and tells the library.

So a library that blocks, crashes, hooks into the exit or takes the interpreter for itself does all
that here, and not on rank 0.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from mophpc.report.trackers.protocol import About, Tracker

CLASSES = {"tensorboard": "TensorBoard", "mlflow": "Mlflow", "wandb": "Wandb"}

NICE = 10
"""The ranks' processors are theirs."""
LAST_S = 10.0
"""So long may it take to end after rank 0 has gone."""


def watch(parent: int) -> None:
    """End this process some time after rank 0's, whatever the library does."""
    while os.getppid() == parent:
        time.sleep(1.0)
    time.sleep(LAST_S)
    os._exit(1)


def tell(name: str, lines: Iterable[str], done: Callable[[], None] = lambda: None) -> None:
    """Tell a tracker what the lines say, the first of which is about the run.

    Args:
        name: of the tracker.
        lines: records as JSON.
        done: called after each.
    """
    tracker: Tracker | None = None
    has_ended = False
    for line in lines:
        record: dict[str, Any] = json.loads(line)
        kind = record.pop("kind")
        if kind == "begin":
            module = importlib.import_module(f"mophpc.report.trackers.{name}")
            tracker = getattr(module, CLASSES[name])(About(**record))
        elif tracker is not None:
            getattr(tracker, kind)(*record["facts"])
            has_ended = has_ended or kind == "end"
        done()
    if tracker is not None and not has_ended:
        tracker.end("failed", None)  # rank 0 has gone without a word


def main() -> None:
    """Tell the tracker that the command line names."""
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 says when it is over
    threading.Thread(target=watch, args=(os.getppid(),), daemon=True).start()
    signs = os.dup(1)
    os.dup2(2, 1)  # what a library prints is for the log
    os.set_blocking(signs, False)

    def done() -> None:
        with suppress(OSError):  # rank 0 looks only at the end
            os.write(signs, b".")

    tell(sys.argv[1], sys.stdin, done)


if __name__ == "__main__":
    main()
