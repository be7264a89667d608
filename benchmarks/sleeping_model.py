"""A task whose visits take as long as its config says, without needing a core."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task

BATCH = 20


def build(config: Mapping[str, Any]) -> Task:
    model = nn.Linear(64, 10)
    per_row_s = config["visit_s"] / config["rows"]

    def sleep(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        time.sleep(per_row_s * len(batch["y"]))
        return plain(batch)

    return Task(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        loss=nn.CrossEntropyLoss(),
        batch_size=BATCH,
        batch_transform=sleep,
        eval_batch_transform=plain,
        eval_batch_size=1000,
    )


def plain(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"x": batch["x"].float().flatten(1) / 16}
