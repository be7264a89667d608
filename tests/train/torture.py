"""A model and Task with everything that users really have, for tests of trajectory equality."""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mophpc import Task

THAW_AFTER_ROWS = 18
"""In the middle of a route's second visit."""


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
        self.down = nn.Linear(width, 4, bias=False)
        self.up = nn.Parameter(self.down.weight.t())  # the same bytes, read the other way
        self.twin = nn.Parameter(torch.empty(4, width))
        self.twin.data = self.down.weight.data
        self.register_buffer("newest", torch.zeros(width))
        self.register_buffer("older", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.relu(self.norm(self.conv(x)))
        x = self.encode(self.drop(x.flatten(1)))
        wide = functional.relu(x @ self.transposed.t())
        x = self.again(wide) + self.tied(wide) * self.scale
        x = x + self.down(x) @ self.up.t() + x @ self.twin.t() @ self.down.weight
        if self.training:  # assigned, not updated in place; and one takes the other's tensor
            self.older = self.newest
            self.newest = x.detach().mean(0)
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


class WeighingLoss(nn.Module):
    """A loss with a trained parameter, a buffer, and a mode of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return functional.cross_entropy(outputs * self.temperature, targets)


class Scaler:
    """What a gradient scaler keeps: numbers, a tensor, a deque and a count per key."""

    def __init__(self) -> None:
        self.scale = torch.tensor(1024.0)
        self.steps = 0
        self.last: deque[float] = deque(maxlen=3)
        self.found: Counter[int] = Counter()

    def update(self, loss: float) -> None:
        self.steps += 1
        self.found[self.steps % 3] += 1
        self.last.append(loss)
        self.scale = self.scale * (1.5 if loss > 1.0 else 0.75)

    def state_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("scale", "steps", "last", "found")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Confusion:
    """A metric object as of torchmetrics: tensors of its own, fed batch by batch."""

    def __init__(self, classes: int = 3) -> None:
        self.empty = torch.zeros(classes, classes)
        self.reset()

    def reset(self) -> None:
        self.counts = self.empty.clone()

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        ones = torch.ones(len(targets), device=targets.device)
        self.counts.index_put_((targets, outputs.argmax(1)), ones, accumulate=True)

    def compute(self) -> Tensor:
        return self.counts.diagonal().sum() / self.counts.sum()


def flip(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    flips = torch.rand(len(batch["x"]), device=batch["x"].device) < 0.5
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


def step_with_scaler(task: Task, batch: dict[str, Tensor]) -> Tensor:
    scaler, second = task.extras["scaler"], task.extras["second"]
    task.optimizer.zero_grad()
    second.zero_grad()
    loss = task.loss(task.model(batch["x"]), batch["y"])
    (loss * scaler.scale / 1024).backward()
    task.optimizer.step()
    second.step()
    scaler.update(loss.item())
    return loss.detach()


def step_that_thaws(task: Task, batch: dict[str, Tensor]) -> Tensor:
    """Train the frozen layer too, from the middle of the second visit on."""
    task.model.frozen.requires_grad_(int(task.model.seen) > THAW_AFTER_ROWS)
    task.optimizer.zero_grad()
    loss = task.loss(task.model(batch["x"]), batch["y"])
    loss.backward()
    # Also those that no optimizer has: their gradients must not outlive a visit.
    nn.utils.clip_grad_norm_(task.model.parameters(), 0.5)
    task.optimizer.step()
    return loss.detach()


def step_of_lbfgs(task: Task, batch: dict[str, Tensor]) -> Tensor:
    def closure() -> Tensor:
        task.optimizer.zero_grad()
        loss = task.loss(task.model(batch["x"]), batch["y"])
        loss.backward()
        return loss

    return task.optimizer.step(closure).detach()


def make_optimizer(config: Mapping[str, Any], model: Net) -> torch.optim.Optimizer:
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and p.requires_grad]
    rest = [p for n, p in model.named_parameters() if p.ndim <= 1 or not p.requires_grad]
    name = config["optimizer"]
    if name == "lbfgs":
        plain = [p for p in model.parameters() if p.is_contiguous()]  # it asks for that
        return torch.optim.LBFGS(plain, lr=0.01, max_iter=3, history_size=4)
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "lr": config["lr"] / 2}]
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
        return lr.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2), "epoch"
    if name == "lambda":
        return lr.LambdaLR(optimizer, lambda epoch: 0.9**epoch), "epoch"
    if name == "sequential":
        warm = lr.LinearLR(optimizer, start_factor=0.1, total_iters=5)
        rest = lr.ExponentialLR(optimizer, gamma=0.99)
        return lr.SequentialLR(optimizer, [warm, rest], milestones=[5]), "step"
    return None, "epoch"


def build(config: Mapping[str, Any]) -> Task:
    model = Net(width=config.get("width", 8))
    weighs = config.get("more") in ("loss", "scaler")
    loss = WeighingLoss() if weighs else nn.CrossEntropyLoss()
    optimizer = make_optimizer(config, model)
    if config.get("more") == "loss":
        optimizer.add_param_group({"params": list(loss.parameters()), "lr": 0.05})
    scheduler, interval = make_scheduler(config.get("scheduler", "none"), optimizer)
    extras: dict[str, Any] = {}
    step = step_of_lbfgs if config["optimizer"] == "lbfgs" else None
    metrics: dict[str, Any] = {"accuracy": accuracy}
    match config.get("more", "nothing"):
        case "ema":
            extras, step = {"ema": Ema(model)}, step_with_ema
        case "averaged":
            extras = {"ema": torch.optim.swa_utils.AveragedModel(model)}
            step = step_with_ema
        case "deepcopy":
            extras, step = {"ema": Ema(copy.deepcopy(model))}, step_with_ema
        case "scaler":
            second = torch.optim.Adam(loss.parameters(), lr=0.02)
            extras, step = {"scaler": Scaler(), "second": second}, step_with_scaler
        case "thaw":
            step = step_that_thaws
            model.stray = nn.Parameter(torch.ones(()))  # of the model, but of no optimizer
            model.head.register_forward_hook(lambda _, __, out: out * model.stray)
        case "metric":
            metrics["confusion"] = Confusion()
    return Task(
        model=model,
        optimizer=optimizer,
        loss=loss,
        batch_size=config.get("batch_size", 5),
        metrics=metrics,
        lr_scheduler=scheduler,
        scheduler_interval=interval,
        scheduler_metric=config.get("watched", "valid_loss"),
        batch_transform=flip,
        eval_batch_transform=flip,
        training_step=step,
        clip_grad_norm=1.0,
        extras=extras,
        eval_model=extras["ema"] if config.get("more") == "averaged" else None,
    )
