"""Task parallelism: Dask's futures, a worker of one thread per rank, a task per config."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client
from driver import HOST, Record, Spec, drive, running
from loop import train_config


# user: begin
def train_one(config: dict, seed: int, epochs: int) -> list[dict]:
    return list(train_config(config, seed, epochs, os.environ["COMPARE_DATA"]))


def train_all(scheduler: str, configs: list[dict], seed: int, epochs: int) -> list[list[dict]]:
    with Client(scheduler_file=scheduler) as client:
        futures = client.map(train_one, configs, seed=seed, epochs=epochs, pure=False)
        return client.gather(futures)


# user: end


def train(spec: Spec) -> list[Record]:
    histories = train_all(file_of(spec), spec.configs, spec.seed, spec.epochs)
    return [{"config": i, **line} for i, history in enumerate(histories) for line in history]


def file_of(spec: Spec) -> str:
    """Return the file in which the scheduler says where it is."""
    return str(Path(spec.scratch) / "scheduler.json")


@contextmanager
def servers(spec: Spec) -> Iterator[None]:
    common = ["--host", HOST, "--no-dashboard", "--scheduler-file", file_of(spec)]
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", *common, "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", *common, "--nthreads", "1"]
    # Preloaded, as Celery's workers are: importing torch is set-up.
    worker += ["--local-directory", spec.scratch, "--preload", "dask_futures"]
    own = [{"COMPARE_DATA": spec.worker(k)} for k in range(spec.ranks)]
    with running(scheduler), running(*[worker] * spec.ranks, environments=own):
        with Client(scheduler_file=file_of(spec)) as client:
            client.wait_for_workers(spec.ranks, timeout=120)
        yield


if __name__ == "__main__":
    # By its own name, under which the workers can import it, and not as __main__.
    import dask_futures

    drive(dask_futures.train, dask_futures.servers)
