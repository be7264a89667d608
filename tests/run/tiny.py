"""A small Task for whole runs, and ways in which it goes wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def build(config: Mapping[str, Any]) -> Task:
    width = config.get("width", 6)
    model = nn.Sequential(
        nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.2), nn.Linear(width, 3)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        batch_size=5,
        metrics={"accuracy": accuracy},
        lr_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        batch_transform=lambda batch: (
            batch | {"x": batch["x"] + 0.1 * torch.randn_like(batch["x"][:1])}
        ),
    )


def pauses(config: Mapping[str, Any]) -> Task:
    """Take `pause_s` seconds for each batch, so that visits are long against planning."""
    task = build(config)
    task.batch_transform = lambda batch: time.sleep(config["pause_s"]) or batch
    return task


def refuses_later(config: Mapping[str, Any]) -> Task:
    """Fail as soon as the visits have begun."""
    if Path(config["run"], "plan.json").exists():
        raise KeyError("width")
    return build(config)


def loses_its_folder(config: Mapping[str, Any]) -> Task:
    task = build(config)

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if task.lr_scheduler.last_epoch == 1:
            shutil.rmtree(config["run"], ignore_errors=True)
            raise ValueError("the disk is gone")
        return batch

    task.batch_transform = transform
    return task


def diverges_late(config: Mapping[str, Any]) -> Task:
    """The config that is best in epoch 0 diverges in epoch 1."""
    task = build(config)
    if config["lr"] == 0.03:
        scheduler = task.lr_scheduler

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            value = nn.functional.cross_entropy(outputs, targets)
            training = torch.is_grad_enabled()
            return value * (float("nan") if training and scheduler.last_epoch else 1e-9)

        task.loss = loss
    return task
