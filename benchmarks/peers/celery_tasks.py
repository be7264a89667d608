"""Task parallelism: Celery with a Redis broker, a task per config, a worker per rank.

Long tasks, so one is taken at a time, and acknowledged when it is done: the two settings that
Celery's page on optimizing names for them.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery, group
from driver import HOST, Record, Spec, drive, free_port, running, wait_until
from loop import train_config

# user: begin
URL = os.environ.get("COMPARE_REDIS", "redis://127.0.0.1:6379/0")
app = Celery("celery_tasks", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=1, task_acks_late=True)


@app.task
def train_one(config: dict, seed: int, epochs: int) -> list[dict]:
    return list(train_config(config, seed, epochs, os.environ["COMPARE_DATA"]))


def train_all(configs: list[dict], seed: int, epochs: int) -> list[list[dict]]:
    return group(train_one.s(config, seed, epochs) for config in configs)().get()


# user: end


def train(spec: Spec) -> list[Record]:
    histories = train_all(spec.configs, spec.seed, spec.epochs)
    return [{"config": i, **line} for i, history in enumerate(histories) for line in history]


@contextmanager
def servers(spec: Spec) -> Iterator[None]:
    redis = shutil.which("redis-server")
    if redis is None:
        sys.exit("redis-server is not on PATH; it comes with Debian's package redis-server")
    port = free_port()
    url = f"redis://{HOST}:{port}/0"
    app.conf.update(broker_url=url, result_backend=url)
    broker = [redis, "--bind", HOST, "--port", str(port), "--save", "", "--dir", spec.scratch]
    worker = [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--concurrency", "1"]
    commands = [[*worker, "--hostname", f"worker-{k}@%h"] for k in range(spec.ranks)]
    own = [{"COMPARE_REDIS": url, "COMPARE_DATA": spec.worker(k)} for k in range(spec.ranks)]
    with running(broker), running(*commands, environments=own):
        wait_until("not all Celery workers answer", lambda: len(ping()) == spec.ranks)
        yield
        # Results that are collected once the broker is gone try for minutes to tell it so.
        gc.collect()


def ping() -> list[dict]:
    """Return the answers of the workers that are up."""
    try:
        return app.control.ping(timeout=0.5)
    except OSError:  # the broker is not up
        return []


if __name__ == "__main__":
    # By its own name, under which the workers know it, and not as __main__.
    import celery_tasks

    drive(celery_tasks.train, celery_tasks.servers)
