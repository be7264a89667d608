"""`state_sha256`, computed once more as a foreign tool would from its definition."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import torch
from routes import make_trainer
from torch import nn

from mophpc import Task, verify
from mophpc.train.arena import Layout, allocate, lay_out, views
from mophpc.train.bind import layout_of, settle
from mophpc.train.digest import state_sha256


def build(_=None) -> Task:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model.add_module("tied", model[2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Task(model=model, optimizer=optimizer, loss=nn.MSELoss(), batch_size=4)


def trained() -> Task:
    torch.manual_seed(0)
    task = build()
    task.loss(task.model(torch.randn(4, 2)), torch.zeros(4, 3)).backward()
    task.optimizer.step()
    task.model[0].weight.data = task.model[0].weight.data.t().contiguous().t()
    return task


def by_hand(tensors: dict[str, np.ndarray]) -> str:
    total = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        shape = ",".join(map(str, array.shape))
        total.update(f"{name}\n{array.dtype}\n{shape}\n".encode("ascii"))
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def test_the_digest_is_the_documented_one():
    task = trained()
    layout = layout_of(task)
    arena = allocate(layout.nbytes)
    found = state_sha256(layout, arena, settle(task, layout, arena))
    model = task.model.state_dict()
    tensors = {f"model.{k}": v.numpy() for k, v in model.items() if not k.startswith("tied")}
    for name, parameter in task.model.named_parameters():
        momentum = task.optimizer.state[parameter]["momentum_buffer"]
        tensors[f"optimizer.{name}.momentum_buffer"] = momentum.numpy()
    assert "model.1.num_batches_tracked" in tensors
    assert tensors["model.1.num_batches_tracked"].shape == ()
    assert found == by_hand(tensors)
    assert found == verify.state_sha256(task)


def test_the_digest_does_not_depend_on_the_layout():
    task = trained()
    layout = layout_of(task)
    arena = allocate(layout.nbytes)
    expected = state_sha256(layout, arena, settle(task, layout, arena))
    tensors = views(layout, arena)
    turned = {n: t.t().contiguous().t() if t.ndim == 2 else t for n, t in tensors.items()}
    other = lay_out(dict(reversed(turned.items())))
    other = replace(other, template=layout.template)
    assert isinstance(other, Layout)
    elsewhere = allocate(other.nbytes)
    elsewhere[:] = 0xCC
    assert state_sha256(other, elsewhere, settle(task, other, elsewhere)) == expected


def test_a_single_changed_bit_changes_it():
    task = trained()
    layout = layout_of(task)
    arena = allocate(layout.nbytes)
    rest = settle(task, layout, arena)
    before = state_sha256(layout, arena, rest)
    arena[layout.slots[-1].offset] ^= 1
    assert state_sha256(layout, arena, rest) != before


def test_names_and_dtypes_of_any_kind_are_digested_alike_by_verify():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter("größe", nn.Parameter(torch.ones(2)))
            self.register_buffer("none", torch.zeros(0, 4))
            self.register_buffer("halves", torch.ones(3, dtype=torch.bfloat16))
            self.register_buffer("flags", torch.tensor([True, False]))
            self.register_buffer("wave", torch.ones(2, dtype=torch.complex64))

    def build(_=None) -> Task:
        model = Odd()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
        return Task(model, optimizer, nn.MSELoss(), 1)

    task = build()
    layout = layout_of(task)
    arena = allocate(layout.nbytes)
    assert state_sha256(layout, arena, settle(task, layout, arena)) == verify.state_sha256(task)


def test_state_that_is_not_of_the_layout_counts_too():
    config = {"optimizer": "adam", "lr": 0.02, "more": "thaw"}
    trainer = make_trainer(config)
    arena = allocate(trainer.nbytes(0))
    session = trainer.start(0, arena)
    before = trainer.digest(0, arena, *session.release())
    late = session.task.model.stray
    session.task.optimizer.state[session.task.model.frozen.weight]["late"] = late.detach()
    assert trainer.digest(0, arena, *session.release()) != before
