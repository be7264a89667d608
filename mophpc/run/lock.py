"""One run at a time in a run folder: a lock that the system lets go of when rank 0 dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from mophpc.errors import RunFolderError


class Lock:
    """The lock of a run folder, held until it is closed or the process ends.

    Args:
        path: of the file that is locked; it is made where it is missing.

    Raises:
        RunFolderError: another run has it.
    """

    def __init__(self, path: Path) -> None:
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise RunFolderError(
                f"a run goes on in '{path.parent}'; wait for its end, or choose another run folder"
            ) from error
        except OSError:
            pass  # a file system without locks: nothing better can be had there

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
