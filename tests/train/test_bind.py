"""A Task over bytes that arrived."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
import torch
from torch import nn

from mophpc import Task
from mophpc.errors import StateError
from mophpc.train.arena import allocate
from mophpc.train.bind import bind, bind_new, collect, layout_of, module_tensors, settle, unpack
from mophpc.train.weights import Weights


def make_task(model: nn.Module | None = None, **settings: Any) -> Task:
    model = model or nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rest: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "batch_size": 4} | settings
    return Task(model=model, optimizer=optimizer, **rest)


def train(task: Task) -> None:
    task.optimizer.zero_grad()
    task.loss(task.model(torch.randn(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
    task.optimizer.step()


def released(task: Task) -> tuple[Any, Any, bytes]:
    layout = layout_of(task)
    arena = allocate(layout.nbytes)
    arena[:] = 0xAB
    return layout, arena, settle(task, layout, arena, (1.5, 2.0, 3.0))


@pytest.mark.parametrize("lean", [False, True])
def test_a_bound_task_trains_in_the_arena(lean):
    torch.manual_seed(0)
    first = make_task()
    train(first)
    layout, arena, rest = released(first)
    second, progress = bind(make_task, layout, arena, rest, lean=lean)
    assert progress == [1.5, 2.0, 3.0]
    for task in (first, second):
        torch.manual_seed(1)
        train(task)
    before = arena.copy()
    settle(second, layout, arena)
    assert (before == arena).all()  # nothing was elsewhere
    for name, tensor in collect(first)[0].items():
        assert torch.equal(tensor, collect(second)[0][name])


def test_a_new_task_moves_into_the_arena():
    task = make_task()
    values = {name: t.clone() for name, t in module_tensors(task).items()}
    train(task)
    layout, arena, _ = released(task)
    fresh = make_task()
    fresh.model.load_state_dict(
        {n.removeprefix("model."): v for n, v in values.items()}, strict=True
    )
    arena[:] = 0xFF
    bind_new(fresh, layout, arena)
    for name, tensor in module_tensors(fresh).items():
        assert torch.equal(tensor, values[name])
        assert tensor.data_ptr() - arena.ctypes.data in range(len(arena))


class Swapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        for number in range(3):
            self.register_buffer(f"b{number}", torch.full((2,), float(number)))


def test_buffers_that_change_places_do_not_overwrite_each_other():
    task = make_task(Swapper())
    layout, arena, _ = released(task)
    bind_new(task, layout, arena)
    model = task.model
    model.b0, model.b1, model.b2 = model.b1, model.b2, model.b0
    rest = settle(task, layout, arena)
    tensors, _ = unpack(layout, arena, rest)
    assert [tensors[f"model.b{n}"][0].item() for n in range(3)] == [1.0, 2.0, 0.0]


def test_a_state_that_grew_may_take_what_was_another_ones():
    task = make_task(Swapper())
    layout, arena, _ = released(task)
    bind_new(task, layout, arena)
    task.model.register_buffer("more", task.model.b0)
    task.model.b0 = torch.full((2,), 7.0)
    tensors, _ = unpack(layout, arena, settle(task, layout, arena))
    assert tensors["model.more"].tolist() == [0.0, 0.0]
    assert tensors["model.b0"].tolist() == [7.0, 7.0]


def test_tensors_that_are_tied_at_first_and_not_later_both_hop():
    task = make_task(Swapper())
    task.model.b1.data = task.model.b0.data
    layout, arena, _ = released(task)
    bind_new(task, layout, arena)
    task.model.b1 = torch.full((2,), 5.0)
    for _ in range(2):
        rest = settle(task, layout, arena)
        tensors, _ = unpack(layout, arena, rest)
        assert tensors["model.b0"].tolist() == [0.0, 0.0]
        assert tensors["model.b1"].tolist() == [5.0, 5.0]
        task, _ = bind(lambda: make_task(Swapper()), layout, arena, rest, lean=False)


def test_the_rest_of_a_state_is_small_where_only_numbers_change():
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(80)], nn.Linear(3, 2))
    optimizer = torch.optim.Adam(model.parameters())
    task = Task(model, optimizer, nn.CrossEntropyLoss(), 4)
    train(task)
    layout, _, rest = released(task)
    assert len(layout.template) > 20_000
    assert len(rest) < 4096 - 36


def test_an_optimizer_with_foreign_parameters_is_told_where_to_name_them():
    task = make_task()
    task.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(7))]})
    train(task)
    task.optimizer.state[task.optimizer.param_groups[1]["params"][0]]["x"] = torch.ones(1)
    with pytest.raises(StateError, match=r"shape \(7,\) that belongs to no module .* Task\.extras"):
        layout_of(task)


def frozen_differently() -> Task:
    return make_task(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))


def one_more() -> Task:
    return make_task(nn.Sequential(*make_task().model, nn.Linear(2, 2)))


def one_more_group() -> Task:
    task = make_task()
    task.optimizer.add_param_group({"params": []})
    return task


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (frozen_differently, r"build made a tensor of \(3, 4\) torch\.float32 where the state"),
        (one_more, r"build made 'model\.3\.weight', which the state that arrived does not have"),
        (one_more_group, "build made 2 parameter groups where the state that arrived has 1"),
    ],
)
@pytest.mark.parametrize("lean", [False, True])
def test_a_build_that_is_not_the_state_s_is_refused(build, message, lean):
    task = make_task()
    train(task)
    layout, arena, rest = released(task)
    with pytest.raises(StateError, match=message):
        bind(build, layout, arena, rest, lean=lean)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-9],
        lambda raw: struct.pack("<Q", 5) + raw[8:],
        lambda raw: raw[:12] + bytes(8) + raw[20:],
        lambda raw: struct.pack("<Q", 10) + zlib.compress(b"{}"),
    ],
)
def test_a_damaged_rest_is_refused(damage):
    task = make_task()
    train(task)
    layout, arena, rest = released(task)
    with pytest.raises(StateError, match="the state that arrived is damaged"):
        unpack(layout, arena, damage(rest))


def test_weights_are_written_whole_and_load(tmp_path):
    from safetensors.torch import load_file

    task = make_task()
    path = tmp_path / "model.safetensors"
    assert Weights(task).write(path) == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    other = make_task()
    other.model.load_state_dict(load_file(path))
    for a, b in zip(task.model.state_dict().values(), other.model.state_dict().values()):  # noqa: B905
        assert torch.equal(a, b)
