"""What trackers are told, by rank 0: each config and its end once, however records arrive."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from mophpc.run.ports import Tracking
from mophpc.search.space import Config


class Telling:
    """Tells trackers of a run's configs.

    Args:
        trackers: None where there are none.
        configs: by config_id; others may come.
        num_shards: visits of an epoch.
    """

    def __init__(
        self, trackers: Tracking | None, configs: Sequence[Config], num_shards: int
    ) -> None:
        self.trackers = trackers
        self._configs = configs
        self._num_shards = num_shards
        self._known = 0
        self._ended: set[int] = set()

    def catch_up(self) -> None:
        """Tell of configs that have come."""
        if self.trackers is not None:
            for config in self._configs[self._known :]:
                self.trackers.config(config.config_id, config.name, config.values)
            self._known = len(self._configs)

    def epoch(self, config_id: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Tell of an epoch."""
        if self.trackers is not None:
            self.catch_up()
            self.trackers.epoch(config_id, epoch, metrics)

    def final(
        self,
        config_id: int,
        record: Mapping[str, object] | None,
        epochs: Container[int],
        best: float | None,
        *,
        at_last: bool = False,
    ) -> None:
        """Tell that a config has ended, once its last epoch has been heard of.

        Args:
            config_id: of the config.
            record: that says how it ended; None: it has not.
            epochs: that have been heard of.
            best: its best value of the objective.
            at_last: no record will come any more.
        """
        if self.trackers is None or record is None or config_id in self._ended:
            return
        steps = record["steps"]
        last = steps // self._num_shards - 1 if isinstance(steps, int) else -1
        if at_last or last < 0 or last in epochs:
            self._ended.add(config_id)
            self.catch_up()
            self.trackers.final(config_id, str(record["status"]), best)
