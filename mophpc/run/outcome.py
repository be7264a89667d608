"""What came out of a run, in its folder: a row per config."""

from __future__ import annotations

from typing import Any

from mophpc.experiment import Experiment
from mophpc.report.results import ConfigResult, Results
from mophpc.run.folder import RunFolder
from mophpc.run.rank.keeper import tidy
from mophpc.run.rank0.coordinator import Coordinator


def write_results(
    coordinator: Coordinator, experiment: Experiment, folder: RunFolder
) -> dict[str, Any]:
    """Write results.json and results.csv; return the former."""
    rows = []
    for config, history in zip(coordinator.configs, coordinator.histories, strict=True):
        final = history.final or {"status": "unfinished", "state_sha256": ""}
        metrics = history.last
        tidy(folder, config, experiment.checkpoints, experiment.objective, history.epochs)
        rows.append(
            ConfigResult(
                config_id=config.config_id,
                config=config.name,
                status=final["status"],
                hyperparameters=dict(config.values),
                epochs=history.count,
                final={k: v for k, v in metrics.items() if k != "seconds"},
                best=history.best,
                best_epoch=history.best_epoch,
                state_sha256=final["state_sha256"],
                route=coordinator.route(config.config_id),
                lineage=coordinator.ledger.lineage_of(config.config_id),
            )
        )
    objective = experiment.objective
    results = Results(objective.metric, objective.mode or "min", coordinator.best(), rows)
    results.write(folder.results, folder.table)
    return results.record()
