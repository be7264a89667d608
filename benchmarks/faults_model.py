"""Digits for `faults.py`: a small net, whose batches take long enough to be cut off in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task

PAUSE_S = 0.004
"""For each batch."""


class Scale(nn.Module):
    """Bytes from 0 to 16 to numbers around zero."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).float() / 8.0 - 0.6


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def build(config: Mapping[str, Any]) -> Task:
    model = nn.Sequential(
        Scale(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
    )

    def transform(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(PAUSE_S)
        x = batch["x"].float()
        return batch | {"x": x + 0.1 * torch.randn_like(x)}  # so that generators matter

    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=config["lr"]),
        loss=nn.CrossEntropyLoss(),
        batch_size=32,
        metrics={"accuracy": accuracy},
        batch_transform=transform,
    )
