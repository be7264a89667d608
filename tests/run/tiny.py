"""A small Task for whole runs, and ways in which it goes wrong."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task
from mophpc.search import Brief, Continue, Copy, Decision, Result, Start, Stop


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


def plain_metric(config: Mapping[str, Any]) -> Task:
    """Have a metric, `told`, that hyperparameters alone decide, and no route."""
    task = build(config)
    value = abs(config["lr"] - 0.02) + config["width"] / 1000
    task.metrics = {"told": lambda outputs, targets: outputs.new_tensor(value)}
    return task


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


def fails_wide(config: Mapping[str, Any]) -> Task:
    if config["width"] > 8:
        raise ValueError("too wide")
    return build(config)


class Whims:
    """Decides at random on whatever waits; starts configs that diverge or cannot be built, too."""

    def __init__(self, brief: Brief) -> None:
        self._random = random.Random(brief.options["seed"])
        self._epochs = brief.epochs
        self._to_come = brief.options.get("configs", 8)
        self._values: list[dict[str, Any]] = []
        self._waiting: dict[int, int] = {}  # epochs made, by config_id
        self._has_begun = False  # what cannot be built is a mistake before, and fails later

    def ask(self, room: int) -> list[Start]:
        count = min(room, self._to_come, self._random.randint(1, 4))
        self._to_come -= count
        starts = [self._start() for _ in range(count)]
        self._has_begun = True
        return starts

    def _start(self) -> Start:
        lr = self._random.choice([0.01, 0.03, 0.03, 1e30])
        width = self._random.choice([4, 6, 9]) if self._has_begun else 4
        self._values.append({"lr": lr, "width": width})
        epochs = self._random.randint(1, 2)
        return Start(self._values[-1], epochs, self._random.randint(0, self._epochs - epochs))

    def tell(self, result: Result) -> list[Decision]:
        self._waiting.pop(result.config_id, None)
        if not result.is_over:
            self._waiting[result.config_id] = result.epochs
        found: list[Decision] = []
        for config_id, made in list(self._waiting.items()):
            if self._random.random() < 0.3:
                continue
            del self._waiting[config_id]
            epochs = self._random.randint(made + 1, self._epochs)
            able = [c for c, other in self._waiting.items() if other == made]
            kind = self._random.random()
            if kind < 0.2:
                found.append(Stop(config_id))
            elif kind < 0.5 and able:
                source = self._random.choice(able)
                # Its own shape goes with a state, and sometimes a wrong one.
                odd = {} if self._random.random() < 0.8 else {"width": 5}
                values = self._values[source] | {"lr": self._random.choice([0.02, 0.005])} | odd
                self._values[config_id] = values
                found.append(Copy(config_id, source, values, epochs))
            else:
                found.append(Continue(config_id, epochs))
        return found
