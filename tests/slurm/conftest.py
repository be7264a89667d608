"""A cluster for the session, and runs on it. `MOPHPC_SLURM=1`: these tests may not be skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, start, why_not
from jobs import Submitted, submit_run, write_store


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = why_not()
    if reason is not None:
        if os.environ.get("MOPHPC_SLURM") == "1":
            pytest.fail(f"MOPHPC_SLURM is 1, but {reason}")
        pytest.skip(reason)
    # A socket's path may have some hundred characters only.
    running = start(tmp_path_factory.mktemp("slurm"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def submit(cluster: Cluster, store: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return a function that submits an experiment, as a user does."""

    def submitted(*options: str, epochs: int = 2, slow_s: float = 0.0) -> Submitted:
        folder = tmp_path_factory.mktemp("run")
        return submit_run(cluster, store, folder, *options, epochs=epochs, slow_s=slow_s)

    return submitted
