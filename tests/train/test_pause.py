"""Visits that stop in their middle: what must be carried, and where they must not stop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from routes import TRAIN, make_trainer
from test_state_file import bring_back, stop_after
from test_trajectory import apart
from torch import nn
from torture import build as torture_build

from mophpc import Task
from mophpc.data import prepare, read_shard
from mophpc.errors import StateError
from mophpc.train import cursor as cursor_module
from mophpc.train import session as session_module
from mophpc.train.batches import InMemory
from mophpc.train.device import CPU
from mophpc.train.trainer import TorchTrainer

ROWS = {
    "x": torch.randn(47, 6, generator=torch.Generator().manual_seed(4)),
    "y": torch.randn(47, 2, generator=torch.Generator().manual_seed(5)),
}
"""Nine batches of five, and one of two."""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(5, 2)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.relu(self.first(x))))


def plain(model: nn.Module | None = None, **settings: Any) -> Task:
    model = Small() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Task(model, optimizer, nn.MSELoss(), 5, **settings)


def trainer_of(build: Callable[[Any], Task], device: Any = CPU) -> TorchTrainer:
    made = TorchTrainer(build, [("c000", {})], fields=("x", "y"), seed=3, device=device)
    made.adopt([made.probe(0, InMemory(ROWS))])
    return made


def started(build: Callable[[Any], Task], device: Any = CPU) -> tuple[TorchTrainer, Any]:
    made = trainer_of(build, device)
    return made, made.start(0, made.allocate(made.nbytes(0)))


def facts_of(made: TorchTrainer, session: Any, outcome: Any) -> tuple[Any, ...]:
    rest, held = session.release()
    digest = made.digest(0, session._arena, rest, held)
    # Seconds are the one thing that may differ.
    return digest, outcome.loss, outcome.rows, outcome.diverged, session._loss_sum, session._rows


def undisturbed(build: Callable[[Any], Task], rows: Any = None, device: Any = CPU) -> Any:
    made, session = started(build, device)
    return facts_of(made, session, session.train(0, 0, rows or InMemory(ROWS)))


def pieces(build: Any, every: int, folder: Any, rows: Any = None, device: Any = CPU) -> Any:
    """Train a visit that stops after every so many batches, each time by way of files."""
    made, session = started(build, device)
    rows, cursor, stops = rows or InMemory(ROWS), None, []
    while True:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        outcome = session.train(0, 0, rows, should_stop=stop_after(every), cursor=cursor)
        if not outcome.is_paused:
            return facts_of(made, session, outcome), stops
        stops.append(session.cursor.batches)
        assert session.cursor.seconds > 0
        session, cursor, _ = bring_back(made, session, folder, 0)


def noisy(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    x = batch["x"] + 0.1 * torch.randn_like(batch["x"])
    x = x * np.random.uniform(0.9, 1.1) + 0.01 * np.random.standard_normal()
    return batch | {"x": x + 0.1 * random.gauss(0, 1)}


def accumulating(every: int) -> Callable[[Task, Any], torch.Tensor]:
    """Return a step whose gradients add up over batches, counted in a buffer of the model."""

    def step(task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = task.loss(task.model(batch["x"]), batch["y"])
        loss.backward()
        task.model.batches += 1
        if int(task.model.batches) % every == 0:
            task.optimizer.step()
            task.optimizer.zero_grad()
        return loss.detach()

    return step


def freezing(task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Change flags for the rest of a visit, once."""
    task.model.batches += 1
    if int(task.model.batches) == 4:
        task.model.first.requires_grad_(False)
        task.model.drop.eval()
    task.optimizer.zero_grad()
    loss = task.loss(task.model(batch["x"]), batch["y"])
    loss.backward()
    task.optimizer.step()
    return loss.detach()


def scheduled(_: Any) -> Task:
    task = plain(batch_transform=noisy)
    task.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(task.optimizer, 0.3, 100)
    task.scheduler_interval = "step"
    return task


class Transposed(Small):
    def __init__(self) -> None:
        super().__init__()
        self.first.weight = nn.Parameter(torch.randn(6, 5).mul(0.1).t())


CASES: dict[str, Callable[[Any], Task]] = {
    "plain": lambda _: plain(batch_transform=noisy),
    "scheduled": scheduled,
    "accumulating": lambda _: plain(training_step=accumulating(3), batch_transform=noisy),
    "strided": lambda _: plain(Transposed(), training_step=accumulating(4)),
    "freezing": lambda _: plain(training_step=freezing),
    "float16": lambda _: plain(precision="float16", batch_transform=noisy),
    "bfloat16": lambda _: plain(precision="bfloat16"),
}


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", [CPU, apart()], ids=["cpu", "apart"])
def test_a_visit_in_pieces_ends_in_the_same_bytes_and_sums(name, every, device, tmp_path):
    build = CASES[name]
    found, stops = pieces(build, every, tmp_path, device=device)
    assert stops == list(range(every, 10, every))
    assert found == undisturbed(build, device=device)


@pytest.mark.parametrize("lost", ["generator.torch", "generator.numpy", "generator.random"])
def test_each_generator_counts(lost, tmp_path, monkeypatch):
    found, _ = pieces(CASES["plain"], 4, tmp_path)
    assert found == undisturbed(CASES["plain"])

    take = session_module.take
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    others, _ = take(plain(), CPU)

    def forgetful(task: Any, device: Any) -> Any:
        tensors, flags = take(task, device)
        return tensors | {lost: others[lost]}, flags

    monkeypatch.setattr(session_module, "take", forgetful)
    assert pieces(CASES["plain"], 4, tmp_path)[0] != found


def test_gradients_count_and_leave_nothing_behind(tmp_path, monkeypatch):
    build = CASES["accumulating"]
    expected = undisturbed(build)
    monkeypatch.setattr(cursor_module, "_parameters", lambda task: [])
    assert pieces(build, 4, tmp_path)[0] != expected


def test_a_stop_that_is_asked_for_after_the_last_batch_is_none():
    made, session = started(CASES["plain"])
    asked = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 9

    outcome = session.train(0, 0, InMemory(ROWS), should_stop=should_stop)
    assert not outcome.is_paused
    assert session.cursor is None
    assert len(asked) == 9
    assert facts_of(made, session, outcome) == undisturbed(CASES["plain"])


def test_rows_that_are_streamed_go_on_where_they_were(tmp_path):
    np.savez(tmp_path / "rows.npz", x=ROWS["x"].numpy(), y=ROWS["y"].numpy())
    prepare(str(tmp_path / "rows.npz"), tmp_path / "rows.zarr", num_shards=1, seed=2)
    rows = read_shard(tmp_path / "rows.zarr", 0, memory_budget=1000)
    assert not rows.in_memory
    found, stops = pieces(CASES["plain"], 2, tmp_path / "states", rows)
    assert len(stops) > 2
    assert found == undisturbed(CASES["plain"], rows)


class Diverging:
    """A loss that is not finite in one batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __call__(self, task: Task, batch: Any) -> torch.Tensor:
        task.model.batches += 1
        task.optimizer.zero_grad()
        loss = task.loss(task.model(batch["x"]), batch["y"])
        if int(task.model.batches) == self.batch:
            loss = loss * math.nan
        loss.backward()
        task.optimizer.step()
        return loss.detach()


@pytest.mark.parametrize("look_every", [1, 4, 32])
@pytest.mark.parametrize("stop", range(1, 9))
def test_a_visit_that_diverges_ends_where_it_would_have_ended(look_every, stop, tmp_path):
    def build(_: Any) -> Task:
        return plain(training_step=Diverging(7))

    made, session = started(build)
    session.task.model.batches.zero_()
    outcome = session.train(0, 0, InMemory(ROWS), look_every)
    assert outcome.diverged
    expected = facts_of(made, session, outcome)
    made, session = started(build)
    session.task.model.batches.zero_()
    after = stop_after(stop)
    outcome = session.train(0, 0, InMemory(ROWS), look_every, should_stop=after)
    assert outcome.is_paused == (stop < 7)
    assert outcome.is_paused != outcome.diverged
    if outcome.is_paused:
        session, cursor, _ = bring_back(made, session, tmp_path, 0)
        outcome = session.train(0, 0, InMemory(ROWS), look_every, cursor=cursor)
    assert repr(facts_of(made, session, outcome)) == repr(expected)


def counting(every: int) -> Callable[[Any], Task]:
    """Return a build whose step counts batches in its closure."""

    def build(_: Any) -> Task:
        count = 0

        def step(task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            nonlocal count
            loss = task.loss(task.model(batch["x"]), batch["y"])
            loss.backward()
            count = (count + 1) % every
            if count == 0:
                task.optimizer.step()
                task.optimizer.zero_grad()
            return loss.detach()

        return plain(training_step=step)

    return build


def test_a_visit_does_not_stop_where_a_closure_has_counted(tmp_path):
    build = counting(4)
    made, session = started(build)
    outcome = session.train(0, 0, InMemory(ROWS), should_stop=lambda: True)
    assert outcome.is_paused
    assert session.cursor.batches == 4, "where the count is as it was when the visit began"
    assert session.why_not_paused is None
    session, cursor, _ = bring_back(made, session, tmp_path, 0)
    outcome = session.train(0, 0, InMemory(ROWS), cursor=cursor)
    assert facts_of(made, session, outcome) == undisturbed(build)


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def bump(self, batch: Any) -> Any:
        self.count += 1
        return batch

    __call__ = bump


class CountingModel(Small):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def remembering() -> Callable[[Any], Any]:
    kept: dict[str, Any] = {}

    def transform(batch: Any) -> Any:
        kept["last"] = batch["x"]
        return batch

    return transform


def drawing(generator: Any, draw: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def transform(batch: Any) -> Any:
        draw(generator)
        return batch

    return transform


def mutating(value: Any) -> Callable[[Any], Any]:
    def transform(batch: Any) -> Any:
        value.__iadd__(1)
        return batch

    return transform


GLOBAL = SimpleNamespace(count=0)
NUMBERS = [0]


def with_global(batch: Any) -> Any:
    NUMBERS[0] += 1
    return batch


def with_attribute(batch: Any) -> Any:
    with_attribute.count = getattr(with_attribute, "count", 0) + 1  # type: ignore[attr-defined]
    return batch


def hooked() -> nn.Module:
    model, seen = Small(), []
    model.first.register_forward_hook(lambda *_: seen.append(1))
    return model


def yielding() -> Callable[[Any], Any]:
    import itertools

    numbers = itertools.count()

    def transform(batch: Any) -> Any:
        next(numbers)
        return batch

    return transform


HIDDEN: dict[str, tuple[Callable[[], Task], str]] = {
    "object": (lambda: plain(batch_transform=Counter()), "batch_transform.count"),
    "method": (lambda: plain(batch_transform=Counter().bump), "batch_transform's self.count"),
    "model": (lambda: plain(CountingModel()), "model.calls"),
    "dict": (lambda: plain(batch_transform=remembering()), "batch_transform's kept"),
    "global": (lambda: plain(batch_transform=with_global), "batch_transform's NUMBERS"),
    "attribute": (lambda: plain(batch_transform=with_attribute), "batch_transform.count"),
    "hook": (lambda: plain(hooked()), "model.first's hook's seen"),
    "iterator": (lambda: plain(batch_transform=yielding()), "batch_transform's numbers"),
    "torch": (
        lambda: plain(batch_transform=drawing(torch.Generator(), lambda g: g.seed())),
        "generator",
    ),
    "numpy": (
        lambda: plain(batch_transform=drawing(np.random.default_rng(0), lambda g: g.random())),
        "generator",
    ),
    "random": (
        lambda: plain(batch_transform=drawing(random.Random(0), lambda g: g.random())),
        "generator",
    ),
    "tensor": (lambda: plain(batch_transform=mutating(torch.zeros(3))), "value"),
    "array": (lambda: plain(batch_transform=mutating(np.zeros(3))), "value"),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_visit_does_not_stop_where_code_keeps_something_beside_the_state(name):
    build, words = HIDDEN[name]
    _, session = started(lambda _: build())
    outcome = session.train(0, 0, InMemory(ROWS), should_stop=lambda: True)
    assert not outcome.is_paused
    assert outcome.rows == len(ROWS["x"])
    assert words in session.why_not_paused
    assert session.why_not_paused.endswith("has changed, which is no part of the state")


def test_a_visit_does_not_stop_with_gradients_that_cannot_be_carried():
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 2, sparse=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table((x[:, 0] > 0).long())

    def build(_: Any) -> Task:
        model = Sparse()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(task: Task, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            task.optimizer.zero_grad()
            loss = task.loss(task.model(batch["x"]), batch["y"])
            loss.backward()
            task.optimizer.step()
            return loss.detach()

        return Task(model, optimizer, nn.MSELoss(), 5, training_step=step)

    _, session = started(build)
    outcome = session.train(0, 0, InMemory(ROWS), should_stop=lambda: True)
    assert not outcome.is_paused
    assert session.why_not_paused == "the gradient of model.table.weight is sparse"


OTHERS = [(1, 0, ROWS), (0, 1, ROWS), (0, 0, {name: rows[:-1] for name, rows in ROWS.items()})]


@pytest.mark.parametrize("visit", OTHERS, ids=["epoch", "shard", "rows"])
def test_a_cursor_of_another_visit_is_refused(visit, tmp_path):
    made, session = started(CASES["plain"])
    session.train(0, 0, InMemory(ROWS), should_stop=lambda: True)
    session, cursor, _ = bring_back(made, session, tmp_path, 0)
    epoch, shard, rows = visit
    with pytest.raises(StateError, match="in the middle of another visit"):
        session.train(epoch, shard, InMemory(rows), cursor=cursor)


def test_the_epoch_has_the_seconds_and_losses_of_all_pieces(tmp_path):
    config = {"optimizer": "adamw", "lr": 0.02}
    made = make_trainer(config, torture_build)
    session = made.start(0, made.allocate(made.nbytes(0)))
    outcome = session.train(0, 0, InMemory(TRAIN[0]), should_stop=stop_after(1))
    assert (session._loss_sum, session._rows, session._seconds) == (0.0, 0.0, 0.0)
    first_s = session.cursor.seconds
    session, cursor, _ = bring_back(made, session, tmp_path, 0)
    outcome = session.train(0, 0, InMemory(TRAIN[0]), cursor=cursor)
    assert session._seconds > first_s > 0
    assert session._rows == outcome.rows == len(TRAIN[0]["x"])
    assert outcome.loss == session._loss_sum / session._rows
