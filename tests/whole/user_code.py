"""What users write: good, and wrong in each way that a message must name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task

NOT_A_FUNCTION = 3


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def build(config: Mapping[str, Any]) -> Task:
    width = config["width"]
    model = nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3)
    )
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=config["lr"]),
        loss=nn.CrossEntropyLoss(),
        batch_size=8,
        metrics={"accuracy": accuracy},
    )


def raises(config: Mapping[str, Any]) -> Task:
    if config["width"] == 8:
        raise KeyError("momentum")
    return build(config)


def exits(config: Mapping[str, Any]) -> Task:
    sys.exit("no licence")


def trains_nothing(config: Mapping[str, Any]) -> Task:
    task = build(config)
    task.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return task


def metric_is_a_word(config: Mapping[str, Any]) -> Task:
    task = build(config)
    task.metrics = {"accuracy": lambda outputs, targets: "good"}
    return task


def metric_is_a_vector(config: Mapping[str, Any]) -> Task:
    task = build(config)
    task.metrics = {"accuracy": lambda outputs, targets: outputs[:, 0]}
    return task


def noted(config: Mapping[str, Any]) -> Task:
    return build({"width": 4, "lr": 0.01})


def returns_model(config: Mapping[str, Any]) -> Any:
    return build(config).model


def wrong_shape(config: Mapping[str, Any]) -> Task:
    task = build(config)
    task.model = nn.Linear(5, 3)
    task.optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    return task


def batch_of_seven(config: Mapping[str, Any]) -> Task:
    """The shards of 36 rows leave a last batch of one row, which BatchNorm cannot be trained on."""
    task = build(config)
    task.batch_size = 7
    return task


def diverges(config: Mapping[str, Any]) -> Task:
    """The config with the large learning rate has a loss that is not finite in its third visit."""
    task = build(config)
    if config["lr"] == 0.05:
        seen = nn.Module()
        seen.register_buffer("rows", torch.zeros(()))

        def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            seen.rows += len(batch["x"])
            return batch | {"x": batch["x"] * (float("inf") if seen.rows > 80 else 1.0)}

        task.batch_transform = transform
        task.extras = {"seen": seen}
    return task


def fails_late(config: Mapping[str, Any]) -> Task:
    """User code that raises in epoch 1, and on one config only."""
    task = build(config)
    epochs = torch.optim.lr_scheduler.StepLR(task.optimizer, 1, gamma=1.0)
    task.lr_scheduler = epochs

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if epochs.last_epoch == 1 and config["width"] == 8 and config["lr"] == 0.05:
            raise ValueError("a batch that user code does not like")
        return batch

    task.batch_transform = transform
    return task


def exits_late(config: Mapping[str, Any]) -> Task:
    """User code that leaves the process in epoch 1."""
    task = build(config)
    task.lr_scheduler = torch.optim.lr_scheduler.StepLR(task.optimizer, 1, gamma=1.0)

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if task.lr_scheduler.last_epoch == 1:
            sys.exit(0)
        return batch

    task.batch_transform = transform
    return task


def _in_epoch_1(config: Mapping[str, Any], ends: Callable[[], object]) -> Task:
    """User code that does something in epoch 1, and on one config only."""
    task = build(config)
    task.lr_scheduler = torch.optim.lr_scheduler.StepLR(task.optimizer, 1, gamma=1.0)

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if task.lr_scheduler.last_epoch == 1 and config["width"] == 8 and config["lr"] == 0.05:
            ends()
        return batch

    task.batch_transform = transform
    return task


def is_killed(config: Mapping[str, Any]) -> Task:
    return _in_epoch_1(config, lambda: os.kill(os.getpid(), signal.SIGKILL))


def sleeps(config: Mapping[str, Any]) -> Task:
    return _in_epoch_1(config, lambda: time.sleep(1000.0))


def sleeps_with_the_lock(config: Mapping[str, Any]) -> Task:
    """C code that does not let other threads run Python."""
    return _in_epoch_1(config, lambda: ctypes.PyDLL(None).sleep(1000))


def slow(config: Mapping[str, Any]) -> Task:
    """A second per visit and more."""
    task = build(config)

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(0.2)
        return batch

    task.batch_transform = transform
    return task


def unhurried(config: Mapping[str, Any]) -> Task:
    """A tenth of a second per visit and more: people have time to ask."""
    task = build(config)

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(0.03)
        return batch

    task.batch_transform = transform
    return task


def held(config: Mapping[str, Any]) -> Task:
    """Half a second per batch for as long as the file exists that $HOLD names."""
    task, hold = build(config), os.environ.get("HOLD")

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(0.5 if hold and os.path.exists(hold) else 0.03)
        return batch

    task.batch_transform = transform
    return task


def two_lines(config: Mapping[str, Any]) -> Task:
    """User code that raises a message of two lines, after the probe."""
    task = build(config)
    seen = nn.Module()
    seen.register_buffer("rows", torch.zeros(()))

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.rows += len(batch["x"])
        if seen.rows > 80:
            raise RuntimeError("first line\nsecond line")
        return batch

    task.batch_transform = transform
    task.extras = {"seen": seen}
    return task


def leaves() -> list[Any]:
    sys.exit(0)
