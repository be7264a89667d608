"""Whole runs in which a method decides, in one process: verified, and walked again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from test_local_run import make_store

import mophpc
from mophpc import verify
from mophpc.errors import ExperimentError, LaunchError, RunError
from mophpc.files import read_lines
from mophpc.report.results import Results
from mophpc.schedule.check import check_plan
from mophpc.schedule.plan import from_json, untimed

SPACE = {"lr": mophpc.loguniform(1e-3, 1e-1), "width": [4, 6]}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4, rows=80)


def run(out: Path, store: Path, ranks: int, **settings) -> Results:
    replay = settings.pop("replay", None)
    given = {"build": tiny.build, "epochs": 4, "seed": 5, "space": SPACE} | settings
    experiment = mophpc.Experiment(data=store, **given)
    return mophpc.run_experiment(
        experiment, out, transport="local", ranks=ranks, progress="off", replay=replay
    )


def plan_of(folder: Path):
    return json.loads((folder / "plan.json").read_text())


def check_run(folder: Path, results: Results) -> None:
    """Check what holds of every run."""
    check_plan(untimed(from_json(plan_of(folder))))
    verdicts = list(verify.verify(folder))
    assert [v.config for v in verdicts if v.equal is False] == []
    assert len(verdicts) == len(results.configs)
    for row in results.configs:
        assert row.status in ("done", "stopped", "diverged", "failed")
        if row.status in ("done", "stopped") and row.route:
            weights = folder / "checkpoints" / row.config / "model.safetensors"
            assert weights.is_file(), row


SEARCHES = {
    "halving": {"method": "halving", "configs": 9, "reduction": 2},
    "hyperband": {"method": "hyperband", "reduction": 2},
    "asha": {"method": "asha", "configs": 9, "reduction": 2},
    "population": {"method": "population", "configs": 4, "interval": 1, "explore": ["lr"]},
    "tpe": {"method": "tpe", "configs": 6},
    "patience": {"method": "random", "configs": 5, "patience": 1},
    "median": {"method": "random", "configs": 6, "median": 1},
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_method_gives_states_of_sequential_training_and_can_be_walked_again(
    tmp_path, store, name, ranks
):
    search = mophpc.Search(**SEARCHES[name])
    results = run(tmp_path / "a", store, ranks, search=search)
    check_run(tmp_path / "a", results)
    if name in ("halving", "hyperband", "asha"):
        assert {row.status for row in results.configs} == {"done", "stopped"}
    assert read_lines(tmp_path / "a" / "decisions.jsonl")
    again = run(tmp_path / "b", store, ranks, search=search, replay=tmp_path / "a" / "plan.json")
    assert again.record() == results.record()
    assert plan_of(tmp_path / "b")["digest"] == plan_of(tmp_path / "a")["digest"]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_decided_states_are_those_of_sequential_training(tmp_path, store, seed):
    search = mophpc.Search(method=tiny.Whims, options={"seed": seed}, in_flight=4)
    ranks = 1 + seed % 4
    results = run(tmp_path / "a", store, ranks, search=search, build=tiny.fails_wide)
    check_run(tmp_path / "a", results)
    assert len(results.configs) == 8
    again = run(
        tmp_path / "b",
        store,
        ranks,
        search=search,
        build=tiny.fails_wide,
        replay=tmp_path / "a" / "plan.json",
    )
    same = [row for row in results.configs if row.status != "failed"]
    assert [again.configs[row.config_id] for row in same] == same


def test_copies_are_exact_and_told_in_the_results(tmp_path, store):
    search = mophpc.Search(method="population", configs=4, interval=1, explore=["lr"])
    results = run(tmp_path / "run", store, 2, search=search)
    copied = [row for row in results.configs if row.lineage]
    assert copied
    for row in copied:
        assert row.lineage[0]["source"] is None
        assert row.hyperparameters == row.lineage[-1]["hyperparameters"]
        epochs = [entry["epoch"] for entry in row.lineage[1:]]
        assert epochs == sorted(epochs)
    lines = read_lines(tmp_path / "run" / "decisions.jsonl")
    copies = [line for line in lines if line["kind"] == "copy"]
    assert len(copies) == sum(len(row.lineage) - 1 for row in copied)


def test_a_plan_of_another_experiment_is_not_walked_by_a_method(tmp_path, store):
    space = {"lr": [0.01], "width": [4]}
    run(tmp_path / "a", store, 2, space=space)
    search = mophpc.Search(method="halving", configs=2, sampler="random")
    with pytest.raises(LaunchError, match="has no decisions in it"):
        run(tmp_path / "b", store, 2, search=search, replay=tmp_path / "a" / "plan.json")


class Uneven(tiny.Whims):
    """Copies from a config that has made fewer epochs."""

    def ask(self, room):
        if self._values:
            return []
        self._values = [{"lr": 0.01, "width": 4}] * 2
        return [mophpc.search.Start(self._values[0], epochs) for epochs in (1, 2)]

    def tell(self, result):
        self._waiting[result.config_id] = result.epochs
        if len(self._waiting) < 2:
            return []
        return [mophpc.search.Copy(1, 0, {"lr": 0.01, "width": 4}, 4)]


def test_a_copy_between_configs_of_different_epochs_ends_the_run_with_a_sentence(tmp_path, store):
    search = mophpc.Search(method=Uneven, options={"seed": 0})
    with pytest.raises((RunError, ExperimentError), match="both must have made as many"):
        run(tmp_path / "run", store, 2, search=search)
