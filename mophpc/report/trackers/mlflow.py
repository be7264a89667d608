"""MLflow: a run with a nested run per config, in an SQLite file of the run folder by default."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from mophpc.report.trackers.protocol import WELL, About

EXPERIMENT = "mophpc"
MOST_PARAMS, MOST_CHARACTERS = 100, 6000
"""Of a batch, and of a parameter's value; MLflow refuses more."""


class Mlflow:
    """See `Tracker`."""

    def __init__(self, about: About) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        own = about.target is True
        folder = Path(about.folder)
        uri = f"sqlite:///{folder / 'mlflow.db'}" if own else about.target
        self._client = MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            self._experiment = found.experiment_id
        else:
            where = (folder / "mlflow").as_uri() if own else None
            self._experiment = self._client.create_experiment(EXPERIMENT, artifact_location=where)
        self._metric = about.metric
        self._run = self._start(about.name, about.experiment, {"mophpc.folder": about.folder})
        self._configs: dict[int, str] = {}
        self._ended: set[int] = set()

    def config(self, config_id: int, name: str, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        tags = {"mlflow.parentRunId": self._run, "mophpc.config_id": str(config_id)}
        self._configs[config_id] = self._start(name, values, tags)

    def epoch(self, config_id: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        batch = [Metric(name, value, now, epoch) for name, value in metrics.items()]
        self._client.log_batch(self._configs[config_id], metrics=batch)

    def final(self, config_id: int, status: str, best: float | None) -> None:
        """See `Tracker`."""
        run = self._configs[config_id]
        self._ended.add(config_id)
        self._client.set_tag(run, "mophpc.status", status)
        if best is not None:
            self._client.log_metric(run, f"best_{self._metric}", best)
        self._client.set_terminated(run, "FINISHED" if status in WELL else "FAILED")

    def end(self, status: str, best: str | None) -> None:
        """See `Tracker`."""
        ended = "FINISHED" if status in WELL else "KILLED"
        for config_id in self._configs.keys() - self._ended:
            self._client.set_terminated(self._configs[config_id], ended)
        if best is not None:
            self._client.set_tag(self._run, "mophpc.best", best)
        self._client.set_terminated(self._run, ended)

    def _start(self, name: str, values: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        run = self._client.create_run(self._experiment, run_name=name)
        found: str = run.info.run_id
        params = [Param(key, str(value)[:MOST_CHARACTERS]) for key, value in values.items()]
        told = [RunTag(key, value) for key, value in tags.items()]
        self._client.log_batch(found, params=params[:MOST_PARAMS], tags=told)
        for begin in range(MOST_PARAMS, len(params), MOST_PARAMS):
            self._client.log_batch(found, params=params[begin : begin + MOST_PARAMS])
        return found
