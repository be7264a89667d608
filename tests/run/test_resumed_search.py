"""Runs of methods that are cut off and go on, in processes of their own, without MPI."""

from __future__ import annotations

import json
import random

import asking
import pytest
import tiny
from asking import People, at_once, epochs
from cutting import KILLED, Cut, check, cut_off, drawn_cut, resume, run, state_files
from test_local_run import make_store

import mophpc
from mophpc.report.results import Results
from mophpc.requests import Add, Clone, Stop

pytestmark = pytest.mark.timeout(120)

DRAWN = {"lr": mophpc.loguniform(1e-3, 1e-1), "width": [4, 6]}
SEARCHES = {
    "halving": {"method": "halving", "configs": 9, "reduction": 2},
    "hyperband": {"method": "hyperband", "reduction": 2},
    "asha": {"method": "asha", "configs": 9, "reduction": 2},
    "population": {"method": "population", "configs": 4, "interval": 1, "explore": ["lr"]},
    "tpe": {"method": "tpe", "configs": 6},
    "patience": {"method": "random", "configs": 5, "patience": 1},
    "median": {"method": "random", "configs": 6, "median": 1},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), 4)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("seed", range(2))
def test_every_method_goes_on(tmp_path, store, name, seed):
    rng = random.Random(f"{name} {seed}")
    settings = {"search": mophpc.Search(**SEARCHES[name]), "space": DRAWN, "epochs": 4}
    for number in range(1 + seed):
        cut, goes_on = drawn_cut(rng), {"resume": True} if number else {}
        status = cut_off(tmp_path / "run", store, rng.randint(1, 4), cut, **goes_on, **settings)
        assert status in (0, KILLED)
    results = resume(tmp_path / "run", store, rng.randint(1, 4), **settings)
    check(tmp_path / "run", results, epochs=4)


@pytest.mark.parametrize("seed", range(6))
def test_a_users_method_goes_on_whatever_it_decides(tmp_path, store, seed):
    rng = random.Random(seed)
    search = mophpc.Search(method=tiny.Whims, options={"seed": seed}, in_flight=4)
    settings = {"search": search, "space": DRAWN, "epochs": 4, "build": tiny.fails_wide}
    for number in range(1 + seed % 2):
        cut, goes_on = drawn_cut(rng), {"resume": True} if number else {}
        status = cut_off(tmp_path / "run", store, rng.randint(1, 4), cut, **goes_on, **settings)
        assert status in (0, KILLED)
    results = resume(tmp_path / "run", store, rng.randint(1, 4), **settings)
    check(tmp_path / "run", results, epochs=4)
    assert len(results.configs) == 8


@pytest.mark.parametrize("name", ["halving", "hyperband", "population"])
def test_a_method_decides_as_in_the_undisturbed_run_where_metrics_are_the_same(
    tmp_path, store, name
):
    settings = {
        "search": mophpc.Search(**SEARCHES[name]),
        "space": DRAWN,
        "epochs": 4,
        "build": tiny.plain_metric,
        "objective": mophpc.Objective(metric="told", mode="min"),
    }
    before = run(tmp_path / "a", store, 2, **settings)
    cut = Cut("batch", 160)
    assert cut_off(tmp_path / "run", store, 2, cut, **settings) == KILLED
    results = resume(tmp_path / "run", store, 3, **settings)
    check(tmp_path / "run", results, epochs=4)
    assert outline(results) == outline(before)


def outline(results: Results) -> list:
    return [
        (row.status, row.epochs, row.hyperparameters, row.final["told"], len(row.lineage))
        for row in results.configs
    ]


@pytest.mark.parametrize("call", [150, 220])
def test_a_copy_whose_source_went_on_is_made_again(tmp_path, store, call):
    settings = {"search": mophpc.Search(**SEARCHES["population"]), "space": DRAWN, "epochs": 6}
    assert cut_off(tmp_path / "run", store, 2, Cut("batch", call), **settings) == KILLED
    for path in state_files(tmp_path / "run"):
        if json.loads(path.read_text())["facts"].get("copied") or call == 220:
            path.unlink()
    results = resume(tmp_path / "run", store, 2, **settings)
    check(tmp_path / "run", results, epochs=6)
    assert any(row.lineage for row in results.configs)


ASKED = [
    (at_once, Add(set={"lr": 0.02, "width": 5, "pause_s": 0.004})),
    (epochs(0, 1), Clone(config="0", set={"lr": 0.005})),
    (epochs(1, 1), Stop(config="1")),
]
WHEN = {
    "before it is granted": Cut("grant", 2),
    "granted, not written down": Cut("grant", 2, "after"),
    "written down, not answered": Cut("answer", 2),
    "answered, not made": Cut("answer", 2, "after"),
    "all three are answered": Cut("answer", 3, "after"),
    "long after": Cut("batch", 400),
}


@pytest.mark.parametrize("when", WHEN)
def test_what_people_asked_for_survives(tmp_path, store, when):
    folder = tmp_path / "run"
    settings = {"build": asking.slow, "space": asking.SPACE, "epochs": 10}
    settings["search"] = asking.searching("plain")
    with People(folder, ASKED) as people:
        assert cut_off(folder, store, 2, WHEN[when], **settings) == KILLED
        results = resume(folder, store, 3, **settings)
    assert [answer.accepted for answer in people.answers()] == [True] * 3
    check(folder, results, epochs=10)
    assert len(results.configs) == 6
    assert results.configs[1].status == "stopped"
    by_lr = {row.hyperparameters["lr"]: row for row in results.configs}
    assert by_lr[0.02].status == by_lr[0.005].status == "done"
    assert by_lr[0.005].lineage[1]["source"] == 0
    assert [row.status for row in results.configs].count("done") == 5
