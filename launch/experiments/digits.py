"""The quickstart's experiment: handwritten digits, two architectures, several settings of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mophpc import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

CLASSES = 10
BRIGHTEST = 16.0  # a pixel of these 8 x 8 images is 0 to 16
NOISE = 0.1  # standard deviation of the noise, in units of the brightest pixel


def build(config: Mapping[str, Any]) -> Task:
    """Make everything that one config trains: called once per config, after seeding."""
    model = build_model(config["arch"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"], weight_decay=1e-2)
    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        batch_size=config["batch_size"],
        metrics={"accuracy": accuracy},
        lr_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.85),
        scheduler_interval="epoch",
        batch_transform=augment,
        eval_batch_transform=scale,
    )


def build_model(arch: str) -> nn.Module:
    """Return the network for images of shape (rows, 1, 8, 8)."""
    if arch == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, CLASSES),
        )
    if arch == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, CLASSES),
        )
    raise ValueError(f"arch is '{arch}'; it can be 'mlp' or 'cnn'")


def scale(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn bytes of shape (rows, 8, 8) into floats from 0 to 1 of shape (rows, 1, 8, 8)."""
    return {**batch, "x": batch["x"].unsqueeze(1).float() / BRIGHTEST}


def augment(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scale a training batch and add noise to it.

    Torch's generators are seeded before each visit, so a config meets the same noise on any rank.
    """
    scaled = scale(batch)
    return {**scaled, "x": scaled["x"] + NOISE * torch.randn_like(scaled["x"])}


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of rows whose largest output is the right class."""
    return (outputs.argmax(dim=1) == targets).float().mean()
