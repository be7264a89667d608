"""Fashion-MNIST for `search.py`: a net of one hidden layer, 27 ways to train it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task


class Scale(nn.Module):
    """Bytes (rows, 28, 28) to numbers around zero (rows, 784)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.flatten(1).float() - 72.9) / 90.0


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def build(config: Mapping[str, Any]) -> Task:
    width = config["width"]
    model = nn.Sequential(Scale(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        batch_size=config["batch_size"],
        metrics={"accuracy": accuracy},
        lr_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8),
        eval_batch_size=1000,
    )
