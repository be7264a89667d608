"""A task with a state of any size, whose visits compute for as long as its config says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task

BATCH = 1000  # a visit is a batch or two: all else is cost


class Ballast(nn.Module):
    """A small classifier, and parameters that are only carried along."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(64, 10)
        self.ballast = nn.Parameter(torch.zeros(max(1, nbytes // 4)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classify(x)
        return out


def build(config: Mapping[str, Any]) -> Task:
    model = Ballast(int(config["state_mb"] * 1e6))
    per_row_s = config["visit_s"] / config["rows"]
    work = torch.ones(64, 64)

    def compute(_: Task, batch: dict[str, Tensor]) -> float:
        """Multiply matrices until the time is over: a processor is busy, as in a training."""
        if per_row_s == 0.0:
            return 0.0
        end_s = time.perf_counter() + per_row_s * len(batch["y"])
        while time.perf_counter() < end_s:
            torch.mm(work, work)
        return 0.0

    return Task(
        model=model,
        optimizer=torch.optim.SGD(model.classify.parameters(), lr=0.01),
        loss=nn.CrossEntropyLoss(),
        batch_size=BATCH,
        training_step=compute,
        batch_transform=plain,
        eval_batch_transform=plain,
        eval_batch_size=1000,
    )


def plain(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch | {"x": batch["x"].float().flatten(1) / 16}
