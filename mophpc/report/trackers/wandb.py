"""Weights & Biases: a run per config, all of one group; in the run folder, unless it is online."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from mophpc.report.trackers.protocol import WELL, About


class Wandb:
    """See `Tracker`."""

    def __init__(self, about: About) -> None:
        self._about = about
        self._known: dict[int, tuple[str, Mapping[str, Any]]] = {}
        self._runs: dict[int, Any] = {}

    def config(self, config_id: int, name: str, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._known[config_id] = (name, values)

    def epoch(self, config_id: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        # Epochs of a config are heard of in any order, and wandb drops a step that comes late.
        self._run(config_id).log({"epoch": epoch, **metrics})

    def final(self, config_id: int, status: str, best: float | None) -> None:
        """See `Tracker`."""
        run = self._run(config_id)
        run.summary.update({"status": status, f"best_{self._about.metric}": best})
        run.finish(exit_code=0 if status in WELL else 1)
        del self._runs[config_id]

    def end(self, status: str, best: str | None) -> None:  # noqa: ARG002
        """See `Tracker`."""
        for run in self._runs.values():
            run.finish(exit_code=0 if status in WELL else 1)
        self._runs.clear()

    def _run(self, config_id: int) -> Any:
        """Return a config's run, which is opened when there is something to tell."""
        if config_id not in self._runs:
            (name, values), about = self._known[config_id], self._about
            run = wandb.init(
                dir=about.folder,
                project=about.target["project"],
                entity=about.target["entity"],
                mode=about.target["mode"],
                group=about.name,
                name=name,
                config={**values, "mophpc": dict(about.experiment)},
                reinit="create_new",
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    disable_git=True,
                    save_code=False,
                    x_disable_stats=True,
                ),
            )
            run.define_metric("epoch")
            run.define_metric("*", step_metric="epoch")
            self._runs[config_id] = run
        return self._runs[config_id]
