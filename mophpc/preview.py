"""What a run would do, found out without MPI and before any queue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mophpc.data import StoreInfo, open_store, read_shard
from mophpc.experiment import Experiment
from mophpc.schedule import (
    Plan,
    assign_shards,
    check_plan,
    draw_svg,
    format_plan,
    make_plan,
    predict,
    summary,
    to_json,
)
from mophpc.search.space import Config, make_configs
from mophpc.train.checks import check_objective, ordinary_builds
from mophpc.train.trainer import TorchTrainer, set_threads

PROBE_BYTES = 256 << 20
"""Memory for the rows of the first shard, of which a batch is trained."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A checked experiment and its plan."""

    plan: Plan
    configs: tuple[Config, ...]
    store: StoreInfo
    state_nbytes: tuple[int, ...]
    """Bytes of each config's state."""
    notes: tuple[str, ...]

    def text(self, epochs: int) -> str:
        """Return the schedule as a rank-by-step table, and what follows from it."""
        names = [config.name for config in self.configs]
        shown = range(min(epochs, self.plan.num_epochs))
        tables = [format_plan(self.plan, epoch=epoch) for epoch in shown]
        legend = [f"{i:>3} = {name}" for i, name in enumerate(names[:32])]
        lines = summary(predict(self.plan, 1.0), state_nbytes=self.state_nbytes)
        return "\n\n".join([*tables, "\n".join(legend), "\n".join([*lines, *self.notes])])

    def svg(self) -> str:
        """Return a picture of the schedule."""
        return draw_svg(predict(self.plan, 1.0), [c.name for c in self.configs], unit="visits")

    def record(self) -> dict[str, Any]:
        """Return JSON values."""
        prediction = predict(self.plan, 1.0)
        return to_json(prediction.plan) | {
            "configs": [config.name for config in self.configs],
            "state_nbytes": list(self.state_nbytes),
            "makespan_visits": prediction.makespan_s,
            "idle_share": prediction.idle_share,
            "notes": list(self.notes),
        }


def preview(experiment: Experiment, ranks: int) -> Preview:
    """Check an experiment as a run would, and plan it.

    Raises:
        UserError: what a run would raise before its first visit.
    """
    build = experiment.load_build()
    store = open_store(Path(experiment.data.store))
    assign_shards(store.num_shards, ranks)
    configs = make_configs(experiment)
    set_threads(experiment.threads)
    trainer = TorchTrainer(
        build,
        [(config.name, config.values) for config in configs],
        fields=tuple(field.name for field in store.fields),
        seed=experiment.seed,
    )
    rows = read_shard(store, 0, memory_budget=PROBE_BYTES)
    trainer.adopt([trainer.probe(config.config_id, rows, store.shard_rows) for config in configs])
    check_objective(trainer, [c.name for c in configs], experiment.objective.metric)
    plan = make_plan(
        experiment.schedule.policy,
        num_configs=len(configs),
        num_shards=store.num_shards,
        num_ranks=ranks,
        num_epochs=experiment.epochs,
        seed=experiment.seed,
    )
    check_plan(plan, lookahead=experiment.schedule.lookahead)
    return Preview(
        plan=plan,
        configs=configs,
        store=store,
        state_nbytes=tuple(trainer.nbytes(config.config_id) for config in configs),
        notes=tuple(ordinary_builds(trainer, [c.name for c in configs])),
    )
