"""The models of `gpu.py`, and the plain loop that one of them is compared with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mophpc import Task
from mophpc.train.device import be_deterministic

IMAGES = (3, 32, 32)
CONFIGS, SHARDS, EPOCHS = 4, 2, 3
HEAVY_BYTES, HEAVY_S = 400_000_000, 0.5


def block(channels: int, to: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, to, 3, padding=1), nn.BatchNorm2d(to), nn.ReLU(), nn.MaxPool2d(2)]


def scaled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"x": batch["x"].float() / 255}


def build(config: Mapping[str, Any]) -> Task:
    """Make a small VGG."""
    layers = [*block(3, 64), *block(64, 128), *block(128, 256), nn.Flatten(), nn.Linear(4096, 10)]
    model = nn.Sequential(*layers)
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=config["lr"]),
        loss=nn.CrossEntropyLoss(),
        batch_size=128,
        batch_transform=scaled,
        eval_batch_transform=scaled,
    )


class Heavy(nn.Module):
    """A linear model, and parameters that are only carried along."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(3072, 10)
        self.ballast = nn.Parameter(torch.zeros(HEAVY_BYTES // 4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classify(x.flatten(1))
        return out


def build_heavy(config: Mapping[str, Any]) -> Task:
    """Make a Task whose visits compute for a while, and whose state is large."""
    model = Heavy()
    optimizer = torch.optim.SGD(model.classify.parameters(), lr=config["lr"])

    def compute(task: Task, batch: dict[str, Tensor]) -> Tensor:
        end_s = time.perf_counter() + HEAVY_S / 16  # 16 batches of 128 in a shard
        while True:
            loss: Tensor = task.loss(task.model(batch["x"]), batch["y"])
            if float(loss) < 0 or time.perf_counter() >= end_s:
                return loss

    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        batch_size=128,
        training_step=compute,
        batch_transform=scaled,
        eval_batch_transform=scaled,
    )


def plain_loop(store: Path, where: torch.device) -> float:
    """Return the seconds of the training of all configs as anyone would write it for a GPU."""
    import zarr

    torch.set_num_threads(1)
    if where.type == "cuda":
        be_deterministic()
    group = zarr.open_group(store, mode="r")
    x, y = (torch.from_numpy(np.asarray(group[f"train/{name}"][:])).to(where) for name in "xy")
    rows = len(x) // SHARDS
    train(x[:1000], y[:1000], 1000, where, configs=1, epochs=1)  # libraries start with the first
    start = time.perf_counter()
    train(x, y, rows, where, configs=CONFIGS, epochs=EPOCHS)
    return time.perf_counter() - start


def train(
    x: Tensor, y: Tensor, rows: int, where: torch.device, *, configs: int, epochs: int
) -> None:
    """Train configs one after the other, shard by shard."""
    for config in range(configs):
        with where:
            task = build({"lr": 0.001 * (1 + config)})
        task.model.train()
        for _ in range(epochs):
            for first in range(0, len(x), rows):
                order = torch.randperm(rows, device=where) + first
                for index in order.split(task.batch_size):
                    batch = scaled({"x": x.index_select(0, index), "y": y.index_select(0, index)})
                    task.optimizer.zero_grad()
                    loss = task.loss(task.model(batch["x"]), batch["y"])
                    loss.backward()
                    task.optimizer.step()
    if where.type == "cuda":
        torch.cuda.synchronize()
