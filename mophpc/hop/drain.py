"""A rank's output is drained: it has reached the launcher before all ranks are ended."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import termios
import time
from collections.abc import Sequence

READ_S = 0.5
"""So long the launcher may take to read what was written; it hangs, or is gone, if not."""
PASSED_ON_S = 0.02
"""And so long to write it on."""


def drain_output(descriptors: Sequence[int] = (1, 2)) -> None:
    """Wait until the launcher has read what this rank has written, half a second at most.

    MPI_Abort does not wait for it: what the launcher has not read by then may be lost, and what it
    reads later, Open MPI's writes behind a stray byte of its own words.

    Args:
        descriptors: of this process's output. Only in pipes it is seen what is not read yet.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    end_s = time.monotonic() + READ_S
    while any(map(_is_unread, descriptors)) and time.monotonic() < end_s:
        time.sleep(1e-3)
    time.sleep(PASSED_ON_S)


def _is_unread(descriptor: int) -> bool:
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return False
        count = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    except OSError:
        return False
    return int.from_bytes(count, sys.byteorder) > 0
