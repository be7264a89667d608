"""Ways to train one config along a route, that must all end in the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torture import build

from mophpc import verify
from mophpc.train.batches import InMemory
from mophpc.train.device import CPU, Device
from mophpc.train.session import Session
from mophpc.train.trainer import TorchTrainer

SEED = 7
ROWS = (13, 11, 12)
"""Rows of each shard; none is a whole number of batches."""
ROUTE = ((0, 1), (0, 0), (0, 2), (1, 2), (1, 0), (1, 1))
"""(epoch, shard) of each visit."""

Fields = dict[str, torch.Tensor]
Build = Any


def rows_of(number: int, rows: int) -> Fields:
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.randn(rows, 1, 4, 4, generator=generator)
    return {"x": x, "y": torch.randint(0, 3, (rows,), generator=generator)}


TRAIN = [rows_of(shard, rows) for shard, rows in enumerate(ROWS)]
VALID = rows_of(9, 10)


def make_trainer(
    config: Mapping[str, Any], build: Build = build, device: Device = CPU
) -> TorchTrainer:
    trainer = TorchTrainer(build, [("c000", config)], fields=("x", "y"), seed=SEED, device=device)
    trainer.adopt([trainer.probe(0, InMemory(TRAIN[0]))])
    return trainer


def make_visit(session: Session, step: int) -> dict[str, float]:
    """Train one visit of the route; return the metrics where it ends an epoch."""
    epoch, shard = ROUTE[step]
    outcome = session.train(epoch, shard, InMemory(TRAIN[shard]))
    assert not outcome.diverged
    if (step + 1) % len(ROWS) == 0:
        return session.evaluate(epoch, InMemory(VALID))
    return {}


def kept(trainer: TorchTrainer) -> Iterator[tuple[str, dict[str, float], Session]]:
    """Train where it is from start to end: on the CPU, in one session."""
    arena = trainer.allocate(trainer.nbytes(0))
    arena[:] = 0xA5
    session = trainer.start(0, arena)
    for step in range(len(ROUTE)):
        metrics = make_visit(session, step)
        rest, held = session.release()
        yield trainer.digest(0, arena, rest, held), metrics, session
        if trainer.device is not CPU:
            session = trainer.resume(0, arena, rest, held=held)


def hopped(trainer: TorchTrainer) -> Iterator[tuple[str, dict[str, float], Session]]:
    """Train with a hop after every visit, and with nothing left of where the config was before."""
    arena = trainer.allocate(trainer.nbytes(0))
    arena[:] = 0x5A
    session = trainer.start(0, arena)
    for step in range(len(ROUTE)):
        metrics = make_visit(session, step)
        rest, held = session.release()
        held.wait()
        held.drop()
        there = trainer.allocate(trainer.nbytes(0))
        there[:] = arena
        arena[:] = 0xFF
        yield trainer.digest(0, there, rest), metrics, session
        arena = there
        session = trainer.resume(0, arena, rest)


class Shards:
    """The rows, as `mophpc.verify` reads them from a store."""

    device = CPU

    def train(self, shard: int) -> Fields:
        return TRAIN[shard]

    def valid(self) -> Fields:
        return VALID


def sequential(config: Mapping[str, Any], steps: int, build: Build = build) -> Any:
    """Return the Task that plain torch trained along the first steps of the route."""
    route = [{"epoch": epoch, "shard": shard} for epoch, shard in ROUTE[:steps]]
    row = {"hyperparameters": dict(config), "route": route}
    settings: Any = SimpleNamespace(seed=SEED, device=SimpleNamespace(use="cpu"))
    shards: Any = Shards()
    return verify.Again(settings, build, [row], shards).end(0)
