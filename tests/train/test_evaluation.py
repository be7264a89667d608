"""Evaluation over all validation rows."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from routes import VALID
from torch import nn
from torch.nn import functional

from mophpc import Task
from mophpc.train.batches import InMemory
from mophpc.train.evaluation import concatenate, evaluate


def make_task(model: nn.Module | None = None, **settings: Any) -> Task:
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given: dict[str, Any] = {"loss": functional.cross_entropy, "batch_size": 4} | settings
    return Task(model=model, optimizer=optimizer, **given)


ROWS = InMemory(VALID)


def test_the_loss_is_the_mean_over_rows_also_with_a_short_last_batch():
    task = make_task()
    assert len(VALID["y"]) % task.batch_size == 2
    task.model.eval()
    each = functional.cross_entropy(task.model(VALID["x"]), VALID["y"], reduction="none")
    assert evaluate(task, ROWS)["valid_loss"] == pytest.approx(each.mean().item(), rel=1e-6)


def test_a_function_metric_sees_all_rows_at_once_and_an_object_batch_by_batch():
    seen: list[Any] = []

    def metric(outputs, targets):
        assert not torch.is_grad_enabled()
        assert torch.equal(targets, VALID["y"])
        seen.append(len(outputs))
        return torch.tensor(0.25)

    class Counting:
        def reset(self):
            seen.append("reset")

        def update(self, outputs, targets):
            seen.append(("update", len(outputs), len(targets)))

        def compute(self):
            return torch.tensor(3)

    found = evaluate(make_task(metrics={"object": Counting(), "function": metric}), ROWS)
    assert list(found) == ["valid_loss", "object", "function"]
    assert (found["object"], found["function"]) == (3.0, 0.25)
    assert all(type(value) is float for value in found.values())
    assert seen == ["reset", ("update", 4, 4), ("update", 4, 4), ("update", 2, 2), 10]


def test_rows_come_in_their_order_in_batches_of_the_given_size_and_transformed():
    sizes = []

    def transform(batch):
        sizes.append(len(batch["x"]))
        return {"x": batch["x"] * 0, "y": batch["y"]}

    def metric(outputs, targets):
        return float(outputs.std(dim=0).sum())

    task = make_task(
        metrics={"spread": metric},
        batch_transform=lambda batch: 1 / 0,
        eval_batch_transform=transform,
        eval_batch_size=7,
    )
    assert evaluate(task, ROWS)["spread"] == 0.0
    assert sizes == [7, 3]


@pytest.mark.parametrize("training", [True, False])
def test_models_and_losses_are_in_their_evaluation_mode_and_the_model_s_comes_back(training):
    class Loss(nn.Module):
        def forward(self, outputs, targets):
            assert not self.training
            return functional.cross_entropy(outputs, targets)

    task = make_task(loss=Loss())
    task.model.train(training)
    assert evaluate(task, ROWS) == evaluate(task, ROWS)  # dropout is off
    assert task.model.training is training


def test_another_model_may_be_evaluated():
    class Fixed(nn.Module):
        def forward(self, x):
            return functional.one_hot(VALID["y"][: len(x)], 3).float() * 100

    def accuracy(outputs, targets):
        return (outputs.argmax(1) == targets).float().mean()

    settings = {"metrics": {"accuracy": accuracy}, "batch_size": 10}
    assert evaluate(make_task(eval_model=Fixed(), **settings), ROWS)["accuracy"] == 1.0
    assert evaluate(make_task(**settings), ROWS)["accuracy"] < 1.0


def test_between_is_called_after_each_batch():
    calls = []
    evaluate(make_task(), ROWS, lambda: calls.append(1))
    assert len(calls) == 3


Pair = namedtuple("Pair", "logits hidden")


def test_outputs_in_containers_are_joined_inside_them():
    a, b = torch.ones(2, 3), torch.zeros(1, 3)
    joined = torch.cat([a, b])
    assert torch.equal(concatenate([a, b]), joined)
    assert torch.equal(concatenate([{"o": a}, {"o": b}])["o"], joined)
    as_tuple = concatenate([(a, [a]), (b, [b])])
    assert torch.equal(as_tuple[0], joined)
    assert torch.equal(as_tuple[1][0], joined)
    named = concatenate([Pair(a, a), Pair(b, b)])
    assert isinstance(named, Pair)
    assert torch.equal(named.hidden, joined)
    assert concatenate([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1.0, 2.0]
    assert concatenate(["a", "b"]) == ["a", "b"]
