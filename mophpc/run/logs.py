"""One log per rank; errors also go to standard error, in one line."""

from __future__ import annotations

import logging

from mophpc.run.folder import RunFolder


class _Short(logging.Formatter):
    """The message alone: the traceback is in the rank's log."""

    def format(self, record: logging.LogRecord) -> str:
        return f"mophpc: {record.getMessage()}"


def rank_logger(folder: RunFolder, rank: int) -> logging.Logger:
    """Return the logger of a rank, with its own file in the run folder."""
    logger = logging.getLogger(f"mophpc.rank{rank:04d}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    close_logger(logger)
    to_file = logging.FileHandler(folder.log(rank))
    to_file.setFormatter(
        logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    )
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.ERROR)
    to_stderr.setFormatter(_Short())
    logger.addHandler(to_file)
    logger.addHandler(to_stderr)
    return logger


def close_logger(logger: logging.Logger) -> None:
    """Put a rank's log on disk and let its file go."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
