"""Training as anyone would write it with PyTorch: what visits are compared with.

    python benchmarks/plain_loop.py SPEC.json

SPEC has `build` (the module of this folder that has it), `configs`, `epochs`, `shards` and `store`,
and `only` where a single shard is to be trained. All rows are in memory before the clock starts,
and PyTorch has loaded what it loads at the first step of an optimizer; a config sees the shards one
after another, each in a new order. The process keeps the memory that it frees, as a rank does: what
else there is between a visit and this loop is mophpc's. Prints the seconds of training.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from mophpc import Task
from mophpc.run.memory import keep_freed_memory

Shard = tuple[Tensor, Tensor]
"""Inputs and targets, a row each."""


def read(store: str, count: int) -> list[Shard]:
    """Return the training rows of a store, in so many equal parts."""
    group = zarr.open_group(store, mode="r")
    x, y = (torch.from_numpy(np.asarray(group[f"train/{name}"][:])) for name in "xy")
    rows = len(x) // count
    return [(x[s * rows : (s + 1) * rows], y[s * rows : (s + 1) * rows]) for s in range(count)]


def train(task: Task, shards: Sequence[Shard], epochs: int) -> None:
    """Train a config; end the process where its loss is not finite, as a visit is ended."""
    task.model.train()
    for _ in range(epochs):
        for inputs, targets in shards:
            for index in torch.randperm(len(inputs)).split(task.batch_size):
                task.optimizer.zero_grad()
                # index_select is three times as fast as inputs[index]
                outputs = task.model(inputs.index_select(0, index))
                loss = task.loss(outputs, targets.index_select(0, index))
                if not math.isfinite(loss.item()):
                    sys.exit("diverged")
                loss.backward()
                task.optimizer.step()


def main() -> None:
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    build = importlib.import_module(spec["build"]).build
    torch.set_num_threads(1)
    keep_freed_memory()
    shards = read(spec["store"], spec["shards"])
    if "only" in spec:
        shards = [shards[spec["only"]]]
    train(build(spec["configs"][0]), [tuple(part[:64] for part in shards[0])], 1)
    start = time.perf_counter()
    for config in spec["configs"]:
        train(build(config), shards, spec["epochs"])
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
