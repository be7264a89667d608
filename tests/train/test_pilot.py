"""What a config costs, and that measuring it changes nothing."""

from __future__ import annotations

import itertools
import json
import math
import time
from typing import Any

import numpy as np
import pytest
import torch
import torture
from routes import TRAIN, VALID, kept, make_trainer, rows_of
from torch import nn
from torch.nn import functional

import mophpc
from mophpc import Task
from mophpc.data import prepare
from mophpc.errors import ExperimentError, InterruptError, StoreError
from mophpc.run import setup
from mophpc.train.batches import InMemory
from mophpc.train.device import CPU, choose_device
from mophpc.train.pilot import Timing, time_config
from mophpc.train.trainer import TorchTrainer

ROWS, VALID_ROWS = InMemory(rows_of(0, 64)), InMemory(VALID)


def plain(config: Any, **settings: Any) -> Task:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.get("lr", 0.01))
    given: dict[str, Any] = {"loss": functional.cross_entropy, "batch_size": 8} | settings
    return Task(model=model, optimizer=optimizer, **given)


class Counted:
    """A batch_transform that notes the rows of each batch, and pauses."""

    def __init__(self, pauses: Any = ()) -> None:
        self.sizes: list[int] = []
        self.active = False
        self._pauses = iter(pauses)

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.active:
            self.sizes.append(len(batch["y"]))
            time.sleep(next(self._pauses, 0.0))
        return batch


def pilot(build: Any, counted: Counted | None = None, rows: Any = ROWS, **settings: Any) -> Timing:
    trainer = make_trainer({}, build)
    if counted is not None:
        counted.active = True
    timing = time_config(trainer, 0, rows, settings.pop("valid", VALID_ROWS), **settings)
    check_sane(timing)
    return timing


def check_sane(timing: Timing) -> None:
    for value in timing.to_json().values():
        assert 0 < value < 60
        assert math.isfinite(value)
    assert Timing.from_json(json.loads(json.dumps(timing.to_json()))) == timing


@pytest.mark.parametrize(
    ("rows", "most", "sizes"),
    [
        (64, 3, [8] * 4),
        (64, 1, [8] * 2),
        (64, 0, [8] * 2),
        (19, 1, [8] * 2),
        (19, 5, [8] * 6),  # three times the shard's two whole batches, and never the short one
        (8, 2, [8] * 3),
        (5, 2, [5] * 3),
        (1, 2, [1] * 3),
    ],
)
def test_batches_of_equal_size_are_timed_after_one_that_is_not(rows, most, sizes):
    counted = Counted()
    shard = InMemory(rows_of(0, rows))
    pilot(
        lambda config: plain(config, batch_transform=counted),
        counted,
        shard,
        budget_s=60.0,
        most_batches=most,
    )
    assert counted.sizes == sizes


def test_no_batch_is_started_after_the_budget_is_spent():
    counted = Counted(itertools.repeat(0.03))
    timing = pilot(lambda config: plain(config, batch_transform=counted), counted, budget_s=0.04)
    assert len(counted.sizes) in (2, 3)  # a busy machine sleeps longer
    assert timing.seconds_per_row >= 0.03 / 8
    counted = Counted(itertools.repeat(0.03))
    pilot(lambda config: plain(config, batch_transform=counted), counted, budget_s=0.0)
    assert len(counted.sizes) == 2


def test_a_slow_config_is_measured_to_be_slower():
    def slower(pause_s: float) -> float:
        counted = Counted(itertools.repeat(pause_s))
        build = lambda config: plain(config, batch_transform=counted)  # noqa: E731
        return pilot(build, counted, budget_s=60.0, most_batches=3).seconds_per_row

    assert slower(0.04) > 2 * slower(0.008)


def test_neither_the_first_batch_nor_a_straggler_counts():
    counted = Counted([0.3, 0.0, 0.0, 0.2, 0.0, 0.0])
    build = lambda config: plain(config, batch_transform=counted)  # noqa: E731
    timing = pilot(build, counted, budget_s=60.0, most_batches=5)
    assert len(counted.sizes) == 6
    assert timing.seconds_per_row < 0.1 / 8


def test_what_every_visit_does_anew_is_overhead():
    builds: list[float] = []

    def build(config: Any) -> Task:
        time.sleep(0.02)
        builds.append(0.02)
        return plain(config)

    assert pilot(build).overhead_s >= 0.02


class FirstOnly:
    """Rows that note which of them are read."""

    def __init__(self, rows: InMemory, raises: Exception | None = None) -> None:
        self._of, self._raises = rows, raises
        self.read: set[int] = set()
        self.rows = rows.rows

    def blocks(self, order, batch_size):
        if self._raises:
            raise self._raises
        self.read |= set(order.tolist())
        yield from self._of.blocks(order, batch_size)


def test_only_the_first_rows_are_read():
    rows, valid = FirstOnly(ROWS), FirstOnly(VALID_ROWS)
    pilot(lambda config: plain(config, eval_batch_size=3), rows=rows, valid=valid, most_batches=2)
    assert rows.read == set(range(24))
    assert valid.read == set(range(6))


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_config_that_diverges_is_timed_all_the_same(start):
    losses: list[float] = []

    def build(config: Any) -> Task:
        losses.clear()  # each start is a new one

        def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            value = functional.cross_entropy(outputs, targets)
            losses.append(0.0)
            return value * (math.nan if torch.is_grad_enabled() and len(losses) > start else 1.0)

        return plain(config, loss=loss)

    trainer = TorchTrainer(build, [("c000", {})], fields=("x", "y"), seed=1)
    trainer.adopt([make_trainer({}, plain).probe(0, ROWS)])
    check_sane(time_config(trainer, 0, ROWS, VALID_ROWS))
    check_sane(pilot(lambda config: plain({"lr": 1e30})))


def test_a_scheduler_of_the_whole_run_is_not_stepped_beyond_its_end():
    def build(config: Any) -> Task:
        task = plain(config)
        task.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(task.optimizer, 0.1, total_steps=3)
        task.scheduler_interval = "step"
        return task

    pilot(build, rows=InMemory(rows_of(0, 17)))


def test_what_cannot_be_evaluated_in_parts_is_estimated():
    def whole_only(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        if len(targets) < len(VALID["y"]):
            raise ValueError("needs all rows")
        return 1.0

    timing = pilot(lambda config: plain(config, metrics={"m": whole_only}, eval_batch_size=2))
    assert timing.eval_seconds_per_row == timing.seconds_per_row / 3
    slow = lambda batch: time.sleep(0.02) or batch  # noqa: E731
    timed = pilot(lambda config: plain(config, eval_batch_transform=slow, eval_batch_size=4))
    assert timed.eval_seconds_per_row >= 0.02 / 4
    once = pilot(lambda config: plain(config, eval_batch_transform=slow), budget_s=0.0)
    assert once.eval_seconds_per_row >= 0.02 / 8


def test_errors_of_the_user_s_code_name_the_config():
    def later(batch: Any) -> Any:
        if counted.active:
            raise KeyError("width")
        return batch

    counted = Counted()
    message = r"^config c000: timing its first batches raised KeyError: 'width'$"
    with pytest.raises(ExperimentError, match=message) as caught:
        pilot(lambda config: plain(config, batch_transform=later), counted)
    assert isinstance(caught.value.__cause__, KeyError)

    def build(config: Any) -> Task:
        if counted.active:
            raise SystemExit(3)
        return plain(config)

    counted = Counted()
    with pytest.raises(ExperimentError, match=r"^config c000: build raised SystemExit: 3$"):
        pilot(build, counted)


def test_a_damaged_store_and_a_signal_stay_what_they_are():
    for error in (StoreError("shard 0 is damaged"), InterruptError("interrupted")):
        broken = FirstOnly(ROWS, error)
        for given in ({"rows": broken}, {"valid": broken}):
            with pytest.raises(type(error)) as caught:
                pilot(plain, **given)
            assert caught.value is error


def test_a_shard_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        time_config(make_trainer({}, plain), 0, InMemory(rows_of(0, 0)), VALID_ROWS)


@pytest.mark.parametrize("device", [CPU, choose_device("twin", [], 0)], ids=["cpu", "apart"])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "lbfgs"])
def test_a_trajectory_is_the_same_after_a_pilot(optimizer, device):
    more = {} if optimizer == "lbfgs" else {"more": "ema"}
    config = {"lr": 0.02, "optimizer": optimizer, "scheduler": "plateau"} | more
    bare, timed = (make_trainer(config, device=device) for _ in range(2))
    check_sane(time_config(timed, 0, InMemory(TRAIN[0]), VALID_ROWS, budget_s=0.01))
    assert [digest for digest, *_ in kept(bare)] == [digest for digest, *_ in kept(timed)]


def test_a_run_has_the_same_results_with_and_without_pilot(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(59, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(59) % 3)
    prepare(str(tmp_path / "rows.npz"), tmp_path / "rows.zarr", num_shards=3, seed=2)
    configs = [{"optimizer": o, "scheduler": "cosine", "lr": 0.02} for o in ("adamw", "momentum")]
    configs.append(configs[1] | {"lr": 1e30})
    experiment = mophpc.Experiment(
        build=torture.build,
        data=tmp_path / "rows.zarr",
        epochs=2,
        seed=3,
        configs=configs,
        schedule=mophpc.Schedule(costs="equal"),  # routes that do not follow what is measured
    )
    timings: list[Timing] = []
    prepare_run = setup.prepare_run

    def with_pilot(rooms, *args):
        prepared = prepare_run(rooms, *args)
        with rooms.turn:
            for config_id in range(len(configs)):
                shard = prepared.shards[min(prepared.shards)]
                timings.append(time_config(prepared.trainer, config_id, shard, prepared.valid))
        return prepared

    found = []
    for name in ("without", "with"):
        mophpc.run_experiment(
            experiment, tmp_path / name, transport="local", ranks=2, progress="off"
        )
        found.append((tmp_path / name / "results.json").read_bytes())
        monkeypatch.setattr("mophpc.run.conduct.prepare_run", with_pilot)
    assert found[0] == found[1]
    assert len(timings) == 2 * len(configs)
    for timing in timings:
        check_sane(timing)


def test_of_a_streamed_shard_only_the_beginning_is_read(tmp_path, monkeypatch):
    from mophpc.data.part import Part
    from mophpc.data.shard import read_shard, read_valid

    x = np.zeros((4000, 1, 64, 64), np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=np.arange(4000) % 3)
    prepare(str(tmp_path / "rows.npz"), tmp_path / "rows.zarr", num_shards=1)
    rows = read_shard(tmp_path / "rows.zarr", 0, memory_budget=8 << 20)
    valid = read_valid(tmp_path / "rows.zarr")

    def build(config: Any) -> Task:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Task(model=model, optimizer=optimizer, loss=functional.cross_entropy, batch_size=16)

    trainer = TorchTrainer(build, [("c000", {})], fields=("x", "y"), seed=1)
    trainer.adopt([trainer.probe(0, InMemory(rows_of(0, 0) | _first(rows)))])
    furthest = [0]
    read = Part.read

    def noted(part, field, start, stop):
        if field.name == "x":  # all of y is one inner chunk
            furthest[0] = max(furthest[0], stop)
        return read(part, field, start, stop)

    monkeypatch.setattr(Part, "read", noted)
    check_sane(time_config(trainer, 0, rows, valid))
    assert 0 < furthest[0] < rows.rows / 2


def _first(rows):
    arrays, positions = next(rows.blocks(np.arange(16), 16))
    return {name: torch.from_numpy(array[positions]) for name, array in arrays.items()}
