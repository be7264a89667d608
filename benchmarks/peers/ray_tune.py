"""Task parallelism: Ray Tune, a trial per config, a Ray node of one CPU per rank.

A node stands for a host, since each worker has a copy of the data: `ray start` once per rank. Tune
starts the processes of its trials by itself, in an environment of their own, so that they cannot be
up, and have imported PyTorch, before the clock starts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import ray
from driver import HOST, Record, Spec, drive, free_port, listens, running, wait_until
from loop import train_config
from ray import tune


# user: begin
def train_one(config: dict) -> None:
    folder = os.environ["COMPARE_DATA"]
    for line in train_config(config["config"], config["seed"], config["epochs"], folder):
        tune.report(line)


def train_all(configs: list[dict], seed: int, epochs: int, results: str) -> tune.ResultGrid:
    tuner = tune.Tuner(
        tune.with_resources(train_one, {"cpu": 1}),
        param_space={"config": tune.grid_search(configs), "seed": seed, "epochs": epochs},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(storage_path=results, verbose=0),
    )
    return tuner.fit()


# user: end

KEYS = ("epoch", "time", "network", "accuracy", "valid_loss")


def train(spec: Spec) -> list[Record]:
    # Its own directory, not that of a trial, is where a relative path would begin.
    grid = train_all(spec.configs, spec.seed, spec.epochs, str(Path(spec.scratch) / "results"))
    records = []
    for result in grid:
        if result.error is not None:
            raise result.error
        index = spec.configs.index(result.config["config"])
        rows = result.metrics_dataframe[list(KEYS)].to_dict("records")
        records += [{"config": index, **row} for row in rows]
    return records


@contextmanager
def servers(spec: Spec) -> Iterator[None]:
    port = free_port()
    found = shutil.which("ray", path=str(Path(sys.executable).parent))
    node = [found or "ray", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    node += [f"--node-ip-address={HOST}", "--object-store-memory=100000000"]
    head = [*node, "--head", f"--port={port}", "--include-dashboard=false"]
    head += [f"--temp-dir={spec.scratch}/ray"]
    other = [*node, f"--address={HOST}:{port}"]
    own = [{"COMPARE_DATA": spec.worker(k)} for k in range(spec.ranks)]
    with ExitStack() as nodes:
        nodes.enter_context(running(head, environments=own[:1]))
        wait_until("Ray's head is not up", lambda: listens(port))
        ray.init(f"{HOST}:{port}", log_to_driver=False, logging_level="ERROR")
        nodes.callback(ray.shutdown)
        # One after another: nodes that start at once on a host take the same socket.
        for count in range(1, spec.ranks + 1):
            if count > 1:
                nodes.enter_context(running(other, environments=own[count - 1 : count]))
            what = f"node {count} of {spec.ranks} of Ray is not up"
            wait_until(what, partial(has_cpus, count))
        yield


def has_cpus(count: int) -> bool:
    """Return whether the cluster has so many CPUs, one for each node."""
    return bool(ray.cluster_resources().get("CPU", 0) >= count)


if __name__ == "__main__":
    drive(train, servers)
