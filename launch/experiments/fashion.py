"""Fashion-MNIST: two architectures, for `launch/experiments/fashion.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task


class ToImage(nn.Module):
    """Bytes (rows, 28, 28) to numbers around zero (rows, 1, 28, 28)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.unsqueeze(1).float() - 72.9) / 90.0


def mlp() -> nn.Module:
    return nn.Sequential(
        ToImage(),
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(256, 10),
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        ToImage(),
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(128, 10),
    )


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def build(config: Mapping[str, Any]) -> Task:
    """Make the model, optimizer and schedule that a config asks for."""
    model = {"mlp": mlp, "cnn": cnn}[config["arch"]]()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"]
    )
    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        batch_size=config["batch_size"],
        metrics={"accuracy": accuracy},
        lr_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.7),
        scheduler_interval="epoch",
        eval_batch_size=500,
    )
