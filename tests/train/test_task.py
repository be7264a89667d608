"""What `build` may return, and what is said where it returns something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from routes import TRAIN
from torch import nn

from mophpc import Task
from mophpc.errors import ExperimentError
from mophpc.train.batches import InMemory
from mophpc.train.checks import check_objective
from mophpc.train.task import check_task
from mophpc.train.trainer import TorchTrainer

FIELDS = ("x", "y")


def make_task(**settings: Any) -> Task:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    given: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss": nn.CrossEntropyLoss(),
        "batch_size": 4,
    }
    return Task(**(given | settings))


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


class Average:
    def reset(self): ...
    def update(self, outputs, targets): ...
    def compute(self):
        return 1.0


RIGHT = [
    {},
    {"metrics": {"a": accuracy, "b": Average()}, "scheduler_metric": "a"},
    {"clip_grad_norm": 1, "eval_batch_size": 9, "scheduler_interval": "step"},
    {"extras": {"model": nn.Linear(1, 1)}, "eval_model": nn.Linear(1, 1)},
    {"inputs": "y", "targets": "x"},
    {"batch_transform": dict, "eval_batch_transform": dict, "training_step": lambda t, b: 0},
]


@pytest.mark.parametrize("settings", RIGHT, ids=",".join)
def test_a_right_task_is_returned_as_it_is(settings):
    task = make_task(**settings)
    assert check_task(task, "c000", FIELDS) is task


WRONG = [
    ({"model": accuracy}, "Task.model is a function; allowed: Module"),
    ({"optimizer": None}, "Task.optimizer is a NoneType; allowed: Optimizer"),
    ({"metrics": [accuracy]}, "Task.metrics is a list; allowed: Mapping"),
    ({"metrics": {"a": 3}}, "Task.metrics['a'] is a int; allowed: a function of outputs, targets"),
    ({"metrics": {"seconds": accuracy}}, "Task.metrics has 'seconds', a name that mophpc records"),
    ({"metrics": {"valid_loss": accuracy}}, "Task.metrics has 'valid_loss', a name that mophpc"),
    ({"extras": nn.Linear(1, 1)}, "Task.extras is a Linear; allowed: Mapping"),
    ({"extras": {"e": 3}}, "Task.extras['e'] has no state_dict and load_state_dict"),
    ({"eval_model": 1}, "Task.eval_model is a int; allowed: torch.nn.Module or None"),
    ({"batch_size": 0}, "Task.batch_size is 0; allowed: an integer of at least 1"),
    ({"batch_size": 4.0}, "Task.batch_size is 4.0; allowed: an integer of at least 1"),
    ({"batch_size": True}, "Task.batch_size is True; allowed: an integer of at least 1"),
    ({"batch_size": None}, "Task.batch_size is None; allowed: an integer of at least 1"),
    ({"eval_batch_size": -1}, "Task.eval_batch_size is -1; allowed: an integer of at least 1"),
    ({"loss": "mse"}, "Task.loss is a str; allowed: a function of outputs, targets"),
    ({"batch_transform": 1}, "Task.batch_transform is a int; allowed: a function or None"),
    ({"training_step": "x"}, "Task.training_step is a str; allowed: a function or None"),
    ({"clip_grad_norm": 0}, "Task.clip_grad_norm is 0; allowed: a positive number or None"),
    ({"clip_grad_norm": "1"}, "Task.clip_grad_norm is '1'; allowed: a positive number or None"),
    ({"scheduler_interval": "batch"}, "Task.scheduler_interval is 'batch'; allowed: 'epoch', 's"),
    ({"lr_scheduler": 0.9}, "Task.lr_scheduler has no state_dict and load_state_dict"),
    ({"scheduler_metric": "a"}, "Task.scheduler_metric is 'a'; allowed: train_loss, valid_loss"),
    ({"inputs": "image"}, "Task.inputs is 'image', which the store does not have; it has x, y"),
    ({"targets": "z"}, "Task.targets is 'z', which the store does not have; it has x, y"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[text for _, text in WRONG])
def test_a_wrong_task_is_refused_in_one_sentence_that_names_the_config(settings, message):
    with pytest.raises(ExperimentError) as caught:
        check_task(make_task(**settings), "c003-lr=0.1", FIELDS)
    assert str(caught.value).startswith(f"config c003-lr=0.1: {message}")
    assert "\n" not in str(caught.value)


def raises(_):
    raise KeyError("width")


def wrong_width(_):
    return make_task(model=nn.Linear(5, 3))


def no_loss(_):
    return make_task(training_step=lambda task, batch: None)


def cannot_hop(_):
    class Odd:
        def state_dict(self):
            return {"generator": torch.Generator()}

        def load_state_dict(self, state): ...

    return make_task(extras={"odd": Odd()})


BUILDS = [
    (lambda _: None, "build returned a NoneType; it must return a mophpc.Task"),
    (lambda _: nn.Linear(1, 1), "build returned a Linear; it must return a mophpc.Task"),
    (raises, "build raised KeyError: 'width'"),
    (wrong_width, "training on the first batch raised RuntimeError: mat1 and mat2"),
    (no_loss, "training on the first batch raised TypeError: "),
    (cannot_hop, "the state holds a Generator at 'extras.odd.generator', which cannot hop"),
]


@pytest.mark.parametrize(("build", "message"), BUILDS)
def test_a_wrong_build_is_found_before_the_run(build, message):
    trainer = TorchTrainer(build, [("c000", {}), ("c001-a=1", {"a": 1})], fields=FIELDS, seed=0)
    with pytest.raises(ExperimentError) as caught:
        trainer.probe(1, InMemory(TRAIN[0]))
    assert str(caught.value).startswith(f"config c001-a=1: {message}")
    assert "\n" not in str(caught.value)


def test_build_gets_its_own_copy_of_the_hyperparameters():
    def build(config):
        assert config == {"a": 1}
        config.clear()
        return make_task()

    TorchTrainer(build, [("c000", {"a": 1})], fields=FIELDS, seed=0).probe(0, InMemory(TRAIN[0]))


def test_the_objective_must_be_recorded_by_every_config():
    def build(config):
        return make_task(metrics={"accuracy": accuracy} if config["with"] else {})

    trainer = TorchTrainer(
        build, [("c000", {"with": True}), ("c001", {"with": False})], fields=FIELDS, seed=0
    )
    trainer.adopt([trainer.probe(i, InMemory(TRAIN[0])) for i in range(2)])
    check_objective(trainer, ["c000"], "accuracy")
    check_objective(trainer, ["c000", "c001"], "train_loss")
    with pytest.raises(
        ExperimentError,
        match=r"objective\.metric is 'accuracy', which config c001 does not record; "
        "allowed: train_loss, valid_loss",
    ):
        check_objective(trainer, ["c000", "c001"], "accuracy")


def plain(config: dict[str, Any]) -> Task:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Task(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=4)


def test_a_model_that_cannot_be_evaluated_is_named_before_the_first_visit():
    def build(config):
        task = plain(config)
        forward = task.model.forward

        def only_in_training(x):
            if not task.model.training:
                raise ValueError("no evaluation here")
            return forward(x)

        task.model.forward = only_in_training
        return task

    trainer = TorchTrainer(build, [("c000", {})], fields=FIELDS, seed=0)
    with pytest.raises(ExperimentError, match="c000: evaluating a batch raised ValueError: no ev"):
        trainer.probe(0, InMemory(TRAIN[0]))


def test_a_training_step_that_returns_many_numbers_is_named():
    def build(config):
        task = plain(config)
        task.training_step = lambda task, batch: task.model(batch["x"]).sum(1)
        return task

    trainer = TorchTrainer(build, [("c000", {})], fields=FIELDS, seed=0)
    with pytest.raises(ExperimentError, match=r"returned a tensor of shape \(\d+,\); it must retu"):
        trainer.probe(0, InMemory(TRAIN[0]))


def test_an_operation_that_is_not_deterministic_says_which_setting_allows_it():
    def build(config):
        task = plain(config)
        task.training_step = step
        return task

    def step(task, batch):
        raise RuntimeError(
            "index_reduce_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'."
        )

    trainer = TorchTrainer(build, [("c000", {})], fields=FIELDS, seed=0)
    with pytest.raises(ExperimentError, match=r"allow it with device.deterministic = false"):
        trainer.probe(0, InMemory(TRAIN[0]))
