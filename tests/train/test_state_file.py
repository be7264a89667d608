"""Whole states as files: what is read back trains as what was written would have."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from routes import ROUTE, TRAIN, VALID, kept, make_trainer, make_visit
from safetensors.torch import load_file
from test_trajectory import CONFIGS, apart
from torch import Tensor, nn

from mophpc import Task
from mophpc.state_folder import check_state, list_states, stem_of
from mophpc.train.arena import allocate
from mophpc.train.batches import InMemory
from mophpc.train.bind import layout_of, settle, unpack
from mophpc.train.device import CPU
from mophpc.train.digest import state_sha256
from mophpc.train.state_file import StateCopy, read_state, write_tensors
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


class Odd(nn.Module):
    """Tensors of every kind that torch calculates with, bits that are no number among them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        generator = torch.Generator().manual_seed(3)
        for name in DTYPES:
            dtype = getattr(torch, name)
            raw = torch.randint(0, 256, (6 * dtype.itemsize,), generator=generator)
            raw = raw if dtype is not torch.bool else raw % 2
            tensor = raw.to(torch.uint8).view(dtype).reshape(2, 3)
            self.register_buffer(f"of_{name}", tensor)
            self.register_buffer(f"scalar_{name}", tensor[1, 2].clone())
            self.register_buffer(f"turned_{name}", tensor.clone().t())
            self.register_buffer(f"empty_{name}", torch.zeros(0, 4, dtype=dtype))
        self.register_buffer("größe", torch.full((3,), math.inf))
        self.register_buffer("every_other", torch.arange(12.0)[::2])
        self.register_buffer("leaves", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool")
DTYPES = (*FLOATS, *INTEGERS, "complex64", "complex128")


def odd(_: Any = None) -> Task:
    model = Odd()
    return Task(model, torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1)), nn.MSELoss(), 1)


def bits_of(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_of_any_kind_keep_their_bits_and_strides(tmp_path):
    task = odd()
    layout = layout_of(task)
    arena = allocate(layout.nbytes)
    with torch.no_grad():
        del task.model._buffers["leaves"]
        task.optimizer.state[task.model.weight] = {"late": torch.arange(6.0).reshape(2, 3).t()}
    rest = settle(task, layout, arena, [1.0, math.nan, 3.0, math.inf, -0.0])
    before, _ = unpack(layout, arena, rest)
    copied = StateCopy(layout, arena, rest, name="c007", config_id=7)
    assert copied.nbytes >= layout.nbytes
    copied.write(tmp_path, 3, None)
    arena[:] = 0
    elsewhere = allocate(layout.nbytes)
    elsewhere[:] = 0xFF
    found = read_state(copied.manifest(tmp_path, 3), layout, elsewhere)
    assert (found.config, found.config_id, found.step) == ("c007", 7, 3)
    after, plain = unpack(layout, elsewhere, found.rest)
    assert repr(plain["progress"]) == "[1.0, nan, 3.0, inf, -0.0]"
    assert plain["absent"] == ["model.leaves"]
    assert after.keys() == before.keys()
    copied.write(tmp_path, 4, None)
    rows, _, _ = write_tensors(tmp_path / "again.safetensors", after)
    for name, _, _ in rows:
        assert after[name].stride() == before[name].stride()
    first, second = (tmp_path / f"{s}.safetensors" for s in (stem_of(3), "again"))
    # `arena` has been cleared: the copy has not, and what was read is what it was.
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() == (tmp_path / f"{stem_of(4)}.safetensors").read_bytes()
    loaded = load_file(first)
    expected = dict(odd().model.named_buffers())
    for name in expected.keys() - {"leaves"}:
        own = after[f"model.{name}"]
        assert bits_of(own) == bits_of(expected[name]) == bits_of(loaded[f"model.{name}"])


def test_a_template_that_is_another_one_now_gives_the_same_state(tmp_path):
    config = {"optimizer": "adamw", "lr": 0.02, "scheduler": "cosine"}
    *_, (digest, _, session) = kept(make_trainer(config))
    rest, held = session.release()
    trainer = make_trainer(config)
    copied = trainer.state_copy(0, session._arena, rest, held)
    copied.write(tmp_path, 6, None)
    layout = make_trainer(config | {"lr": 0.5})._roster.probe(0).layout
    assert layout.template != session._layout.template
    arena = allocate(layout.nbytes)
    found = read_state(copied.manifest(tmp_path, 6), layout, arena)
    assert state_sha256(layout, arena, found.rest) == digest
    before = unpack(session._layout, session._arena, rest)[1]
    assert unpack(layout, arena, found.rest)[1] == before


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
@pytest.mark.parametrize("which", ["safetensors", "json"])
def test_what_a_full_disk_cuts_off_is_not_taken_for_a_state(failing, which, tmp_path, monkeypatch):
    trainer = make_trainer({"optimizer": "adamw", "lr": 0.02})
    arena = trainer.allocate(trainer.nbytes(0))
    rest, held = trainer.start(0, arena).release()
    copied = trainer.state_copy(0, arena, rest, held)
    copied.write(tmp_path, 1, None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if (which == "safetensors") == (calls == 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return own(*arguments)

    if failing == "replace":
        own: Any = Path.replace
        monkeypatch.setattr(Path, "replace", full)
    elif failing == "fsync":
        # Each file, and its folder after the first one.
        own, calls = os.fsync, 0 if which == "safetensors" else -1
        monkeypatch.setattr(os, "fsync", full)
    else:
        own = Path.open

        def limited(path: Path, *arguments: Any) -> Any:
            file = own(path, *arguments)
            if path.name.startswith(".") and which in path.name:
                file.close()
                return Path("/dev/full").open("wb")
            return file

        monkeypatch.setattr(Path, "open", limited)
    with pytest.raises(OSError, match="No space left"):
        copied.write(tmp_path, 2, None)
    monkeypatch.undo()
    assert [step for step, _ in list_states(tmp_path)] == [1]
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left.keys() - before.keys() <= {f"{stem_of(2)}.safetensors"}
    assert {name: left[name] for name in before} == before
    copied.write(tmp_path, 2, None)
    check_state(tmp_path / f"{stem_of(2)}.json")
