"""Builds on the meta device: used where they are safe, and left alone where they are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torture
from routes import hopped, kept, make_trainer, sequential
from torch import nn
from torch.nn import functional

from mophpc import Task, verify
from mophpc.train.arena import allocate
from mophpc.train.checks import ordinary_builds

devices: list[str] = []
"""Where the builds of a test were made."""


def make_task(model: nn.Module, **settings: Any) -> Task:
    devices.append(next(model.parameters()).device.type)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rest = {"loss": functional.cross_entropy, "batch_size": 7} | settings
    return Task(model=model, optimizer=optimizer, **rest)


def make_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def plain(_):
    return make_task(make_model(), metrics={"accuracy": torture.accuracy})


def moving_average(config):
    return torture.build(config | {"optimizer": "momentum", "more": "ema", "lr": 0.02})


def weights_in_closure(_):
    weight = torch.tensor([1.0, 2.0, 3.0])
    return make_task(make_model(), loss=lambda o, t: functional.cross_entropy(o, t, weight=weight))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model()
        self.mask = torch.tensor([1.0, 0.5, 2.0])

    def forward(self, x):
        return self.inner(x) * (self.mask if self.mask.device == x.device else 1.0)


def tensor_not_registered(_):
    return make_task(Masked())


def reads_values(_):
    model = make_model()
    model[3].weight.data.div_(model[3].weight.std().item())
    return make_task(model)


def differs(_):
    model = make_model()
    gain = 2.0 if model[1].weight.is_meta else 1.0
    return make_task(model, loss=lambda o, t: functional.cross_entropy(o * gain, t))


def metric_with_tensors(_):
    return make_task(make_model(), metrics={"confusion": torture.Confusion()})


def tensors_for_evaluation(_):
    mean = torch.full((1, 4, 4), 0.1)
    transform = lambda batch: batch | {"x": batch["x"] - mean}  # noqa: E731
    return make_task(make_model(), eval_batch_transform=transform)


def evaluates_otherwise(_):
    model = make_model()
    base = 1.0 if model[1].weight.is_meta else 0.0
    return make_task(model, metrics={"m": lambda o, t: base + torture.accuracy(o, t)})


def metric_needs_many_rows(_):
    def metric(outputs, targets):
        if len(targets) < 8:
            raise ValueError("too few rows")
        return torture.accuracy(outputs, targets)

    return make_task(make_model(), metrics={"many": metric})


REASONS = {
    moving_average: "building on the meta device fails",
    weights_in_closure: "building on the meta device fails",
    tensor_not_registered: "model..mask is a tensor that is not registered",
    reads_values: "building on the meta device fails: RuntimeError",
    differs: "trains differently",
    metric_with_tensors: "evaluating a build on the meta device fails",
    tensors_for_evaluation: "evaluat",
    evaluates_otherwise: "is evaluated differently",
    metric_needs_many_rows: "metric 'many' raised ValueError: too few rows on a batch; if it",
}


@pytest.mark.parametrize("build", REASONS, ids=lambda b: b.__name__)
def test_a_build_that_the_meta_device_breaks_is_made_with_values(build):
    trainer = make_trainer({}, build)
    assert REASONS[build] in str(trainer.ordinary(0))
    devices.clear()
    hops = [(digest, metrics) for digest, metrics, _ in hopped(trainer)]
    assert "meta" not in devices
    assert [h[0] for h in hops] == [digest for digest, *_ in kept(trainer)]
    assert hops[-1][0] == verify.state_sha256(sequential({}, 6, build))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adagrad", "lbfgs"])
def test_a_model_with_everything_is_built_lean(optimizer):
    config = {"optimizer": optimizer, "scheduler": "sequential", "lr": 0.02}
    assert make_trainer(config).ordinary(0) is None


@pytest.mark.parametrize("more", ["averaged", "loss", "scaler", "thaw"])
def test_extras_that_are_modules_or_optimizers_are_built_lean(more):
    config = {"optimizer": "momentum", "lr": 0.02, "more": more}
    assert make_trainer(config).ordinary(0) is None


def test_a_lean_build_is_on_the_meta_device_and_its_task_is_not():
    trainer = make_trainer({}, plain)
    arena = allocate(trainer.nbytes(0))
    rest, _ = trainer.start(0, arena).release()
    devices.clear()
    session = trainer.resume(0, arena, rest)
    assert devices == ["meta"]
    model = session.task.model
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert all(p.data_ptr() - arena.ctypes.data in range(len(arena)) for p in model.parameters())
    assert [p is q for p, q in zip(model.parameters(), _trained(session.task), strict=True)]


def _trained(task):
    return task.optimizer.param_groups[0]["params"]


def test_a_probe_travels_as_json():
    trainer = make_trainer({}, plain)
    probe = trainer._roster.probe(0)
    assert type(probe).from_json(probe.to_json()) == probe
    assert probe.metrics == ("accuracy",)


def test_what_is_built_with_values_is_said_once_per_reason():
    trainer = make_trainer({}, reads_values)
    probe = trainer._roster.probe(0)
    lean = make_trainer({}, plain)._roster.probe(0)
    trainer.adopt([probe, lean, probe, probe])
    (line,) = ordinary_builds(trainer, ["c000", "c001", "c002", "c003"])
    assert line.startswith("note: c000 and 2 more are built with initial weights")
    trainer.adopt([lean, probe])
    (line,) = ordinary_builds(trainer, ["c000", "c001"])
    assert line.startswith("note: c001 is built with initial weights at every visit")
