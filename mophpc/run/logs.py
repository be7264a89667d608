"""One log per rank; errors also go to standard error, in one line."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TextIO

from mophpc.run.folder import RunFolder


class _Short(logging.Formatter):
    """The message alone: the traceback is in the rank's log."""

    def format(self, record: logging.LogRecord) -> str:
        return f"mophpc: {record.getMessage()}"


class _File(logging.FileHandler):
    """A log that is lost where it cannot be written: what matters is said elsewhere, once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


class _Stream(logging.StreamHandler[TextIO]):
    """A stream that may be gone."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


def rank_logger(folder: RunFolder, rank: int) -> logging.Logger:
    """Return the logger of a rank, with its own file in the run folder."""
    logger = logging.getLogger(f"mophpc.rank{rank:04d}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    close_logger(logger)
    to_file = _File(folder.log(rank))
    to_file.setFormatter(
        logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    )
    to_stderr = _Stream()
    to_stderr.setLevel(logging.ERROR)
    to_stderr.setFormatter(_Short())
    logger.addHandler(to_file)
    logger.addHandler(to_stderr)
    return logger


def close_logger(logger: logging.Logger) -> None:
    """Put a rank's log on disk and let its file go."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with suppress(OSError):  # a full disk
            handler.close()
