"""Where a method takes its configs from; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

from mophpc.dimensions import Value
from mophpc.search.draw import Row


class Source(Protocol):
    """Gives sets of hyperparameters, each once."""

    @property
    def learns(self) -> bool:
        """Whether scores decide what comes next, so that it should not all be taken at once."""

    def more(self, count: int) -> list[Row]:
        """Return up to so many that it has not given yet; fewer when there are no others left."""

    def learn(self, number: int, score: float) -> None:
        """Take the score of a set of hyperparameters, once.

        Args:
            number: its place among those that were given, from 0.
            score: less is better; infinite where it has diverged.
        """


class Rows:
    """Sets of hyperparameters in an order: listed, of a grid, or drawn, even without end."""

    learns = False

    def __init__(self, rows: Iterable[Mapping[str, Value]]) -> None:
        """Take sets of hyperparameters, each when it is asked for."""
        self._rows = iter(rows)

    def more(self, count: int) -> list[Row]:
        """Return up to so many that it has not given yet."""
        return [dict(row) for row in islice(self._rows, count)]

    def learn(self, number: int, score: float) -> None:
        """Learn nothing."""


class Intake:
    """Starts configs from a source, and tells it what the first score of each was."""

    def __init__(self, source: Source, most: int) -> None:
        """Take configs from a source.

        Args:
            source: gives them.
            most: so many at most.
        """
        self._source = source
        self._left = most
        self._held: list[Row] = []
        self._started = 0
        self._learnt: dict[int, None] = {}

    @property
    def started(self) -> int:
        """How many have been started; the next one's config id."""
        return self._started

    @property
    def to_come(self) -> int:
        """How many may still come at most."""
        return self._left + len(self._held)

    def take(self, count: int | None) -> Sequence[Row]:
        """Return up to so many new sets of hyperparameters; None: all."""
        held = self._held[:count]
        del self._held[:count]
        rows = held + self._fetch(None if count is None else count - len(held))
        self._started += len(rows)
        return rows

    def has_more(self) -> bool:
        """Whether another one will come; if so, it is held until it is taken."""
        if not self._held:
            self._held = self._fetch(1)
        return bool(self._held)

    def _fetch(self, count: int | None) -> list[Row]:
        wanted = self._left if count is None else min(count, self._left)
        if wanted <= 0:
            return []
        rows = self._source.more(wanted)
        self._left = self._left - len(rows) if len(rows) == wanted else 0
        return rows

    def learn(self, config_id: int, score: float) -> None:
        """Tell the source a config's score, unless it knows one."""
        if config_id not in self._learnt and config_id < self._started:
            self._learnt[config_id] = None
            self._source.learn(config_id, score)
