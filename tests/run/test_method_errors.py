"""What an own method does wrong while a run goes on is said as the method's, and ends the run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tiny
from test_local_run import make_store

import mophpc
from mophpc.errors import ExperimentError, RunError
from mophpc.run.rank0 import searching
from mophpc.search import Brief, Continue, Decision, Result, Start

SPACE = {"lr": [0.01, 0.02], "width": [4]}


class Begins:
    def __init__(self, brief: Brief) -> None:
        self._left = 4

    def ask(self, room: int) -> list[Start]:
        count, self._left = self._left, 0
        return [Start({"lr": 0.01, "width": 4}, 1) for _ in range(count)]

    def tell(self, result: Result) -> list[Decision]:
        return [] if result.is_over else [Continue(result.config_id, result.epochs + 1)]


class Raises(Begins):
    def tell(self, result: Result) -> list[Decision]:
        if result.epochs == 2:
            raise ValueError("no idea")
        return super().tell(result)


class Interrupts(Begins):
    def tell(self, result: Result) -> list[Decision]:
        raise KeyboardInterrupt


class Ponders(Begins):
    def __init__(self, brief: Brief) -> None:
        super().__init__(brief)
        time.sleep(0.3)

    def tell(self, result: Result) -> list[Decision]:
        time.sleep(0.15)
        return super().tell(result)


class Forgets(Begins):
    def tell(self, result: Result) -> list[Decision]:
        return []


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


def run(out: Path, store: Path, method: type, ranks: int) -> None:
    experiment = mophpc.Experiment(
        build=tiny.build, data=store, epochs=3, space=SPACE, search={"method": method}
    )
    mophpc.run_experiment(experiment, out, transport="local", ranks=ranks, progress="off")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("method", "said"),
    [(Raises, "tell raised ValueError: no idea"), (Interrupts, "tell raised KeyboardInterrupt")],
)
def test_the_place_of_a_methods_error_is_no_config(tmp_path, store, method, said, ranks):
    with pytest.raises((RunError, ExperimentError)) as caught:
        run(tmp_path / "run", store, method, ranks)
    text = str(caught.value)
    assert said in text
    assert text.startswith(f"rank 0 of {ranks} on ")
    assert ", config " not in text
    assert "shard" not in text
    assert "epoch" not in text


def test_a_method_that_thinks_for_long_is_said_once_when_it_is_made_and_once_later(
    tmp_path, store, capsys, monkeypatch
):
    monkeypatch.setattr(searching, "LONG_S", 0.1)
    run(tmp_path / "run", store, Ponders, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("Ponders' has been thinking for 0 s; ranks that have no" in line for line in lines)


@pytest.mark.parametrize("method", [Begins, Forgets])
def test_configs_that_a_method_leaves_without_a_decision_are_said(tmp_path, store, method, capsys):
    run(tmp_path / "run", store, method, 2)
    said = capsys.readouterr().err
    forgot = "has started nothing more and left 4 configs without a decision; they are stopped"
    assert said.count(forgot) == (1 if method is Forgets else 0)


@pytest.mark.timeout(60)
def test_code_that_interrupts_is_named_as_any_other(tmp_path, store):
    experiment = mophpc.Experiment(build=interrupts, data=store, epochs=3, space=SPACE)
    with pytest.raises(RunError, match=r"config c00\d.*, shard \d: KeyboardInterrupt"):
        mophpc.run_experiment(
            experiment, tmp_path / "run", transport="local", ranks=2, progress="off"
        )


def interrupts(config):
    task = tiny.build(config)

    def transform(batch):
        if task.lr_scheduler.last_epoch == 1:
            raise KeyboardInterrupt
        return batch

    task.batch_transform = transform
    return task
