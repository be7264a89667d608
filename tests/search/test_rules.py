"""Patience and the median rule."""

from __future__ import annotations

import math

import pytest
from driving import experiment, rides
from hypothesis import given
from hypothesis import strategies as st

from mophpc.search import Continue, Result, Start, Stop, make_method


def told(method, config_id, scores):
    """Return the decision after each score, until it is stopped."""
    found = []
    for epoch, score in enumerate(scores, 1):
        found += method.tell(Result(config_id, epoch, score))
        if isinstance(found[-1], Stop):
            break
    return found


def test_a_config_goes_on_an_epoch_at_a_time():
    method = make_method(experiment("random", configs=2, patience=2), 4)
    assert [(s.epochs, s.then) for s in method.ask(1)] == [(1, 8), (1, 8)]
    assert method.tell(Result(0, 1, 3.0)) == [Continue(0, 2, 7)]
    assert method.tell(Result(1, 8, 3.0)) == [Continue(1, 9, 0)]
    assert method.tell(Result(1, 9, 3.0, is_over=True)) == ()
    assert isinstance(method.ask(4), list)


@pytest.mark.parametrize(
    ("scores", "made"),
    [
        ([3, 2, 1, 0.9, 0.8, 0.7], 6),
        ([3, 2, 2, 2, 1], 4),
        ([3, 4, 2, 3, 3], 5),
        ([1, 1, 1], 3),
        ([math.nan, math.inf, 1], 2),
    ],
)
def test_patience_counts_epochs_without_a_better_score(scores, made):
    method = make_method(experiment("random", configs=1, patience=2), 4)
    method.ask(1)
    found = told(method, 0, scores)
    assert len(found) == made
    is_stopped = made < len(scores) or scores == [1, 1, 1] or scores[-1] == 3
    assert isinstance(found[-1], Stop) == is_stopped


def test_the_median_is_of_the_means_of_at_least_three_others():
    method = make_method(experiment("random", configs=6, median=2), 4)
    method.ask(1)
    # Means after two epochs: 2, 3, 4.
    for config_id, scores in enumerate([[3, 1], [3, 3], [5, 3]]):
        assert told(method, config_id, scores)[-1] == Continue(config_id, 3, 6)
    assert told(method, 3, [9, 3.1, 3]) == [Continue(3, 2, 7), Stop(3)]
    # Means after two epochs: 2, 3, 4, 6.05, whose median is 3.5.
    assert told(method, 4, [9, 3.5])[-1] == Continue(4, 3, 6)
    assert told(method, 5, [3.4, 9])[-1] == Continue(5, 3, 6), "its best counts"


def test_grace_comes_first():
    method = make_method(experiment("random", configs=4, median=3), 4)
    method.ask(1)
    for config_id in range(3):
        told(method, config_id, [1, 1, 1])
    found = told(method, 3, [9, 9, 9])
    assert found == [Continue(3, 2, 7), Continue(3, 3, 6), Stop(3)]


def test_equal_configs_are_not_stopped():
    found = rides(experiment("random", configs=9, median=1), score=lambda values, epochs: 1.0)
    assert {ride.epochs for ride in found} == {9}


@given(st.integers(0, 10_000), st.sampled_from(["random", "tpe"]))
def test_every_config_ends_and_later_ones_still_come(order, method):
    made = experiment(method, configs=12, patience=2, median=2)
    found = rides(made, order=order, room=3)
    assert len(found) == 12
    assert {ride.status for ride in found} <= {"done", "stopped", "diverged"}
    assert found == rides(made, order=order, room=3)
    assert all(isinstance(ride.decisions[0], Start) for ride in found)
