"""Whole runs whose plan follows what was measured, in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from test_local_run import SPACE, make_store

import mophpc
from mophpc import verify
from mophpc.costs_file import ConfigCosts, CostsFile, load_costs, save_costs
from mophpc.errors import CostsError, ExperimentError, LaunchError
from mophpc.report.results import Results
from mophpc.schedule.check import check_plan
from mophpc.schedule.plan import from_json, untimed


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4, rows=80)


def run(out: Path, store: Path, ranks: int, **settings) -> Results:
    replay = settings.pop("replay", None)
    given = {"build": tiny.build, "epochs": 3, "seed": 5, "space": SPACE} | settings
    experiment = mophpc.Experiment(data=store, **given)
    return mophpc.run_experiment(
        experiment, out, transport="local", ranks=ranks, progress="off", replay=replay
    )


def plan_of(folder: Path):
    return json.loads((folder / "plan.json").read_text())


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_run_from_measured_costs_is_verified_and_walked_again(tmp_path, store, ranks):
    results = run(tmp_path / "a", store, ranks)
    record = plan_of(tmp_path / "a")
    assert record["policy"] == "balanced"
    check_plan(untimed(from_json(record)))
    assert all(t > 0 for own in record["real_end_s"] for t in own)
    assert all(v.equal for v in verify.verify(tmp_path / "a"))
    again = run(tmp_path / "b", store, ranks, replay=tmp_path / "a" / "plan.json")
    assert again.record() == results.record()
    assert plan_of(tmp_path / "b")["digest"] == record["digest"]
    assert plan_of(tmp_path / "b")["renewals"] == []


def test_the_plan_is_renewed_at_least_once_per_epoch(tmp_path, store):
    space = SPACE | {"pause_s": [0.02, 0.05]}
    results = run(tmp_path / "run", store, 2, build=tiny.pauses, space=space)
    record = plan_of(tmp_path / "run")
    assert len(record["renewals"]) >= 3
    ends = [e["end_s"] for e in record["renewals"]]
    assert ends[-1] == pytest.approx(max(t for own in record["real_end_s"] for t in own), rel=0.5)
    assert {row.status for row in results.configs} == {"done"}
    assert all(v.equal for v in verify.verify(tmp_path / "run", ["0", "5"]))


def test_a_run_writes_its_costs_for_the_next(tmp_path, store):
    first = run(tmp_path / "a", store, 2)
    found = load_costs(tmp_path / "a" / "costs.json")
    found.check_names(row.config for row in first.configs)
    given = mophpc.Schedule(costs=str(tmp_path / "a" / "costs.json"), renew=False)
    one = run(tmp_path / "b", store, 2, schedule=given)
    two = run(tmp_path / "c", store, 2, schedule=given)
    assert one.record() == two.record()
    kinds = (tmp_path / "b" / "events" / "rank-0000.jsonl").read_text()
    assert '"pilot"' not in kinds
    assert '"pilot"' in (tmp_path / "a" / "events" / "rank-0000.jsonl").read_text()


def test_faster_ranks_own_more_shards(tmp_path):
    store = make_store(tmp_path, 8, rows=80)
    costs = CostsFile(
        configs={name: ConfigCosts(seconds_per_row=1e-4) for name in names(store)},
        rank_factors=(1.0, 3.0),
    )
    save_costs(tmp_path / "costs.json", costs)
    given = mophpc.Schedule(costs=str(tmp_path / "costs.json"))
    run(tmp_path / "run", store, 2, schedule=given)
    owners = plan_of(tmp_path / "run")["owners"]
    assert (owners.count(0), owners.count(1)) == (6, 2)
    assert all(v.equal for v in verify.verify(tmp_path / "run"))


def names(store: Path) -> list[str]:
    from mophpc.search.space import make_configs

    experiment = mophpc.Experiment(build=tiny.build, data=store, epochs=1, space=SPACE)
    return [config.name for config in make_configs(experiment)]


def test_a_config_that_diverges_leaves_a_renewed_run(tmp_path, store):
    space = {"width": [4, 8], "lr": [0.05, 1e30], "pause_s": [0.01]}
    results = run(tmp_path / "run", store, 2, build=tiny.pauses, space=space)
    status = [row.status for row in results.configs]
    assert status.count("diverged") == 2
    assert all(v.equal for v in verify.verify(tmp_path / "run"))
    load_costs(tmp_path / "run" / "costs.json")


def test_fewer_configs_than_ranks(tmp_path, store):
    results = run(tmp_path / "run", store, 4, space={"width": [4], "lr": [0.05]})
    assert [row.status for row in results.configs] == ["done"]
    assert all(v.equal for v in verify.verify(tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"schedule": mophpc.Schedule(costs="none.json")},
            CostsError,
            "costs file 'none.json' does not",
        ),
        ({"replay": Path("none.json")}, LaunchError, "plan 'none.json' cannot be read"),
        (
            {"replay": "deep"},
            LaunchError,
            r"plan\.json' is no plan to replay: it is not JSON; give",
        ),
        ({"epochs": 2, "replay": "plan"}, LaunchError, "has 3 epochs, this run has 2"),
        ({"space": {"width": [4], "lr": [0.05]}, "replay": "plan"}, LaunchError, "has 4 configs"),
        (
            {"space": SPACE | {"lr": [0.02, 0.03]}, "replay": "plan"},
            LaunchError,
            "is of other configs",
        ),
    ],
)
def test_mistakes(tmp_path, store, settings, error, message):
    if settings.get("replay") == "plan":
        run(tmp_path / "first", store, 2)
        settings = settings | {"replay": tmp_path / "first" / "plan.json"}
    if settings.get("replay") == "deep":
        settings = {"replay": tmp_path / "plan.json"}
        settings["replay"].write_text("[" * 100_000)
    with pytest.raises(error, match=message):
        run(tmp_path / "run", store, 2, **settings)
    assert not (tmp_path / "run" / "experiment.toml").exists()


def test_an_unknown_policy_is_refused(store):
    with pytest.raises(ExperimentError, match="allowed: 'balanced', 'random' or 'round-robin'"):
        mophpc.Experiment(
            build=tiny.build, data=store, epochs=1, space=SPACE, schedule={"policy": "best"}
        )
