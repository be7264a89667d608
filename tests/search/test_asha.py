"""ASHA."""

from __future__ import annotations

import math

import pytest
from driving import SPACE, experiment, rides, score
from hypothesis import given
from hypothesis import strategies as st

from mophpc.search import Continue, Result, Start, Stop, make_method, room_of
from mophpc.search.asha import Asha
from mophpc.search.checked import Checked, Shape
from mophpc.search.drive import drive
from mophpc.search.halving import make_rungs
from mophpc.search.sources import Rows

orders = st.integers(0, 10_000)


@given(orders, st.integers(1, 40), st.integers(2, 4), st.integers(1, 9))
def test_every_config_ends_and_one_makes_all_epochs(order, configs, reduction, room):
    made = experiment("asha", configs=configs, reduction=reduction)
    found = rides(made, order=order, room=room, score=lambda values, epochs: values["lr"] / epochs)
    assert len(found) == configs
    assert {ride.status for ride in found} <= {"stopped", "done"}
    assert any(ride.status == "done" for ride in found)
    assert {ride.epochs for ride in found} <= set(make_rungs(1, reduction, 9))


@given(orders, st.integers(1, 40), st.integers(1, 9))
def test_configs_that_diverge_leave_nobody_waiting(order, configs, room):
    found = rides(experiment("asha", configs=configs), order=order, room=room)
    assert {ride.status for ride in found} <= {"stopped", "done", "diverged"}


class Watched:
    """ASHA, with what it must keep to looked at after each result."""

    def __init__(self, inner: Asha, rungs: tuple[int, ...], reduction: int) -> None:
        self.inner, self.rungs, self.reduction = inner, rungs, reduction
        self.num_started = 0
        self.level: dict[int, int] = {}
        self.came: list[dict[int, float]] = [{} for _ in rungs]
        self.promoted: list[set[int]] = [set() for _ in rungs]

    def ask(self, room):
        starts = self.inner.ask(room)
        assert all((start.epochs, start.then) == (self.rungs[0], 0) for start in starts)
        assert len(starts) <= room
        for _ in starts:
            self.level[self.num_started] = 0
            self.num_started += 1
        return starts

    def tell(self, result):
        level = self.level[result.config_id]
        is_short = result.epochs < self.rungs[level]
        self.came[level][result.config_id] = math.inf if is_short else result.score
        decisions = self.inner.tell(result)
        for decision in decisions:
            if isinstance(decision, Continue):
                level = self.level[decision.config_id]
                assert decision.epochs == self.rungs[level + 1]
                assert decision.then == 0  # or new ones would go before those promoted
                self.promoted[level].add(decision.config_id)
                self.level[decision.config_id] += 1
        self.check(least=0)
        return decisions

    def check(self, least: int) -> None:
        """Whoever is among the best of a rung has gone on from it."""
        for came, promoted in zip(self.came[:-1], self.promoted[:-1], strict=True):
            best = sorted(came, key=lambda i: (came[i], i))
            best = best[: max(least, len(came) // self.reduction)]
            assert {i for i in best if came[i] < math.inf} <= promoted


@given(orders, st.integers(1, 30), st.integers(2, 4), st.integers(1, 9))
def test_whoever_is_among_the_best_goes_on_at_once(order, configs, reduction, room):
    rungs = make_rungs(1, reduction, 16)
    rows = [{"lr": (i * 37 % 101) / 101, "tie": 1 + i % 3} for i in range(configs)]
    watched = Watched(Asha(Rows(rows), rungs, configs, reduction), rungs, reduction)
    found = drive(watched, 16, score, shape=Shape(SPACE), room=room, seed=order)
    assert len(found) == configs
    # So nobody was stopped too early: it holds for all that came in the end.
    watched.check(least=1)


def asha(total: int, epochs: int = 9, reduction: int = 3) -> Checked:
    rows = [{"lr": 0.1 * i, "tie": 1} for i in range(total)]
    inner = Asha(Rows(rows), make_rungs(1, reduction, epochs), total, reduction)
    return Checked(inner, epochs, Shape(SPACE), "asha")


def test_promotion_waits_for_nobody():
    method = asha(9)
    assert method.ask(4) == [Start({"lr": 0.1 * i, "tie": 1}, 1) for i in range(4)]
    assert method.tell(Result(2, 1, 3.0)) == []
    assert method.tell(Result(0, 1, 5.0)) == []
    assert method.tell(Result(1, 1, 4.0)) == [Continue(2, 3)], "the best of three"
    assert [start.values["lr"] for start in method.ask(1)] == [0.4]
    assert method.tell(Result(3, 1, 4.5)) == [Stop(0)], "the best of four has gone on"
    assert method.tell(Result(4, 1, 2.0)) == [Continue(4, 3), Stop(3)], "the best of five"


def test_it_is_promoted_later_when_more_have_come():
    method = asha(9)
    method.ask(6)
    for config_id, found in enumerate([1.0, 2.0, 8.0, 7.0, 6.0]):
        decisions = method.tell(Result(config_id, 1, found))
    assert decisions == [Stop(3)]
    assert method.tell(Result(5, 1, 9.0)) == [Continue(1, 3), Stop(5)]


def test_one_that_can_never_be_promoted_is_stopped_at_once():
    method = asha(9)
    method.ask(6)
    found = [method.tell(Result(i, 1, float(i))) for i in range(4)]
    # At most three of nine go on, and three are better than the fourth.
    assert found == [[], [], [Continue(0, 3)], [Stop(3)]]


def test_when_no_other_can_come_the_best_goes_on_nevertheless():
    method = asha(2)
    assert len(method.ask(8)) == 2
    assert method.tell(Result(1, 1, 5.0)) == []
    assert method.tell(Result(0, 1, 4.0)) == [Continue(0, 3), Stop(1)]
    assert method.tell(Result(0, 3, 4.0)) == [Continue(0, 9)]
    assert method.tell(Result(0, 9, 4.0, is_over=True)) == []


def test_a_source_that_dries_up_leaves_nobody_waiting():
    method = Checked(Asha(Rows([{"lr": 0.1, "tie": 1}]), (1, 3), 50, 3), 3, Shape(SPACE), "asha")
    assert len(method.ask(1)) == 1
    assert method.tell(Result(0, 1, 1.0)) == [Continue(0, 3)]
    assert method.ask(5) == []


def test_a_config_held_while_looking_for_more_comes_at_the_next_ask():
    method = asha(4)
    method.ask(1)
    assert method.tell(Result(0, 1, 1.0)) == []
    assert [start.values["lr"] for start in method.ask(2)] == pytest.approx([0.1, 0.2])


def test_one_that_somebody_stops_while_it_waits_makes_room():
    method = asha(6, epochs=3)
    method.ask(6)
    assert [method.tell(Result(i, 1, float(i))) for i in (1, 2)] == [[], []]
    assert method.tell(Result(1, 1, 1.0, is_over=True)) == []
    assert method.tell(Result(3, 1, 3.0)) == [Continue(2, 3)]


def test_one_that_somebody_stops_as_it_comes_takes_nobodys_place():
    method = asha(3, epochs=3)
    method.ask(3)
    assert method.tell(Result(0, 1, 1.0, is_over=True)) == []
    assert method.tell(Result(1, 1, 3.0)) == []
    assert method.tell(Result(2, 1, 2.0)) == [Continue(2, 3), Stop(1)]


def test_the_same_results_in_the_same_order_are_decided_alike():
    made = experiment("asha", configs=20)
    assert rides(made, order=5) == rides(made, order=5)
    assert rides(made, order=5) != rides(made, order=6)
    assert make_method(made, 4).ask(20) == make_method(made, 9).ask(20)


@pytest.mark.parametrize(
    ("method", "search", "room"),
    [
        ("asha", {}, 32),
        ("asha", {"in_flight": 5}, 5),
        ("tpe", {}, 16),
        ("tpe", {"in_flight": 9}, 9),
    ],
)
def test_how_many_are_in_training_at_a_time(method, search, room):
    assert room_of(experiment(method, configs=20, **search), 8) == room
