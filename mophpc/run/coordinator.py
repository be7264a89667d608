"""Rank 0's second role: it takes the ranks' records, keeps the journal and shows progress.

It is on no hop's path: a rank never waits for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mophpc.experiment import Objective
from mophpc.files import LineWriter
from mophpc.run.folder import RunFolder
from mophpc.run.ports import Tracking, View
from mophpc.schedule.plan import Plan, to_json
from mophpc.search.space import Config

Record = dict[str, Any]


@dataclass(slots=True)
class History:
    """What is known of one config."""

    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics by epoch. Epochs end on different ranks, so a later one may be heard of first."""
    final: Record | None = None
    best: float | None = None
    best_epoch: int | None = None

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last epoch; empty where none has ended."""
        return self.epochs[max(self.epochs)] if self.epochs else {}


class Coordinator:
    """Takes the records of all ranks."""

    def __init__(
        self,
        plan: Plan,
        configs: tuple[Config, ...],
        objective: Objective,
        folder: RunFolder,
        view: View,
        trackers: Tracking | None = None,
    ) -> None:
        self.plan = plan
        self.configs = configs
        self.objective = objective
        self.histories = [History() for _ in configs]
        self.predictions: list[dict[str, float]] = []
        self.ranks_done = 0
        self.ranks: dict[int, Record] = {}
        self._folder = folder
        self._view = view
        self._journal = LineWriter(folder.metrics)
        self._visits: dict[tuple[int, int], Record] = {}
        self.trackers = trackers
        self._told_finals: set[int] = set()
        if trackers is not None:
            for config in configs:
                trackers.config(config.config_id, config.name, config.values)
        self._left = 0  # visits that a diverged config will not make

    def handle(self, record: Record) -> None:
        """Take one record of any rank."""
        kind = record["kind"]
        if kind == "visit":
            self._take_visit(record)
        elif kind == "epoch":
            self._take_epoch(record)
        elif kind == "final":
            self.histories[record["config"]].final = record
            self._tell_final(record["config"])
        elif kind == "rank":
            self.ranks[record["rank"]] = record
            self.ranks_done += 1

    @property
    def all_done(self) -> bool:
        """Whether every rank has ended its list."""
        return self.ranks_done == self.plan.num_ranks

    @property
    def usage(self) -> list[dict[str, float]]:
        """What each rank that has ended spent its time on, in seconds, by rank."""
        return [self.ranks[rank]["spent"] for rank in sorted(self.ranks)]

    def replan(self, plan: Plan, predictions: list[dict[str, float]]) -> None:
        """Take the plan over that was really walked, and what each renewal predicted."""
        self.plan = plan
        self.predictions = predictions

    def _take_visit(self, record: Record) -> None:
        self._visits[record["config"], record["step"]] = record
        if record["diverged"]:
            self._left += self.plan.num_steps - record["step"] - 1
            name = self.configs[record["config"]].name
            where = f"epoch {record['epoch']}, shard {record['shard']}"
            self._view.note(f"{name} diverged (loss not finite) in {where}; the others go on")
        self._view.visited(record["end"], len(self._visits) + self._left)

    def _take_epoch(self, record: Record) -> None:
        config, metrics = self.configs[record["config"]], record["metrics"]
        history = self.histories[config.config_id]
        history.epochs[record["epoch"]] = metrics
        line = {"config_id": config.config_id, "config": config.name, "epoch": record["epoch"]}
        self._journal.write(line | {"rank": record["rank"]} | metrics)
        if self.trackers is not None:
            self.trackers.epoch(config.config_id, record["epoch"], metrics)
        value = metrics.get(self.objective.metric)
        if value is not None and self._beats(value, record["epoch"], history):
            history.best, history.best_epoch = value, record["epoch"]
        self._tell_final(config.config_id)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k != "seconds")
        self._view.evaluated(f"{config.name} epoch {record['epoch']}: {shown}", self._best_so_far())

    def _tell_final(self, config_id: int, *, at_last: bool = False) -> None:
        """Tell trackers once that a config has ended, when its epochs have all been heard of."""
        history = self.histories[config_id]
        if self.trackers is None or history.final is None or config_id in self._told_finals:
            return
        if at_last or len(history.epochs) >= history.final["steps"] // self.plan.num_shards:
            self._told_finals.add(config_id)
            self.trackers.final(config_id, history.final["status"], history.best)

    def _beats(self, value: float, epoch: int, history: History) -> bool:
        """Whether an epoch is the config's best so far; the first of equals, whenever heard of."""
        if history.best_epoch is not None and value == history.best:
            return epoch < history.best_epoch
        return self._better(value, history.best)

    def _better(self, value: float, other: float | None) -> bool:
        if math.isnan(value):
            return False
        return other is None or (value > other if self.objective.maximise else value < other)

    def best(self) -> int | None:
        """Return the config with the best objective so far; the first of equals.

        One that diverged is none of them, whatever it reached before.
        """
        found: int | None = None
        for config_id, history in enumerate(self.histories):
            left = history.final is not None and history.final["status"] == "diverged"
            if history.best is None or left:
                continue
            if found is None or self._better(history.best, self.histories[found].best):
                found = config_id
        return found

    def _best_so_far(self) -> str:
        best = self.best()
        if best is None:
            return ""
        return f"{self.configs[best].name} {self.objective.metric} {self.histories[best].best:.4f}"

    def visit_times(self) -> dict[tuple[int, int], tuple[float, float]]:
        """Return start and end (s) of the visits made, by (config, step)."""
        return {key: (record["start"], record["end"]) for key, record in self._visits.items()}

    def write_plan(self) -> None:
        """Write the schedule, with real times for the visits that were made."""
        times = self.visit_times()
        record = to_json(self.plan)
        for which, name in enumerate(("real_start_s", "real_end_s")):
            record[name] = [
                [
                    times[key][which] if (key := (v.config_id, v.step)) in times else None
                    for v in own
                ]
                for own in self.plan.visits_by_rank
            ]
        record["renewals"] = self.predictions
        record["configs"] = [config.name for config in self.configs]
        self._folder.write_plan(record)

    def route(self, config_id: int) -> list[dict[str, int]]:
        """Return the visits that a config made, in order."""
        steps = range(self.plan.num_steps)
        made = [self._visits.get((config_id, step)) for step in steps]
        return [
            {"epoch": r["epoch"], "shard": r["shard"], "rank": r["rank"]}
            for r in made
            if r is not None
        ]

    def close(self) -> None:
        """Put the journal on disk."""
        for config in self.configs:
            self._tell_final(config.config_id, at_last=True)
        self._journal.close()
