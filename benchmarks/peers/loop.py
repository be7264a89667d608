"""The training loop that a user writes for every system but mophpc, which brings its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_model import build
from driver import lo_bytes
from torch import Tensor

from mophpc import Task

Data = dict[str, Tensor]


@cache
def load(folder: str) -> Data:
    names = ("train_x", "train_y", "valid_x", "valid_y")
    return {name: torch.from_numpy(np.load(Path(folder) / f"{name}.npy")) for name in names}


def train_epoch(task: Task, data: Data, batch_size: int) -> None:
    task.model.train()
    for rows in torch.randperm(len(data["train_x"])).split(batch_size):
        task.optimizer.zero_grad()
        outputs = task.model(data["train_x"].index_select(0, rows))
        loss = task.loss(outputs, data["train_y"].index_select(0, rows))
        loss.backward()
        task.optimizer.step()


@torch.no_grad()
def evaluate(task: Task, data: Data) -> dict[str, float]:
    task.model.eval()
    batches = data["valid_x"].split(task.eval_batch_size or task.batch_size)
    outputs = torch.cat([task.model(batch) for batch in batches])
    found = {name: float(metric(outputs, data["valid_y"])) for name, metric in task.metrics.items()}
    return found | {"valid_loss": float(task.loss(outputs, data["valid_y"]))}


def train_config(
    config: Mapping[str, Any], seed: int, epochs: int, folder: str
) -> Iterator[dict[str, float]]:
    torch.manual_seed(seed)
    task, data = build(config), load(folder)
    for epoch in range(epochs):
        train_epoch(task, data, task.batch_size)
        task.lr_scheduler.step()
        yield stamped(epoch, evaluate(task, data))


def stamped(epoch: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Add when an epoch's metrics were known, and what had gone over the network by then."""
    return {"epoch": epoch, "time": time.time(), "network": lo_bytes(), **metrics}
