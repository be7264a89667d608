"""Successive halving and Hyperband."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from driving import experiment, rides, score
from hypothesis import given
from hypothesis import strategies as st

import mophpc
from mophpc.errors import ExperimentError
from mophpc.search import Continue, Result, Start, Stop, make_configs, make_method
from mophpc.search.halving import hyperband_sizes, make_rungs

orders = st.integers(0, 10_000)


def fine(values, epochs):
    return values["lr"]


@pytest.mark.parametrize(
    ("given", "rungs"),
    [
        ((1, 3, 9), (1, 3, 9)),
        ((1, 3, 27), (1, 3, 9, 27)),
        ((1, 3, 10), (1, 3, 10)),
        ((1, 3, 26), (1, 3, 26)),
        ((2, 2, 4), (2, 4)),
        ((1, 4, 81), (1, 4, 16, 81)),
    ],
)
def test_rungs_grow_by_the_reduction_and_the_last_is_all_epochs(given, rungs):
    assert make_rungs(*given) == rungs


def test_brackets_are_those_of_the_paper():
    # Table 1 of Li et al. 2018: R = 81, eta = 3.
    assert hyperband_sizes(5, 3) == (81, 34, 15, 8, 5)
    assert hyperband_sizes(3, 3) == (9, 5, 3)


@given(orders, st.integers(1, 30), st.integers(2, 4), st.integers(1, 8))
def test_a_rung_has_its_size_whatever_comes_first(order, configs, reduction, room):
    made = experiment("halving", epochs=16, configs=configs, reduction=reduction)
    found = rides(made, order=order, room=room, score=fine)
    rungs = make_rungs(1, reduction, 16)
    for k, epochs in enumerate(rungs):
        there = sum(ride.epochs >= epochs for ride in found)
        assert there == max(1, configs // reduction**k)
    assert {ride.epochs for ride in found} <= set(rungs)
    assert all(ride.status in ("stopped", "done") for ride in found)
    # A constant score: the survivors are the best of all.
    best = sorted(range(configs), key=lambda i: found[i].values["lr"])
    assert {i for i, ride in enumerate(found) if ride.status == "done"} == set(
        best[: max(1, configs // reduction ** (len(rungs) - 1))]
    )


@given(orders, st.sampled_from(["halving", "hyperband"]), st.integers(1, 20))
def test_decisions_do_not_depend_on_the_order_of_results(order, method, room):
    count = {"configs": 25} if method == "halving" else {}
    made = experiment(method, **count)
    assert rides(made, order=order, room=room) == rides(made, order=0, room=4)


@given(st.integers(0, 500), st.integers(3, 30), st.integers(2, 4))
def test_hyperband_makes_the_epochs_of_the_formula(order, epochs, reduction):
    if reduction > epochs:
        return
    made = experiment("hyperband", epochs=epochs, reduction=reduction)
    found = rides(made, order=order, score=fine)
    rungs = make_rungs(1, reduction, epochs)
    s_max = math.floor(math.log(epochs) / math.log(reduction) + 1e-9)
    assert len(rungs) == s_max + 1
    total = 0
    for s in range(s_max, -1, -1):
        n = math.ceil((s_max + 1) / (s + 1) * reduction**s - 1e-9)
        made_before = 0
        for i in range(s + 1):
            reached = rungs[s_max - s + i]
            total += math.floor(n / reduction**i) * (reached - made_before)
            made_before = reached
    assert sum(ride.trained for ride in found) == total
    assert len(make_configs(made)) == len(found)


def test_all_brackets_start_at_once_and_say_how_long_they_may_go_on():
    method = make_method(experiment("hyperband"), 4)
    starts = method.ask(1)
    found = Counter((s.epochs, s.then, s.group) for s in starts)
    assert found == {(1, 8, 0): 9, (3, 6, 1): 5, (9, 0, 2): 3}
    assert method.ask(4) == []


def test_equal_scores_are_decided_by_the_id():
    found = rides(experiment("halving", configs=9), score=lambda values, epochs: 1.0)
    assert [ride.epochs for ride in found] == [9, 3, 3, 1, 1, 1, 1, 1, 1]


def test_one_that_has_diverged_is_the_worst_and_frees_its_place():
    method = make_method(experiment("halving", epochs=3, configs=6), 4)
    assert len(method.ask(1)) == 6
    for config_id in (5, 0, 1, 2):
        assert method.tell(Result(config_id, 1, math.inf, is_over=True)) == ()
    assert method.tell(Result(4, 1, math.inf)) == (), "alive, but without a score"
    decisions = method.tell(Result(3, 1, 7.0))
    assert decisions == [Continue(3, 3), Stop(4)], "two would go on, but one has no score"


def test_the_last_missing_one_may_diverge_or_be_stopped():
    for over in (Result(1, 0, math.inf, is_over=True), Result(1, 1, 0.0, is_over=True)):
        method = make_method(experiment("halving", epochs=3, configs=3), 4)
        method.ask(1)
        method.tell(Result(0, 1, 1.0))
        method.tell(Result(2, 1, 2.0))
        assert method.tell(over) == [Continue(0, 3), Stop(2)]


def test_one_that_somebody_stops_while_it_waits_is_not_promoted():
    method = make_method(experiment("halving", epochs=3, configs=3), 4)
    method.ask(1)
    method.tell(Result(0, 1, 1.0))
    method.tell(Result(0, 1, 1.0, is_over=True))
    method.tell(Result(1, 1, 2.0))
    assert method.tell(Result(2, 1, 3.0)) == [Continue(1, 3), Stop(2)]


def test_when_all_diverge_the_method_ends():
    found = rides(experiment("hyperband"), score=lambda values, epochs: math.inf)
    assert {ride.status for ride in found} == {"diverged"}


def test_a_grid_and_a_list_can_be_halved():
    space = {"lr": [0.1, 0.2, 0.3], "tie": [1, 2]}
    assert Counter(r.epochs for r in rides(experiment("halving", space=space))) == {
        1: 4,
        3: 1,
        9: 1,
    }
    listed = mophpc.Experiment(
        build="m:b", data="s", epochs=3, configs=[{"lr": 0.3}, {"lr": 0.1}, {"lr": 0.2}],
        search={"method": "halving"},
    )  # fmt: skip
    assert [ride.epochs for ride in rides(listed, score=fine)] == [1, 3, 1]


def test_a_space_too_small_for_the_brackets_is_named():
    space = {"lr": [0.1, 0.2, 0.3], "tie": [1]}
    with pytest.raises(ExperimentError, match="whose brackets hold 17 configs, but after 3 conf"):
        make_method(experiment("hyperband", space=space), 4)


def test_then_is_what_is_left():
    found = rides(experiment("halving", configs=27))
    for ride in found:
        for decision in ride.decisions:
            if isinstance(decision, Start | Continue):
                assert decision.epochs + decision.then == 9
    assert score({"lr": 0.5, "tie": 1}, 1) == 1.5
