"""What people ask of a run is done: stop, clone and add, in every phase."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tiny
from asking import CLONE, VALUES, Desk, People, at_once, epochs, run, searching
from test_directed_run import check_run, plan_of
from test_local_run import make_store

import mophpc
from mophpc.files import read_lines
from mophpc.report.results import Results
from mophpc.requests import Add, Clone, Stop, Wish

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4, rows=80)


@pytest.fixture(autouse=True)
def quick_look(monkeypatch):
    """Rank 0 looks into the folder more often than once a second."""
    monkeypatch.setattr(
        "mophpc.run.rank0.chief.RequestBox",
        lambda folder, warn: mophpc.requests.RequestBox(folder, warn, every_s=0.005),
    )


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path / "run")


@pytest.mark.parametrize(
    ("ranks", "name"), [(1, "plain"), (3, "plain"), (2, "asha"), (3, "halving"), (2, "population")]
)
def test_stop_clone_and_add(tmp_path, store, name, ranks):
    folder = tmp_path / "a"
    plans = [
        (at_once, Add(set=VALUES, epochs=2)),
        (epochs(0, 1), Clone(config="0", set={"lr": 0.005})),
        (epochs(1, 1), Stop(config="c001")),
        (epochs(2, 1), Clone(config="c002", set={"lr": 0.03}, fresh=True)),
        (epochs(2, 1), Add(set=VALUES | {"width": 7})),
    ]
    with People(folder, plans) as people:
        results = run(folder, store, ranks, search=searching(name))
    assert len(people.asked) == len(plans)
    answers = people.answers()
    check_run(folder, results)
    begun = len(results.configs) - sum(
        a.accepted
        for (wish, _), a in zip(people.asked, answers, strict=True)
        if not isinstance(wish, Stop)
    )
    assert begun >= 4
    check_lineage(results)
    again = run(tmp_path / "b", store, ranks, search=searching(name), replay=folder / "plan.json")
    assert again.record() == results.record()
    assert plan_of(tmp_path / "b")["digest"] == plan_of(folder)["digest"]


def check_lineage(results: Results) -> None:
    for row in results.configs:
        if row.lineage:
            assert row.lineage[0]["source"] is None
            assert row.lineage[-1]["hyperparameters"] == row.hyperparameters
        if row.route and row.route[0]["epoch"] > 0:
            assert row.lineage[1]["epoch"] == row.route[0]["epoch"]


def test_a_plain_run_with_people_says_what_became_of_each(tmp_path, store):
    """On one rank with few configs, each wish is granted, and all that was asked is seen."""
    folder = tmp_path / "run"
    plans = [
        (at_once, Add(set=VALUES, epochs=2)),
        (epochs(0, 1), Stop(config="0")),
        (epochs(1, 1), Clone(config="1", set={"lr": 0.005}, epochs=12)),
    ]
    with People(folder, plans) as people:
        results = run(folder, store, 2, epochs=12, search=searching("plain"))
    assert [a.text for a in people.answers() if not a.accepted] == []
    assert [row.config_id for row in results.configs] == list(range(6))
    stopped, added, clone = results.configs[0], results.configs[4], results.configs[5]
    assert stopped.status == "stopped"
    assert 1 <= stopped.epochs < 12
    assert (added.epochs, added.hyperparameters) == (2, VALUES)
    assert (clone.epochs, clone.hyperparameters["lr"]) == (12, 0.005)
    assert [entry["source"] for entry in clone.lineage] == [None, 1]
    assert clone.lineage[1]["epoch"] == clone.route[0]["epoch"] > 0
    check_run(folder, results)
    kinds = {
        (line["kind"], line["config_id"])
        for line in read_lines(folder / "decisions.jsonl")
        if line.get("by") == "people"
    }
    assert {("start", 4), ("copy", 5), ("stop", 0)} <= kinds


@pytest.mark.parametrize("seed", range(3))
def test_people_and_whims(tmp_path, store, seed):
    """Wishes at moments of all kinds, about configs that may diverge, wait, or have ended."""
    folder, rng = tmp_path / "a", np.random.default_rng(seed)
    plans: list[tuple[Callable[[dict], bool], Wish]] = []
    for number in range(12):
        config = str(rng.integers(0, 6))
        wish = (
            Stop(config=config),
            Clone(config=config, set={"lr": 0.004}),
            Clone(config=config, set={"lr": 0.004}, epochs=3),
            Add(set={"lr": 0.02, "width": 4}, epochs=int(rng.integers(1, 5))),
        )[int(rng.choice(4, p=(0.2, 0.4, 0.2, 0.2)))]
        plans.append((lambda made, least=number // 2: sum(made.values()) >= least, wish))
    search = mophpc.Search(method=tiny.Whims, options={"seed": seed, "configs": 8}, in_flight=4)
    ranks = 1 + seed % 3
    with People(folder, plans) as people:
        results = run(
            folder,
            store,
            ranks,
            build=tiny.fails_wide,
            search=search,
            space={"lr": mophpc.loguniform(1e-3, 1e-1), "width": [4, 6]},
        )
    people.answers()
    check_run(folder, results)
    check_lineage(results)


def test_stopped_and_copied_at_once(desk):
    desk.director.begin()
    assert desk.ask(Stop(config="0"))[0]
    assert desk.ask(Clone(config="0", set=CLONE))[0]
    assert desk.ask(Clone(config="0", set={"lr": 0.02}, epochs=3))[0]
    desk.to_the_end()
    goal = desk.epochs_of(0)
    assert goal < 3
    assert [desk.epochs_of(c) for c in (1, 2, 3)] == [4, 4, 3]
    assert [fork.step for fork in desk.pool.plan().forks] == [2 * goal] * 2


def between(desk: Desk) -> int:
    """Let a config stand between two epochs, with nothing of it promised."""
    desk.director.begin()
    for _ in range(100):
        for config_id, member in enumerate(desk.pool.members):
            left = desk.pool._promises.step_of(config_id) - member.made
            if member.made and not left and member.made < member.goal and not member.made % 2:
                return config_id
        if not desk.make_one():
            desk.clock.s += 1.0
            desk.director.poll()
    raise AssertionError("no config stands between two epochs")


def test_a_config_is_stopped_between_two_epochs(tmp_path):
    desk = Desk(tmp_path / "run", num_configs=5)
    config_id = between(desk)
    made = desk.epochs_of(config_id)
    accepted, text = desk.ask(Stop(config=str(config_id)))
    assert accepted, text
    desk.to_the_end()
    assert desk.epochs_of(config_id) == made
    notes = read_lines(tmp_path / "run" / "decisions.jsonl")
    assert [n.get("by") for n in notes if n["kind"] == "stop"] == ["people"]


def test_a_config_is_copied_between_two_epochs(tmp_path):
    desk = Desk(tmp_path / "run", num_configs=5)
    config_id = between(desk)
    accepted, text = desk.ask(Clone(config=str(config_id), set=CLONE))
    assert accepted, text
    desk.to_the_end()
    assert [desk.epochs_of(c) for c in range(6)] == [4] * 6
    assert [fork.source for fork in desk.pool.plan().forks] == [config_id]


def test_a_copy_is_copied_before_it_has_trained(desk):
    desk.director.begin()
    assert desk.make_one()
    assert desk.ask(Clone(config="0", set=CLONE))[0]
    while desk.pool.rank_of(2) < 0:
        if not desk.make_one():
            desk.clock.s += 1.0
            desk.director.poll()
    accepted, text = desk.ask(Clone(config="2", set={"lr": 0.02}))
    assert accepted, text
    desk.to_the_end()
    assert [desk.epochs_of(c) for c in range(4)] == [4] * 4
