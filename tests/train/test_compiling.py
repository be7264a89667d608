"""Compiled models: once per rank and architecture, and the same bytes whatever came before."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch
from routes import ROUTE, TRAIN, VALID, hopped, kept, make_trainer, make_visit, sequential
from torch import nn

from mophpc import Task, verify
from mophpc.errors import ExperimentError
from mophpc.train.batches import InMemory
from mophpc.train.trainer import TorchTrainer

# torch's compiler uses parts of torch that are to go.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

compiled: list[torch.fx.GraphModule] = []


def counting(graph, inputs):
    """Take what is to be compiled as it is, and count it."""
    compiled.append(graph)
    return graph.forward


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x.flatten(1)))))


def build(config):
    model = Net(config["width"])
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=config["lr"]),
        loss=nn.CrossEntropyLoss(),
        batch_size=8,
        compile={"backend": config.get("backend", counting)},
    )


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    compiled.clear()
    yield
    torch._dynamo.reset()


def trainer_of(configs):
    named = [(f"c{i:03d}", config) for i, config in enumerate(configs)]
    trainer = TorchTrainer(build, named, fields=("x", "y"), seed=7)
    trainer.adopt([trainer.probe(i, InMemory(TRAIN[0])) for i in range(len(configs))])
    for config_id in range(len(configs)):
        trainer.prime(config_id, InMemory(TRAIN[0]), InMemory(VALID), [len(t["x"]) for t in TRAIN])
    return trainer


def visits(trainer, config_id):
    """Make all visits of a config, with a hop after each."""
    arena = trainer.allocate(trainer.nbytes(config_id))
    session = trainer.start(config_id, arena)
    for step in range(len(ROUTE)):
        make_visit(session, step)
        rest, held = session.release()
        held.wait()
        session = trainer.resume(config_id, arena, rest)


def graphs_after(configs) -> tuple[int, int]:
    """Return how many graphs were compiled before the first visit, and in all."""
    torch._dynamo.reset()
    compiled.clear()
    trainer = trainer_of(configs)
    before = len(compiled)
    for config_id in range(len(configs)):
        visits(trainer, config_id)
    return before, len(compiled)


def test_an_architecture_is_compiled_once_whatever_the_number_of_configs_and_visits():
    one = graphs_after([{"width": 8, "lr": 0.01}])
    many = graphs_after([{"width": 8, "lr": 0.01 * i} for i in range(1, 7)])
    assert one == many
    assert one[0] > 0
    assert one[0] == one[1], "nothing is left to compile in a visit"


def test_more_architectures_than_torch_keeps_by_itself_are_all_compiled():
    few = graphs_after([{"width": 8, "lr": 0.01}])[1]
    before, after = graphs_after([{"width": 8 + i, "lr": 0.01} for i in range(12)])
    assert (before, after) == (12 * few, 12 * few)


def test_what_was_compiled_before_does_not_change_what_is_learned():
    configs = [{"width": 8 + i, "lr": 0.02, "backend": "aot_eager"} for i in range(3)]
    alone = [digest for digest, *_ in hopped(make_trainer(configs[2], build))]
    torch._dynamo.reset()
    trainer = trainer_of(configs)
    for config_id in (0, 1):
        visits(trainer, config_id)
    after = [digest for digest, *_ in hopped(make_trainer(configs[2], build))]
    assert after == alone
    again = sequential(configs[2], len(ROUTE), build)
    assert verify.state_sha256(again) == alone[-1]


def compiler_is_there() -> bool:
    try:
        return (
            subprocess.run(["g++", "--version"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


def test_a_model_that_does_not_compile_is_named_on_every_rank():
    def build_wrong(config):
        task = build(config)
        task.compile = {"backend": broken} if config["broken"] else {"backend": counting}
        return task

    def broken(graph, inputs):
        raise ValueError("no such graph")

    config = {"width": 8, "lr": 0.01, "broken": False}
    trainer = TorchTrainer(build_wrong, [("c000", config)], fields=("x", "y"), seed=7)
    trainer.adopt([trainer.probe(0, InMemory(TRAIN[0]))])
    config["broken"] = True
    torch._dynamo.reset()
    with pytest.raises(ExperimentError, match=r"^config c000: compiling it raised \w+: "):
        trainer.prime(0, InMemory(TRAIN[0]), InMemory(VALID), [13])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not compiler_is_there(), reason="torch.compile needs g++ for the CPU")
def test_torchs_own_compiler_gives_equal_bytes_with_and_without_hops():
    config = {"width": 8, "lr": 0.02, "backend": "inductor"}
    staying, hopping = make_trainer(config, build), make_trainer(config, build)
    for stay, hop in zip(kept(staying), hopped(hopping), strict=True):
        assert hop[0] == stay[0]
    assert verify.state_sha256(sequential(config, len(ROUTE), build)) == hop[0]
    assert np.isfinite(list(hop[1].values())).all()
