"""One run at a time in a run folder: a lock that the system lets go of when rank 0 dies."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from mophpc.errors import RunFolderError

_PAUSE_S = 0.05


class Lock:
    """The lock of a run folder, held until it is closed or the process ends.

    Args:
        path: of the file that is locked; it is made where it is missing.
        patience_s: seconds to wait until it is free: a file server may not know for so long that
            the host is gone which had it.

    Raises:
        RunFolderError: another run has it.
    """

    def __init__(self, path: Path, patience_s: float = 0.0) -> None:
        self._fd = -1
        deadline_s = time.monotonic() + patience_s
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            while not self._take() and time.monotonic() < deadline_s:
                time.sleep(_PAUSE_S)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise RunFolderError(
                f"a run goes on in '{path.parent}'; wait for its end, or choose another run folder"
            ) from error
        except OSError:
            pass  # a file system without locks: nothing better can be had there

    def _take(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
