"""Configs that train slowly where SLOW_S says so, so that something can happen to them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn, optim

from mophpc import Task


def slowly(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    time.sleep(float(os.environ.get("SLOW_S", "0")))
    return batch


def build(config: Mapping[str, Any]) -> Task:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return Task(
        model=model,
        optimizer=optim.AdamW(model.parameters(), lr=config["lr"]),
        loss=nn.CrossEntropyLoss(),
        batch_size=9,
        batch_transform=slowly,
    )
