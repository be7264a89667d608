"""Whole states as files: what is read back trains as what was written would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from routes import ROUTE, TRAIN, VALID, kept, make_trainer, make_visit
from test_trajectory import CONFIGS, apart

from mophpc.state_folder import check_state, list_states
from mophpc.train.batches import InMemory
from mophpc.train.device import CPU
from mophpc.train.trainer import TorchTrainer


def stop_after(batches: int) -> Any:
    """Return what says once that a visit is to stop after so many batches."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == batches

    return should_stop


def bring_back(trainer: TorchTrainer, session: Any, folder: Path, step: int) -> Any:
    """Write the state of a session, forget it, and read it; return the new session and more."""
    rest, held = session.release()
    copied = trainer.state_copy(0, session._arena, rest, held, session.cursor)
    digest = trainer.digest(0, session._arena, rest, held)
    session._arena[:] = 0xFF
    held.drop()
    path = copied.manifest(folder, step)
    assert copied.write(folder, step, {"step": step}) == sum(
        file.stat().st_size for file in (path, path.with_suffix(".safetensors"))
    )
    check_state(path)
    arena = trainer.allocate(trainer.nbytes(0))
    arena[:] = 0x77
    torch.manual_seed(1)
    np.random.seed(1)
    rest, cursor, facts = trainer.load(0, path, arena)
    assert facts == {"step": step}
    assert trainer.digest(0, arena, rest) == digest
    return trainer.resume(0, arena, rest), cursor, digest


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("device", [CPU, apart()], ids=["cpu", "apart"])
def test_a_state_written_between_two_visits_goes_on_as_if_it_had_not_been(config, device, tmp_path):
    config = {"lr": 0.02} | config
    expected = list(kept(make_trainer(config, device=device)))
    trainer = make_trainer(config, device=device)
    arena = trainer.allocate(trainer.nbytes(0))
    session = trainer.start(0, arena)
    for step in range(len(ROUTE)):
        metrics = make_visit(session, step)
        session, cursor, digest = bring_back(trainer, session, tmp_path, step + 1)
        assert cursor is None
        assert digest == expected[step][0]
        assert {**metrics, "seconds": 0} == {**expected[step][1], "seconds": 0}
    assert [step for step, _ in list_states(tmp_path)] == list(range(1, len(ROUTE) + 1))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("device", [CPU, apart()], ids=["cpu", "apart"])
def test_a_visit_that_stops_in_its_middle_ends_as_if_it_had_not(config, device, tmp_path):
    config = {"lr": 0.02} | config
    expected = list(kept(make_trainer(config, device=device)))
    trainer = make_trainer(config, device=device)
    arena = trainer.allocate(trainer.nbytes(0))
    session = trainer.start(0, arena)
    for step, (epoch, shard) in enumerate(ROUTE):
        rows, cursor = InMemory(TRAIN[shard]), None
        while True:
            should_stop = stop_after(1 + step % 2)
            outcome = session.train(epoch, shard, rows, should_stop=should_stop, cursor=cursor)
            if not outcome.is_paused:
                break
            session, cursor, _ = bring_back(trainer, session, tmp_path, step)
        assert cursor is not None
        metrics = {}
        if (step + 1) % len(TRAIN) == 0:
            metrics = session.evaluate(epoch, InMemory(VALID))
        session, _, digest = bring_back(trainer, session, tmp_path, step + 1)
        assert digest == expected[step][0]
        assert {**metrics, "seconds": 0} == {**expected[step][1], "seconds": 0}
