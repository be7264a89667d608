"""The configs of a run as rank 0 knows them: who they are, and what was decided on them.

Decisions are journalled in `decisions.jsonl`. What ranks must know of a config before they train it
is collected as news, which travel with the next orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mophpc.dimensions import Value
from mophpc.files import LineWriter
from mophpc.run.folder import RunFolder
from mophpc.schedule.plan import Fork
from mophpc.search.space import Config, name_config

News = dict[str, Any]


def learn_configs(configs: list[Config], news: Sequence[News]) -> None:
    """Take over new configs, and new hyperparameters of others, on a rank that was told of them."""
    for item in news:
        if "values" in item:
            config = Config(item["config_id"], item["values"], item["name"])
            if config.config_id == len(configs):
                configs.append(config)
            else:
                configs[config.config_id] = config


class Ledger:
    """Configs, by config_id, with what was decided on them.

    Args:
        configs: that there are at the beginning; this list grows and changes.
        folder: of the run.
        now: seconds since the run's start.
    """

    def __init__(self, configs: list[Config], folder: RunFolder, now: Callable[[], float]) -> None:
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

    def copy(
        self,
        forks: Sequence[Fork],
        sources: Sequence[int],
        values: Sequence[Mapping[str, Value]],
        num_shards: int,
    ) -> None:
        """Take copies of states that were made together.

        Args:
            forks: the copies, each of a config that has trained the state.
            sources: whose states were meant: such a config, or a copy that made no visit yet.
            values: hyperparameters that each goes on with.
            num_shards: of the run.
        """
        before = [self._trained_with(*both) for both in zip(forks, sources, strict=True)]
        for fork, own, old in zip(forks, values, before, strict=True):
            config = self.configs[fork.config_id]
            config = Config(config.config_id, dict(own), config.name)
            self.configs[fork.config_id] = config
            news: News = {"config_id": fork.config_id, "name": config.name, "values": dict(own)}
            news |= {"step": fork.step, "like": fork.source, "before": old}
            self._inherit(news, num_shards)
            self.tell(news)

    def _trained_with(self, fork: Fork, source: int) -> dict[str, Value]:
        """Return the hyperparameters that a state was trained with until now."""
        if fork.source == source:
            return dict(self.configs[source].values)
        last = [news for news in self.changes if news["config_id"] == source][-1]
        return dict(last["before"])

    def replay(self, changes: Sequence[News], num_shards: int) -> None:
        """Take over the copies of a run that is walked again."""
        for news in changes:
            config_id = news["config_id"]
            self.configs[config_id] = Config(config_id, news["values"], news["name"])
            self._inherit(news, num_shards)

    def _inherit(self, news: News, num_shards: int) -> None:
        entry = {
            "epoch": news["step"] // num_shards,
            "source": news["like"],
            "hyperparameters": dict(news["values"]),
        }
        self.lineage.setdefault(news["config_id"], []).append(entry)
        self.changes.append(news)

    def refuse(self, config_id: int, step: int, num_shards: int) -> None:
        """Forget the copies that a config got and could not go on from.

        It has the hyperparameters again that it was trained with. `changes` keep what was decided,
        since ranks that walk the plan again refuse it again.

        Args:
            config_id: the config.
            step: the visit that it could not make.
            num_shards: of the run.
        """
        made = self.lineage.get(config_id, [])
        kept = [entry for entry in made if entry["epoch"] * num_shards < step]
        if len(kept) == len(made):
            return
        self.lineage[config_id] = kept
        values = kept[-1]["hyperparameters"] if kept else self.first_values[config_id]
        name = self.configs[config_id].name
        self.configs[config_id] = Config(config_id, dict(values), name)

    def lineage_of(self, config_id: int) -> list[dict[str, Any]]:
        """Return what the results say of a config that got copies; nothing of others.

        The first entry has the hyperparameters that it began with.
        """
        copies = self.lineage.get(config_id, [])
        if not copies:
            return []
        first = {"epoch": 0, "source": None, "hyperparameters": self.first_values[config_id]}
        return [first, *copies]

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
