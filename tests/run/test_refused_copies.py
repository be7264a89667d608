"""Copies of states that do not fit: the config fails, and is told as what it was trained as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_local_run import make_store

import mophpc
from mophpc import verify
from mophpc.files import read_lines
from mophpc.report.results import Results
from mophpc.search import Brief, Continue, Copy, Decision, Result, Start

SPACE = {"lr": [0.01, 0.02, 0.03], "width": [4, 6]}


class Misfit:
    """Three configs; one of them gets a copy after epoch 1 that fits, and after epoch 2 none."""

    def __init__(self, brief: Brief) -> None:
        self._waiting: dict[int, int] = {}
        self._is_begun = False

    def ask(self, room: int) -> list[Start]:
        count, self._is_begun = 0 if self._is_begun else 3, True
        return [Start({"lr": 0.01 * (n + 1), "width": 4}, 1, 3) for n in range(count)]

    def tell(self, result: Result) -> list[Decision]:
        if not result.is_over:
            self._waiting[result.config_id] = result.epochs
        if len(self._waiting) < 3:
            return []
        made = result.epochs
        width = 4 if made == 1 else 6
        self._waiting.clear()
        goal = made + 1 if made == 1 else 4
        copy = Copy(2, 0, {"lr": 0.02, "width": width}, made + 1)
        return [Continue(0, goal), Continue(1, goal), copy]


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


def run(out: Path, store: Path, ranks: int, **settings: Any) -> Results:
    experiment = mophpc.Experiment(
        build=tiny.build,
        data=store,
        epochs=4,
        space=SPACE,
        search={"method": Misfit},
        checkpoints={"keep": 1},
    )
    return mophpc.run_experiment(
        experiment, out, transport="local", ranks=ranks, progress="off", **settings
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_config_that_cannot_use_a_copy_is_told_as_it_was_trained(tmp_path, store, ranks, capsys):
    folder = tmp_path / "run"
    results = run(folder, store, ranks)
    said = capsys.readouterr().err
    assert said.count("the new hyperparameters make a model whose") == 1
    row = results.configs[2]
    assert (row.status, row.epochs) == ("failed", 2)
    assert row.hyperparameters == {"lr": 0.02, "width": 4}
    assert [entry["source"] for entry in row.lineage] == [None, 0]
    assert [r.status for r in results.configs[:2]] == ["done", "done"]
    found = mophpc.load_run(folder)
    assert found.config(2).hyperparameters == row.hyperparameters
    found.model(2)
    mophpc.load_model(found.export(tmp_path / "out", 2))
    status = json.loads((folder / "status.json").read_text())
    assert status["configs"][2]["hyperparameters"] == row.hyperparameters
    assert [v.equal for v in verify.verify(folder, ["0", "1"])] == [True, True]
    assert [line["kind"] for line in read_lines(folder / "decisions.jsonl")].count("copy") == 2
    again = run(tmp_path / "again", store, ranks, replay=folder / "plan.json")
    assert again.record() == results.record()


@pytest.mark.timeout(60)
def test_a_population_may_explore_what_makes_other_models(tmp_path, store):
    search = {
        "method": "population",
        "interval": 1,
        "quantile": 0.5,
        "explore": ["width"],
    }
    experiment = mophpc.Experiment(
        build=tiny.build, data=store, epochs=4, space=SPACE, search=search, checkpoints={"keep": 1}
    )
    folder = tmp_path / "run"
    results = mophpc.run_experiment(experiment, folder, transport="local", progress="off")
    failed = [row for row in results.configs if row.status == "failed"]
    assert failed
    for row in failed:
        mophpc.load_model(mophpc.load_run(folder).export(tmp_path / row.config, row.config_id))
