"""The model of `overhead.py`: a visit over its shard takes about a second of one core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mophpc import Task


def build(config: Mapping[str, Any]) -> Task:
    """Make a perceptron of 2 MB of weights, with AdamW: 6 MB of state."""
    layers = [nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    return Task(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=128)
