"""A copied state goes on with other hyperparameters: optimizer and scheduler, against by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

import mophpc
from mophpc import Task, verify
from mophpc.data import prepare
from mophpc.errors import ExperimentError
from mophpc.train.explore import changed, explore

OLD, NEW = 0.1, 0.03


def halves(epoch: int) -> float:
    return 0.5**epoch


SCHEDULERS = {
    "none": lambda opt: None,
    "lambda": lambda opt: schedulers.LambdaLR(opt, halves),
    "step": lambda opt: schedulers.StepLR(opt, 2, gamma=0.1),
    "exponential": lambda opt: schedulers.ExponentialLR(opt, 0.9),
    "cosine": lambda opt: schedulers.CosineAnnealingLR(opt, 10),
    "one cycle": lambda opt: schedulers.OneCycleLR(
        opt, max_lr=[2.0 * group["lr"] for group in opt.param_groups], total_steps=40
    ),
    "sequential": lambda opt: schedulers.SequentialLR(
        opt,
        [schedulers.LinearLR(opt, 0.5, total_iters=2), schedulers.ExponentialLR(opt, 0.8)],
        milestones=[3],
    ),
    "chained": lambda opt: schedulers.ChainedScheduler(
        [schedulers.LinearLR(opt, 0.5, total_iters=2), schedulers.ExponentialLR(opt, 0.8)]
    ),
    "plateau": lambda opt: schedulers.ReduceLROnPlateau(opt, factor=0.5, patience=0),
}


def made(scheduler: str = "none", lr: float = OLD, groups: int = 1, kind: str = "sgd", **given):
    """Return a Task as `build` makes it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    parameters = [{"params": part.parameters(), "lr": lr * 2.0**n} for n, part in enumerate(model)]
    if groups == 1:
        parameters = [{"params": list(model.parameters()), "lr": lr}]
    cls = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]
    optimizer = cls(parameters, **given)
    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.MSELoss(),
        batch_size=4,
        lr_scheduler=SCHEDULERS[scheduler](optimizer),
    )


def train(task: Task, epochs: int, begin: int = 0) -> list[list[float]]:
    """Train a few epochs of one batch; return the learning rates of each."""
    rates = []
    for epoch in range(begin, begin + epochs):
        torch.manual_seed(epoch)
        x = torch.randn(4, 3)
        task.optimizer.zero_grad()
        task.loss(task.model(x), x.sum(1, keepdim=True)).backward()
        rates.append([group["lr"] for group in task.optimizer.param_groups])
        task.optimizer.step()
        if isinstance(task.lr_scheduler, schedulers.ReduceLROnPlateau):
            task.lr_scheduler.step(1.0)
        elif task.lr_scheduler is not None:
            task.lr_scheduler.step()
    return rates


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_rates_go_on_as_if_they_had_begun_so(name, groups):
    """Every rate from then on is that of the new hyperparameters from the beginning."""
    task, fresh = made(name, OLD, groups), made(name, NEW, groups)
    train(task, 4)
    train(fresh, 4)
    explore(task, made(name, OLD, groups), made(name, NEW, groups))
    found, expected = train(task, 5, 4), train(fresh, 5, 4)
    for own, theirs in zip(found, expected, strict=True):
        assert own == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_nothing_changes_where_the_hyperparameters_are_equal(name):
    task, other = made(name), made(name)
    train(task, 4)
    train(other, 4)
    before = repr(task.optimizer.state_dict())
    explore(task, made(name), made(name))
    assert repr(task.optimizer.state_dict()) == before
    assert train(task, 3, 4) == train(other, 3, 4)


def test_moments_are_kept():
    task = made(kind="adamw")
    train(task, 3)
    before = [state["exp_avg"].clone() for state in task.optimizer.state.values()]
    explore(task, made(kind="adamw"), made(kind="adamw", lr=NEW, betas=(0.8, 0.99)))
    after = [state["exp_avg"] for state in task.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    group = task.optimizer.param_groups[0]
    assert group["betas"] == (0.8, 0.99)
    assert group["lr"] == pytest.approx(NEW, rel=1e-15)


@pytest.mark.parametrize(
    ("old", "new", "key", "value"),
    [
        ({"momentum": 0.9}, {"momentum": 0.45}, "momentum", 0.45),
        ({"weight_decay": 0.0}, {"weight_decay": 0.01}, "weight_decay", 0.01),
        ({"weight_decay": 0.01}, {"weight_decay": 0.0}, "weight_decay", 0.0),
        ({"momentum": 0.5, "nesterov": False}, {"momentum": 0.5, "nesterov": True}, "nesterov", 1),
    ],
)
def test_other_settings(old, new, key, value):
    task = made(**old)
    train(task, 2)
    explore(task, made(**old), made(**new))
    (group,) = task.optimizer.param_groups
    assert group[key] == pytest.approx(value)
    assert group["lr"] == OLD


def test_what_the_training_has_changed_is_scaled():
    assert changed(0.05, 0.1, 0.2) == pytest.approx(0.1)
    assert changed(0.0, 0.0, 0.2) == 0.2
    assert changed(0.05, 0.1, 0.0) == 0.0
    assert changed((0.9, 0.99), (0.9, 0.99), (0.8, 0.99)) == (0.8, 0.99)
    assert changed(True, True, False) is False
    assert changed(None, None, 0.5) == 0.5


def test_other_groups_are_a_mistake():
    with pytest.raises(ExperimentError, match="an optimizer of 2 parameter groups, and the state"):
        explore(made(), made(), made(groups=2))


# Whole runs: the runtime against what `mophpc verify` has by itself.


def build(config):
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    parts = [
        {"params": model[0].parameters()},
        {"params": model[2].parameters(), "lr": 2.0 * config["lr"]},
    ]
    given = {"lr": config["lr"], "weight_decay": config["decay"]}
    if config["kind"] == "sgd":
        optimizer = torch.optim.SGD(parts, momentum=config["m"], **given)
    else:
        optimizer = torch.optim.AdamW(parts, betas=(config["m"], 0.99), **given)
    return Task(
        model=model,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        batch_size=8,
        metrics={"accuracy": lambda out, y: (out.argmax(1) == y).float().mean()},
        lr_scheduler=SCHEDULERS[config["scheduler"]](optimizer),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(1)
    x = rng.normal(size=(48, 4)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=(x[:, 0] > 0) + (x[:, 1] > 0).astype(np.int64))
    prepare(str(folder / "rows.npz"), folder / "rows.zarr", num_shards=2)
    return folder / "rows.zarr"


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_verify_agrees_to_the_byte(tmp_path, store, name, kind):
    experiment = mophpc.Experiment(
        build=build,
        data=store,
        epochs=4,
        seed=5,
        space={
            "lr": mophpc.loguniform(1e-3, 1e-1),
            "m": mophpc.uniform(0.5, 0.95),
            "decay": [0.0, 0.01, 0.1],
            "kind": [kind],
            "scheduler": [name],
        },
        search=mophpc.Search(
            method="population", configs=4, interval=1, explore=["lr", "m", "decay"]
        ),
    )
    results = mophpc.run_experiment(
        experiment, tmp_path / "run", transport="local", ranks=2, progress="off"
    )
    assert any(row.lineage for row in results.configs)
    assert [str(v) for v in verify.verify(tmp_path / "run") if not v.equal] == []
