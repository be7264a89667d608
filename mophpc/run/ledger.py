"""The configs of a run as rank 0 knows them: who they are, and what was decided on them.

Decisions are journalled in `decisions.jsonl`. What ranks must know of a config before they train it
is collected as news, which travel with the next orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mophpc.dimensions import Value
from mophpc.files import LineWriter
from mophpc.run.folder import RunFolder
from mophpc.schedule.plan import Fork
from mophpc.search.space import Config, name_config

News = dict[str, Any]


class Ledger:
    """Configs, by config_id, with what was decided on them.

    Args:
        configs: that there are at the beginning; this list grows and changes.
        folder: of the run.
        now: seconds since the run's start.
    """

    def __init__(
        self, configs: list[Config], folder: RunFolder, now: Callable[[], float]
    ) -> None:
        self.configs = configs
        self.first_values = [dict(config.values) for config in configs]
        """The hyperparameters that each config began with."""
        self.lineage: dict[int, list[dict[str, Any]]] = {}
        """Of each config that got a copy: before which epoch, of which config, and the
        hyperparameters from then on."""
        self.changes: list[News] = []
        """The same for ranks that walk the plan again."""
        self._folder = folder
        self._now = now
        self._news: list[News] = []
        self._journal: LineWriter | None = None

    def add(self, values: Mapping[str, Value]) -> Config:
        """Take one more config."""
        config = name_config(len(self.configs), values)
        self.configs.append(config)
        self.first_values.append(dict(values))
        self.tell({"config_id": config.config_id, "name": config.name, "values": dict(values)})
        return config

    def copy(self, forks: list[Fork], values: list[Mapping[str, Value]], num_shards: int) -> None:
        """Take copies of states that were made together, with hyperparameters of their own."""
        before = [dict(self.configs[fork.source].values) for fork in forks]
        for fork, own, old in zip(forks, values, before, strict=True):
            config = self.configs[fork.config_id]
            config = Config(config.config_id, dict(own), config.name)
            self.configs[fork.config_id] = config
            entry = {"epoch": fork.step // num_shards, "source": fork.source}
            entry |= {"hyperparameters": dict(own)}
            self.lineage.setdefault(fork.config_id, []).append(entry)
            news = {"config_id": fork.config_id, "name": config.name, "values": dict(own)}
            news |= {"step": fork.step, "like": fork.source, "before": old}
            self.changes.append(news)
            self.tell(news)

    def tell(self, news: News) -> None:
        """Let the ranks know something of a config."""
        self._news.append(news)

    def take_news(self) -> tuple[News, ...]:
        """Return what ranks do not know yet."""
        found, self._news = tuple(self._news), []
        return found

    def note(self, kind: str, config_id: int, **facts: Any) -> None:
        """Journal a decision."""
        if self._journal is None:
            self._journal = LineWriter(self._folder.decisions)
        name = self.configs[config_id].name
        line = {"at": self._now(), "kind": kind, "config_id": config_id, "config": name}
        self._journal.write(line | facts)

    def close(self) -> None:
        """Put the journal on disk."""
        if self._journal is not None:
            self._journal.close()
