"""People stop, clone and add while a run goes on, and it stays what sequential training gives."""

from __future__ import annotations

import pytest
from asking import CLONE, Desk, People, at_once, epochs, run, searching
from test_local_run import make_store

import mophpc
from mophpc.requests import Add, Clone, Stop

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


def test_what_is_refused(tmp_path, store):
    folder = tmp_path / "run"
    plans = [
        (at_once, Stop(config="9")),
        (at_once, Clone(config="0", set={"nothing": 1.0})),
        (at_once, Add(set={"lr": 0.1})),
        (epochs(1, 2), Clone(config="1", set={"lr": 0.1}, epochs=1)),
    ]
    with People(folder, plans) as people:
        results = run(folder, store, 2, epochs=8, search=searching("plain"))
    answers = people.answers()
    assert [answer.accepted for answer in answers] == [False] * 4
    said = [answer.text for answer in answers]
    assert "has no config '9'" in said[0]
    assert "no hyperparameter 'nothing'" in said[1]
    assert "a value is missing" in said[2]
    assert "give more" in said[3]
    assert {row.status for row in results.configs} == {"done"}


def test_a_plan_that_is_walked_again_takes_no_wishes(tmp_path, store):
    search = searching("population")
    run(tmp_path / "a", store, 2, search=search)
    with People(tmp_path / "b", [(at_once, Stop(config="0"))]) as people:
        run(tmp_path / "b", store, 2, search=search, replay=tmp_path / "a" / "plan.json")
    (answer,) = people.answers()
    assert not answer.accepted
    assert "the plan of this run was fixed" in answer.text


def test_a_config_that_trains_is_stopped_after_what_is_promised(desk):
    desk.director.begin()
    assert desk.make_one()
    accepted, text = desk.ask(Stop(config="0"))
    assert accepted, text
    goal = desk.pool.goal_of(0)
    assert text == f"c000-lr=0.01,width=4 stops after {goal} epochs"
    desk.to_the_end()
    assert desk.epochs_of(0) == goal < 4
    assert desk.epochs_of(1) == 4


def test_a_config_that_has_not_begun_is_stopped_at_once(desk):
    assert desk.ask(Stop(config="1"))[1] == "c001-lr=0.02,width=4 is stopped, after 0 epochs"
    assert [r["status"] for r in desk.reported] == ["stopped"]
    desk.director.begin()
    desk.to_the_end()
    assert [desk.epochs_of(c) for c in (0, 1)] == [4, 0]


def test_a_config_that_trains_is_copied_after_what_is_promised(desk):
    desk.director.begin()
    assert desk.make_one()
    accepted, text = desk.ask(Clone(config="0", set=CLONE))
    assert accepted, text
    goal = desk.pool.goal_of(0)
    assert text == f"c002-lr=0.03,width=4 goes on from c000-lr=0.01,width=4 after its epoch {goal}"
    desk.to_the_end()
    assert [desk.epochs_of(c) for c in (0, 1, 2)] == [4, 4, 4]
    (fork,) = desk.pool.plan().forks
    assert (fork.config_id, fork.source, fork.step) == (2, 0, 2 * goal)


def test_what_ends_before_its_copy_is_made_takes_the_copy_with_it(desk):
    desk.director.begin()
    assert desk.make_one()
    assert desk.ask(Clone(config="0", set=CLONE))[0]
    desk.director.end_config(0)  # it has diverged
    assert [r["config"] for r in desk.reported if r["status"] == "stopped"] == [2]
    desk.to_the_end()
    assert desk.pool.plan().forks == ()


def test_about_to_end(desk):
    desk.director.begin()
    while not desk.pool.is_finished(0):
        desk.clock.s += 1.0
        desk.director.poll()
        assert desk.make_one() or desk.pool.is_finished(0)
    if not desk.pool.members[0].is_over:
        assert "is about to end" in desk.ask(Stop(config="0"))[1]
        assert "makes its last epoch" in desk.ask(Clone(config="0", set=CLONE))[1]
    desk.to_the_end()


def test_ended(tmp_path):
    desk = Desk(tmp_path / "run", epochs=3)
    desk.director.begin()
    desk.director.end_config(0)
    assert desk.ask(Stop(config="0")) == (False, "c000-lr=0.01,width=4 has ended already")
    accepted, text = desk.ask(Clone(config="0", set=CLONE))
    assert not accepted
    assert "has ended, and its state is gone" in text
    assert desk.ask(Clone(config="0", set=CLONE, fresh=True))[0]
    desk.to_the_end()
    assert desk.epochs_of(2) == 3


def test_a_copy_of_what_has_no_state(desk):
    desk.director.begin()
    desk.ask(Clone(config="0", set=CLONE))
    accepted, text = desk.ask(Clone(config="2", set={"lr": 0.02}))
    assert not accepted
    assert "has no state yet" in text
    desk.to_the_end()


def test_additions_make_their_epochs(desk):
    desk.director.begin()
    assert desk.ask(Add(set={"lr": 0.02, "width": 4}, epochs=7))[0]
    assert desk.ask(Add(set={"lr": 0.02, "width": 4}))[0]
    desk.to_the_end()
    assert [desk.epochs_of(c) for c in (2, 3)] == [7, 4]
