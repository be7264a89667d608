"""Mixed precision: what is computed in less than 32 bits hops like everything else."""

from __future__ import annotations

import pytest
import torch
from routes import ROUTE, hopped, kept, make_trainer, sequential
from torch import nn
from torture import build

from mophpc import Task, verify
from mophpc.errors import ExperimentError
from mophpc.train.device import CPU, choose_device

APART = choose_device("twin", [], 0)


def precise(config):
    """Return the torture's Task in the config's precision."""
    task = build({k: v for k, v in config.items() if k != "precision"})
    task.precision = config["precision"]
    task.training_step = None
    return task


@pytest.mark.parametrize("device", [CPU, APART], ids=["cpu", "apart"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_every_visit_ends_in_the_same_bytes_with_and_without_hops(precision, optimizer, device):
    config = {"lr": 0.02, "optimizer": optimizer, "precision": precision, "scheduler": "cosine"}
    staying = kept(make_trainer(config, precise, device))
    hopping = hopped(make_trainer(config, precise, device))
    for stay, hop in zip(staying, hopping, strict=True):
        assert hop[0] == stay[0]
    again = sequential(config, len(ROUTE), precise)
    assert verify.state_sha256(again) == hop[0]
    if precision == "float16":
        assert again.scaler.state_dict() == hop[2].task.scaler.state_dict()


def test_precision_changes_what_is_learned():
    digests = set()
    for precision in ("float32", "bfloat16", "float16"):
        config = {"lr": 0.02, "optimizer": "adamw", "precision": precision}
        digests |= {[digest for digest, *_ in kept(make_trainer(config, precise))][-1]}
    assert len(digests) == 3


def overflowing(config):
    """Return a Task whose gradients overflow in float16 until the scale is far lower."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        loss=lambda outputs, targets: 2000 * nn.functional.cross_entropy(outputs, targets),
        batch_size=4,
        precision="float16",
        batch_transform=lambda batch: batch | {"x": batch["x"].abs() + 30},
    )


def test_steps_that_the_scaler_leaves_out_at_first_do_not_hide_the_optimizers_state():
    trainer = make_trainer({}, overflowing)
    names = {slot.name for slot in trainer._roster.probe(0).layout.slots}
    assert "optimizer.1.weight.exp_avg" in names
    *_, (digest, _, session) = hopped(trainer)
    assert session.task.scaler.get_scale() < 2.0**16
    assert verify.state_sha256(sequential({}, len(ROUTE), overflowing)) == digest


def test_a_training_step_of_ones_own_has_what_it_needs():
    def step(task, batch):
        task.optimizer.zero_grad()
        with task.autocast():
            outputs = task.model(batch["x"])
            assert outputs.dtype == torch.bfloat16
            loss = task.loss(outputs, batch["y"])
        loss.backward()
        task.optimizer.step()
        return loss

    def own(config):
        task = precise(config)
        task.training_step = step
        return task

    config = {"lr": 0.02, "optimizer": "momentum", "precision": "bfloat16"}
    *_, (digest, _, session) = hopped(make_trainer(config, own))
    assert session.task.scaler is None
    assert verify.state_sha256(sequential(config, len(ROUTE), own)) == digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "fp8"}, "Task.precision is 'fp8'; allowed: float32, bfloat16, float16"),
        ({"compile": "yes"}, "Task.compile is a str; allowed: True, False or arguments"),
        ({"compile": {"dynamic": True}}, "'dynamic', which mophpc sets to False"),
        (
            {"precision": "float16", "extras": {"scaler": nn.Linear(1, 1)}},
            r"Task.extras\['scaler'\] is a Linear; with float16: a torch.amp.GradScaler",
        ),
    ],
)
def test_a_wrong_setting_is_named(change, said):
    def wrong(config):
        task = precise(config | {"precision": "float32"})
        for name, value in change.items():
            setattr(task, name, value)
        return task

    with pytest.raises(ExperimentError, match=said):
        make_trainer({"lr": 0.02, "optimizer": "momentum"}, wrong)
