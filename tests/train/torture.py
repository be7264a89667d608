"""A model and Task with everything that users really have, for tests of trajectory equality."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mophpc import Task


class Net(nn.Module):
    """BatchNorm, dropout, tied and frozen weights, transposed and channels_last parameters."""

    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.encode = nn.Linear(width * 16, width)
        self.transposed = nn.Parameter(torch.empty(width, width * 2).normal_().mul_(0.1).t())
        self.again = nn.Linear(width * 2, width, bias=False)
        self.tied = nn.Linear(width * 2, width, bias=False)
        self.tied.weight = self.again.weight
        self.frozen = nn.Linear(width, width)
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(width, classes)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)
        self.gain = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.relu(self.norm(self.conv(x)))
        x = self.encode(self.drop(x.flatten(1)))
        wide = functional.relu(x @ self.transposed.t())
        x = self.again(wide) + self.tied(wide) * self.scale
        return self.head(self.frozen(torch.tanh(x))) * self.gain.float().mean()


class Ema:
    """An exponential moving average with state_dict, but not a module."""

    def __init__(self, model: nn.Module) -> None:
        self.shadow = {k: v.detach().clone() for k, v in model.named_parameters()}
        self.updates = 0

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        for name, value in model.named_parameters():
            self.shadow[name].lerp_(value.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)


def flip(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    flips = torch.rand(len(batch["x"])) < 0.5
    x = torch.where(flips[:, None, None, None], batch["x"].flip(-1), batch["x"])
    return batch | {"x": x + 0.01 * torch.randn_like(x)}


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def step_with_ema(task: Task, batch: dict[str, Tensor]) -> Tensor:
    task.optimizer.zero_grad()
    loss = task.loss(task.model(batch["x"]), batch["y"])
    loss.backward()
    nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
    task.optimizer.step()
    for ema in task.extras.values():
        if isinstance(ema, Ema):
            ema.update(task.model)
        else:
            ema.update_parameters(task.model)
    return loss.detach()


def make_optimizer(config: Mapping[str, Any], model: Net) -> torch.optim.Optimizer:
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or not p.requires_grad]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "lr": config["lr"] / 2}]
    name = config["optimizer"]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=config["lr"])
    if name == "momentum":
        return torch.optim.SGD(groups, lr=config["lr"], momentum=0.9, dampening=0.1)
    if name == "nesterov":
        return torch.optim.SGD(groups, lr=config["lr"], momentum=0.9, nesterov=True)
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "amsgrad": lambda *a, **k: torch.optim.Adam(*a, amsgrad=True, **k),
        "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
    }
    return kinds[name](groups, lr=config["lr"])


def make_scheduler(name: str, optimizer: torch.optim.Optimizer) -> tuple[Any, str]:
    lr = torch.optim.lr_scheduler
    if name == "cosine":
        return lr.CosineAnnealingLR(optimizer, T_max=30), "step"
    if name == "onecycle":
        return lr.OneCycleLR(optimizer, max_lr=0.1, total_steps=1000), "step"
    if name == "multistep":
        return lr.MultiStepLR(optimizer, milestones=[1, 2, 2]), "epoch"
    if name == "plateau":
        return lr.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0), "epoch"
    if name == "lambda":
        return lr.LambdaLR(optimizer, lambda epoch: 0.9**epoch), "epoch"
    if name == "sequential":
        warm = lr.LinearLR(optimizer, start_factor=0.1, total_iters=5)
        rest = lr.ExponentialLR(optimizer, gamma=0.99)
        return lr.SequentialLR(optimizer, [warm, rest], milestones=[5]), "step"
    return None, "epoch"


def build(config: Mapping[str, Any]) -> Task:
    model = Net(width=config.get("width", 8))
    optimizer = make_optimizer(config, model)
    scheduler, interval = make_scheduler(config.get("scheduler", "none"), optimizer)
    kind = config.get("ema", "none")
    extras: dict[str, Any] = {}
    if kind == "plain":
        extras["ema"] = Ema(model)
    elif kind == "module":
        extras["ema"] = torch.optim.swa_utils.AveragedModel(model)
    elif kind == "deepcopy":
        extras["ema"] = Ema(copy.deepcopy(model))
    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        batch_size=config.get("batch_size", 5),
        metrics={"accuracy": accuracy},
        lr_scheduler=scheduler,
        scheduler_interval=interval,
        batch_transform=flip,
        training_step=step_with_ema if extras else None,
        clip_grad_norm=1.0,
        extras=extras,
    )
