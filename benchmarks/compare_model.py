"""What `compare.py` trains: 16 configs on Fashion-MNIST, or on a table like Criteo's.

Every system trains what `build(config)` makes. The list of configs begins with the small batch, and
for each batch with the larger model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from mophpc import Task

SMALL_BATCH, LARGE_BATCH = 32, 256
COUNTS, HASHED, BUCKETS = 13, 26, 256
"""Of a row of the table: numbers, categories, and buckets into which each category is hashed."""

ARCHITECTURES = {"fashion": ("cnn", "mlp"), "criteo": ("wide", "narrow")}


def configs(data: str, smoke: bool) -> list[dict[str, Any]]:
    """Return the hyperparameters to be tried, by config_id."""
    rates, decays = ((0.001,), (0.0001,)) if smoke else ((0.001, 0.003), (0.0001, 0.01))
    every = product((SMALL_BATCH, LARGE_BATCH), ARCHITECTURES[data], rates, decays)
    return [
        {"arch": arch, "lr": lr, "weight_decay": decay, "batch_size": size}
        for size, arch, lr, decay in every
    ]


def flush_denormals() -> None:
    """Take denormal numbers, those below 1.2e-38, for zero in this thread and in those it begins.

    Adam's mean gradient of a weight that has none any more fades into them, and the processor takes
    much longer with them, whatever brings it the work: `denormals.py` shows it.
    """
    torch.set_flush_denormal(True)


class ToImage(nn.Module):
    """Bytes (rows, 28, 28) to numbers around zero (rows, 1, 28, 28)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.unsqueeze(1).float() - 72.9) / 90.0


def mlp() -> nn.Module:
    hidden = nn.Sequential(nn.Linear(784, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(ToImage(), nn.Flatten(), hidden, nn.Linear(256, 10))


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


class ClickNet(nn.Module):
    """Three layers over a row of counts and hashed categories, (rows, 39) int32.

    The first one sees 13 numbers and 6656 indicators, of which 26 are 1, so it is a sum of rows of
    its matrix.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.dense = nn.Linear(COUNTS, first)
        self.hashed = nn.EmbeddingBag(HASHED * BUCKETS, first, mode="sum")
        nn.init.normal_(self.hashed.weight, std=0.02)
        self.rest = nn.Sequential(
            nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)
        )

    def forward(self, row: Tensor) -> Tensor:
        counts = torch.log1p(row[:, :COUNTS].float())
        return self.rest(self.dense(counts) + self.hashed(row[:, COUNTS:].contiguous()))


MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    "narrow": lambda: ClickNet(64, 32),
    "wide": lambda: ClickNet(128, 64),
}


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def build(config: Mapping[str, Any]) -> Task:
    """Make the model, optimizer and learning-rate schedule that a config asks for."""
    flush_denormals()
    model = MODELS[config["arch"]]()
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
        eval_batch_size=500,
    )
