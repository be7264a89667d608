"""Plans that are walked again: those that have nothing to walk, and those of other experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_local_run import make_store

import mophpc
from mophpc.errors import LaunchError
from mophpc.report.results import Results
from mophpc.schedule.plan import Brought, Plan, Visit, to_json

SEARCH = {"method": "asha", "configs": 4, "reduction": 2}
SPACE = {"lr": mophpc.loguniform(1e-3, 1e-1), "width": [4, 6]}


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


def run(out: Path, store: Path, **settings: Any) -> Results:
    replay = settings.pop("replay", None)
    given = {"build": tiny.build, "epochs": 2, "space": SPACE, "search": SEARCH} | settings
    experiment = mophpc.Experiment(data=store, **given)
    return mophpc.run_experiment(
        experiment, out, transport="local", ranks=2, progress="off", replay=replay
    )


@pytest.mark.timeout(30)
def test_the_plan_of_a_run_that_was_cut_off_before_its_first_visit_is_walked(tmp_path, store):
    run(tmp_path / "a", store)
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    plan |= to_json(Plan(4, 2, 4, 2, (0, 0, 1, 1), ((), ()), "pool", 8, ((0, 0),) * 4))
    del plan["ends"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    results = run(tmp_path / "b", store, replay=tmp_path / "plan.json")
    assert [row.route for row in results.configs] == [[]] * 4


def test_a_plan_of_other_hyperparameters_or_another_space_is_refused(tmp_path, store):
    run(tmp_path / "a", store)
    for space, message in (
        ({"lr": mophpc.loguniform(1e-3, 1e-1)}, "one of its configs has 'width'; allowed: lr;"),
        (SPACE | {"depth": [1, 2]}, "one of its configs lacks 'depth'; give"),
        (SPACE | {"width": ["4", "6"]}, r"its space.width is \[4, 6\], here"),
        (SPACE | {"lr": mophpc.loguniform(1e-2, 1e-1)}, r"its space.lr is .*0.001.* it is .*0.01"),
    ):
        with pytest.raises(LaunchError, match=f"is of another experiment: {message}"):
            run(tmp_path / "b", store, space=space, replay=tmp_path / "a" / "plan.json")
    assert not (tmp_path / "b" / "experiment.toml").exists()
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    del plan["space"]
    (tmp_path / "old.json").write_text(json.dumps(plan))
    space = SPACE | {"width": ["4", "6"]}
    with pytest.raises(LaunchError, match="is of another experiment: width is 4; allowed: a str"):
        run(tmp_path / "b", store, space=space, replay=tmp_path / "old.json")


def test_a_plan_that_begins_with_states_on_disk_is_refused(tmp_path, store):
    run(tmp_path / "a", store)
    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    rows = ("c0e1s0r0n4", "c0e1s1r0n5"), ("c0e1s2r1n6", "c0e1s3r1n7")
    visits = tuple(tuple(map(Visit.parse, own)) for own in rows)
    spans, brought = ((4, 8),) + ((0, 0),) * 3, (Brought(0, 4, 0),)
    made = Plan(4, 2, 4, 2, (0, 0, 1, 1), visits, "pool", 8, spans, brought=brought)
    plan |= to_json(made)
    del plan["ends"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(LaunchError, match=r"cut off and resumed.*; it cannot be replayed"):
        run(tmp_path / "b", store, replay=tmp_path / "plan.json")
