"""Rank 0's second role: it takes the ranks' records, keeps the journal and shows progress.

It is on no hop's path: a rank never waits for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mophpc.experiment import Objective
from mophpc.files import LineWriter
from mophpc.run.folder import RunFolder
from mophpc.run.ports import Tracking, View
from mophpc.run.rank0.ledger import Ledger
from mophpc.run.rank0.status import Progress, Row, StatusFile
from mophpc.run.rank0.telling import Telling
from mophpc.run.recovery.resume import Resumption
from mophpc.schedule.plan import Plan, to_json
from mophpc.schedule.simulate import Prediction, predicted, time_left_s
from mophpc.search.space import Config
from mophpc.status_file import Standing

Record = dict[str, Any]


@dataclass(slots=True)
class History:
    """What is known of one config."""

    epochs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Metrics by epoch. Epochs end on different ranks, so a later one may be heard of first."""
    final: Record | None = None
    best: float | None = None
    best_epoch: int | None = None
    has_begun: bool = False

    @property
    def count(self) -> int:
        """Whole epochs that its state has made, those of a config that it is a copy of included."""
        return max(self.epochs, default=-1) + 1

    @property
    def last(self) -> dict[str, float]:
        """Metrics of the last epoch; empty where none has ended."""
        return self.epochs[max(self.epochs)] if self.epochs else {}


class Coordinator:
    """Takes the records of all ranks."""

    def __init__(
        self,
        plan: Plan,
        ledger: Ledger,
        objective: Objective,
        folder: RunFolder,
        view: View,
        trackers: Tracking | None = None,
    ) -> None:
        self.plan = plan
        self.ledger = ledger
        self.planned_visits = plan.num_visits
        self.ends: Sequence[int] | None = None
        """By config, the step before which it ends at the latest; None: all make all epochs."""
        self.space: Record = {}
        """That configs were made from, in plain values; for whoever walks the plan again."""
        self.objective = objective
        self._histories: list[History] = []
        self.predictions: list[dict[str, float]] = []
        self.ranks_done = 0
        self.ranks: dict[int, Record] = {}
        self._folder = folder
        self._view = view
        self._journal = LineWriter(folder.metrics)
        self._visits: dict[tuple[int, int], Record] = {}
        self._steps: dict[int, list[int]] = {}
        self.telling = Telling(trackers, ledger.configs, plan.num_shards)
        self.telling.catch_up()
        self.waits: Callable[[int], bool] = lambda _: False
        """Says whether a config waits until somebody decides."""
        self._earlier: dict[int, list[dict[str, int]]] = {}
        self._written: set[tuple[int, int]] = set()  # (config, epoch) that the journal has
        self._left = 0  # visits that a diverged config will not make
        self._prediction: Prediction | None = None
        self._begun_s = time.monotonic()
        self._end_s: float | None = None
        self.status = StatusFile(folder.status, self.progress, view.warn)

    def recall(self, earlier: Resumption) -> None:
        """Take over what a run that goes on has done before it was cut off."""
        self._written |= earlier.written
        for config_id in range(len(self.configs)):
            route = earlier.route(config_id)
            if route:
                self._earlier[config_id] = route
                self.histories[config_id].has_begun = True
            made = earlier.steps[config_id] // earlier.num_shards
            for epoch in range(made):
                metrics = earlier.metrics.get((config_id, epoch))
                if metrics is not None:
                    last = earlier.told.visits[config_id].get((epoch + 1) * earlier.num_shards - 1)
                    self._write_epoch(config_id, epoch, -1 if last is None else last.rank, metrics)
                    self._learn(config_id, epoch, metrics)
            final = earlier.finals.get(config_id)
            if final is not None:
                self._take_final(config_id, final)
        self.planned_visits += self.earlier_visits

    @property
    def earlier_visits(self) -> int:
        """Visits that were made before the run was cut off, and count."""
        return sum(map(len, self._earlier.values()))

    @property
    def configs(self) -> Sequence[Config]:
        """By config_id; others may come."""
        return self.ledger.configs

    @property
    def histories(self) -> list[History]:
        """By config_id."""
        while len(self._histories) < len(self.configs):
            self._histories.append(History())
        return self._histories

    def metrics(self) -> dict[tuple[int, int], dict[str, float]]:
        """Return what was recorded so far, by (config, epoch)."""
        return {
            (config_id, epoch): metrics
            for config_id, history in enumerate(self.histories)
            for epoch, metrics in history.epochs.items()
        }

    def handle(self, record: Record) -> None:
        """Take one record of any rank."""
        kind = record["kind"]
        if kind == "visit":
            self._take_visit(record)
        elif kind == "epoch":
            self._take_epoch(record)
        elif kind == "final":
            self._take_final(record["config"], record)
            if "why" in record:
                self._view.warn(f"{record['why']}; the others go on")
        elif kind == "rank":
            self.ranks[record["rank"]] = record
            self.ranks_done += 1
        self.status.update()

    def expect(self, left_s: float) -> None:
        """Take over how many seconds are left, as planned now."""
        self._end_s = time.monotonic() + left_s

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

    def progress(self) -> Progress:
        """Return how far the run is."""
        visits = self.earlier_visits + len(self._visits) + self._left
        return Progress(
            visits=visits,
            planned_visits=max(visits, self.planned_visits),
            left_s=self._left_s(visits),
            objective={
                "metric": self.objective.metric,
                "mode": "max" if self.objective.maximise else "min",
            },
            best=self.best(),
            configs=[self._row(config) for config in self.configs],
        )

    def _row(self, config: Config) -> Row:
        history = self.histories[config.config_id]
        standing: Standing = "training" if history.has_begun else "waiting"
        if history.has_begun and self.waits(config.config_id):
            standing = "paused"
        return Row(
            config_id=config.config_id,
            config=config.name,
            status=standing if history.final is None else history.final["status"],
            epochs=history.count,
            hyperparameters=dict(config.values),
            metrics=dict(history.last),
            best=history.best,
            best_epoch=history.best_epoch,
        )

    def _left_s(self, visits: int) -> float | None:
        """Return the seconds until the last visit ends, or None before anything is known."""
        now_s = time.monotonic()
        if self._end_s is not None:
            return max(0.0, self._end_s - now_s)
        if not visits:
            return None
        if self._prediction is None:
            self._prediction = predicted(self.plan)
        return time_left_s(self._prediction, now_s - self._begun_s, visits)

    def _take_visit(self, record: Record) -> None:
        self._visits[record["config"], record["step"]] = record
        self._steps.setdefault(record["config"], []).append(record["step"])
        self.histories[record["config"]].has_begun = True
        if record["diverged"]:
            config_id, spans = record["config"], self.plan.all_spans
            end = spans[config_id][1] if config_id < len(spans) else 0
            self._left += max(0, end - record["step"] - 1)
            name = self.configs[record["config"]].name
            where = f"epoch {record['epoch']}, shard {record['shard']}"
            self._view.note(f"{name} diverged (loss not finite) in {where}; the others go on")
        visits = self.earlier_visits + len(self._visits) + self._left
        self._view.visited(record["end"], visits)

    def _take_epoch(self, record: Record) -> None:
        config, metrics = self.configs[record["config"]], record["metrics"]
        self._write_epoch(config.config_id, record["epoch"], record["rank"], metrics)
        self._learn(config.config_id, record["epoch"], metrics)
        self._tell_final(config.config_id)
        shown = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k != "seconds")
        self._view.evaluated(f"{config.name} epoch {record['epoch']}: {shown}", self._best_so_far())

    def _write_epoch(
        self, config_id: int, epoch: int, rank: int, metrics: dict[str, float]
    ) -> None:
        """Journal the metrics of an epoch, once: one that is made again gives the same."""
        if (config_id, epoch) not in self._written:
            self._written.add((config_id, epoch))
            name = self.configs[config_id].name
            line = {"config_id": config_id, "config": name, "epoch": epoch, "rank": rank}
            self._journal.write(line | metrics)

    def _learn(self, config_id: int, epoch: int, metrics: dict[str, float]) -> None:
        """Take over the metrics of an epoch."""
        history = self.histories[config_id]
        history.epochs[epoch] = metrics
        value = metrics.get(self.objective.metric)
        if value is not None and self._beats(value, epoch, history):
            history.best, history.best_epoch = value, epoch
        self.telling.epoch(config_id, epoch, metrics)

    def _take_final(self, config_id: int, final: Record) -> None:
        """Take over how a config has ended; of one that fails, without the copy."""
        self.histories[config_id].final = final
        if final["status"] == "failed":
            self.ledger.refuse(config_id, final["steps"], self.plan.num_shards)
        self._tell_final(config_id)

    def _tell_final(self, config_id: int, *, at_last: bool = False) -> None:
        known = self.histories[config_id]
        self.telling.final(config_id, known.final, known.epochs, known.best, at_last=at_last)

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
            left = history.final is not None and history.final["status"] in ("diverged", "failed")
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

    def made(self) -> list[tuple[int, int]]:
        """Return (config, first visit that is not made) of all that have made one in this part."""
        return [(config_id, max(steps) + 1) for config_id, steps in sorted(self._steps.items())]

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
        if self.plan.spans is not None:
            record["space"] = self.space
            record["values"] = self.ledger.first_values
            record["changes"] = self.ledger.changes
            finals = [history.final for history in self.histories]
            if self.ends is not None:
                record["ends"] = list(self.ends)
            record["unbuilt"] = [
                config_id
                for config_id, final in enumerate(finals)
                if final and final["status"] == "failed" and final["steps"] == 0
            ]
        self._folder.write_plan(record)

    def route(self, config_id: int) -> list[dict[str, int]]:
        """Return the visits that a config made, in order."""
        made = sorted(self._steps.get(config_id, []))
        records = [self._visits[config_id, step] for step in made]
        route = [{"epoch": r["epoch"], "shard": r["shard"], "rank": r["rank"]} for r in records]
        return self._earlier.get(config_id, []) + route

    def close(self) -> None:
        """Put the journal on disk."""
        for config in self.configs:
            self._tell_final(config.config_id, at_last=True)
        self._journal.close()
