"""Every config makes all epochs."""

from __future__ import annotations

from collections.abc import Sequence

from mophpc.search.method import Decision, Result, Start
from mophpc.search.sources import Intake, Source


class Plain:
    """Trains each config of a source for all epochs.

    Where the source learns from scores, configs come as there is room for them, so that the later
    ones profit from the earlier ones; else all at once.
    """

    def __init__(self, source: Source, epochs: int, most: int) -> None:
        """Take configs from a source.

        Args:
            source: gives them.
            epochs: that each makes.
            most: so many configs at most.
        """
        self._intake = Intake(source, most)
        self._learns = source.learns
        self._epochs = epochs

    def ask(self, room: int) -> Sequence[Start]:
        """Return new configs."""
        rows = self._intake.take(room if self._learns else None)
        return [Start(row, self._epochs) for row in rows]

    def tell(self, result: Result) -> Sequence[Decision]:
        """Take a result, after which nothing is left to decide."""
        self._intake.learn(result.config_id, result.score)
        return ()
