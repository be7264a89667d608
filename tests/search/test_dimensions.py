"""Dimensions: what their values are, and how often each is drawn."""

from __future__ import annotations

import math
import re
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mophpc
from mophpc.dimensions import dimension, in_order
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment
from mophpc.report.results import ConfigResult, Results

SHARES = [i / 1000 for i in range(1000)]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (mophpc.choice(["a", 1, 1.0, True]), ["a", 1, 1.0, True]),
        (mophpc.uniform(0, 0.5, step=0.1), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (mophpc.uniform(1, 2, step=0.4), [1.0, 1.4, 1.8]),
        (mophpc.uniform(2, 2, step=1), [2.0]),
        (mophpc.integer(-1, 2), [-1, 0, 1, 2]),
        (mophpc.integer(16, 70, step=16), [16, 32, 48, 64]),
        (mophpc.integer(1, 4, log=True), [1, 2, 3, 4]),
    ],
)
def test_all_values_of_a_grid_are_drawn_and_no_others(own, expected):
    assert [(type(v), v) for v in own.grid] == [(type(v), v) for v in expected]
    drawn = Counter((type(own.at(share)), own.at(share)) for share in SHARES)
    assert set(drawn) == {(type(v), v) for v in expected}
    if not getattr(own, "log", False):
        assert max(drawn.values()) - min(drawn.values()) <= 1


@given(st.floats(0, 1, exclude_max=True))
def test_numbers_without_number_stay_within_their_bounds(share):
    assert 0.25 <= mophpc.uniform(0.25, 0.75).at(share) <= 0.75
    assert 1e-4 <= mophpc.loguniform(1e-4, 1e-1).at(share) <= 1e-1
    assert mophpc.integer(1, 1000, log=True).at(share) in range(1, 1001)


def test_each_order_of_magnitude_is_as_likely():
    own = mophpc.loguniform(1e-4, 1e-1)
    assert own.grid is None
    tens = Counter(math.floor(math.log10(own.at(share))) for share in SHARES)
    assert [tens[ten] for ten in (-4, -3, -2)] == pytest.approx([333] * 3, abs=1)
    integers = mophpc.integer(1, 999, log=True)
    tens = Counter(len(str(integers.at(share))) for share in SHARES)
    assert [tens[digits] for digits in (1, 2, 3)] == pytest.approx([333] * 3, abs=2)


def test_a_list_and_tables_mean_the_same_as_the_functions():
    assert dimension([1, 2]) == mophpc.choice([1, 2])
    assert dimension({"uniform": [0, 1]}) == mophpc.uniform(0, 1)
    assert dimension({"loguniform": [1e-3, 1]}) == mophpc.loguniform(1e-3, 1)
    assert dimension({"integer": [1, 9], "step": 2}) == mophpc.integer(1, 9, step=2)
    when = {"arch": ["cnn", "mlp"]}
    assert dimension({"choice": [3], "when": when}) == mophpc.choice([3], when=when)
    experiment = Experiment(
        build="m:build",
        data="s",
        epochs=1,
        space={"a": [1, 2], "b": {"integer": [1, 2]}, "c": mophpc.uniform(0, 1, when={"a": 1})},
        search={"configs": 3},
    )
    assert experiment.model_dump()["space"] == {
        "a": [1, 2],
        "b": {"integer": [1, 2]},
        "c": {"uniform": [0.0, 1.0], "when": {"a": 1}},
    }
    assert Experiment.model_validate(experiment.model_dump()) == experiment


def test_a_condition_is_about_a_value_of_its_own_type():
    own = mophpc.choice([1], when={"a": [1, "x"]})
    assert own.exists({"a": 1})
    assert own.exists({"a": "x"})
    assert not any(own.exists(row) for row in ({}, {"a": True}, {"a": 1.0}, {"a": 2}, {"b": 1}))


def experiment(**space):
    return Experiment(build="m:build", data="s", epochs=1, space=space)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"a": mophpc.choice([1], when={"a": 1})}, r"space.a.when names 'a'; allowed: another one"),
        (
            {"a": mophpc.choice([1], when={"c": 1}), "b": [1]},
            r"space.a.when names 'c'; allowed: another one \(b\)",
        ),
        (
            {"a": mophpc.choice([1], when={"b": []}), "b": ["x", "y"]},
            r"space.a.when gives no value of b; allowed: one that it has",
        ),
        (
            {"a": mophpc.choice([1], when={"b": "z"}), "b": ["x", "y"]},
            r"space.a.when asks for b = 'z', which it never is; it can be 'x', 'y'",
        ),
        (
            {
                "a": mophpc.choice([1], when={"b": 1}),
                "b": mophpc.choice([1], when={"a": 1}),
                "c": [1],
            },
            "conditions of a, b depend on each other in a circle",
        ),
    ],
)
def test_a_condition_that_can_never_be_met_is_named(space, said):
    with pytest.raises(ExperimentError, match=said):
        experiment(**space)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {"uniform": [-1.7e308, 1.7e308]},
            r"space.a uniform = \[-1.7e\+308, 1.7e\+308\]: the bounds are too far apart",
        ),
        (
            {"uniform": [0.1, 0.3], "step": 1e-9},
            r"space.a step = 1e-09 makes more than 1000000 values of uniform = \[0.1, 0.3\]; "
            r"allowed: a larger step, or none",
        ),
        ({"uniform": [0.0, 1.0], "step": 1e-320}, "space.a step = 1e-320 makes more than 1000000"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused(own, said):
    with pytest.raises(ExperimentError, match=said):
        experiment(a=own)


def test_nobody_counts_to_a_trillion():
    begin_s = time.process_time()
    space = {"a": mophpc.integer(1, 10**12), "b": mophpc.choice([1], when={"a": [5, 10**12]})}
    assert in_order(space) == ["a", "b"]
    with pytest.raises(ValueError, match="asks for a = 0, which it never is; it can be 1, 2, 3"):
        in_order(space | {"b": mophpc.choice([1], when={"a": 0})})
    assert time.process_time() - begin_s < 1.0


def test_a_step_that_is_allowed_is_drawn_at_once():
    own = mophpc.uniform(0.1, 0.3, step=3e-7)
    begin_s = time.process_time()
    drawn = {own.at(share) for share in SHARES}
    assert time.process_time() - begin_s < 1.0  # and not a list of a million, a thousand times
    assert len(drawn) == len(SHARES)
    assert drawn <= set(own.grid)


COLUMNS = ("config_id", "config", "status", "epochs", "best_epoch", "state_sha256", "route")


@pytest.mark.parametrize("name", [*COLUMNS, "final_accuracy", "best_accuracy"])
def test_a_hyperparameter_is_not_called_as_a_column_of_the_results(name):
    said = f"has '{name}', which is a column of the results; allowed: another name"
    with pytest.raises(ExperimentError, match=f"field 'space' {said}"):
        experiment(**{name: [1, 2]})
    with pytest.raises(ExperimentError, match=f"field 'configs.1' {said}"):
        Experiment(build="m:build", data="s", epochs=1, configs=[{"lr": 1}, {name: 2}])


def test_all_other_columns_of_the_results_are_refused_as_names():
    final = {"accuracy": 0.5}
    row = ConfigResult(0, "c000", "done", {"lr": 1}, 1, final, 0.5, 0, "", [])
    head = Results("accuracy", "max", 0, [row]).csv().splitlines()[0].split(",")
    assert set(head) == {"lr", "final_accuracy", "best_accuracy", *COLUMNS}


def test_what_a_condition_asks_for_comes_before_it():
    space = {
        "kernel": mophpc.choice([3], when={"arch": "cnn"}),
        "dilation": mophpc.choice([2], when={"kernel": 3}),
        "arch": mophpc.choice(["cnn", "mlp"]),
    }
    assert in_order(space) == ["arch", "kernel", "dilation"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mophpc.uniform(1, 0), r"uniform = [1.0, 0.0]: the lower bound is above"),
        (lambda: mophpc.uniform("a", 1), "field 'uniform.0' is 'a'; allowed: number"),
        (lambda: mophpc.uniform(0, True), "field 'uniform.1' is True; allowed: number"),
        (lambda: mophpc.uniform(0, 1, step="x"), "field 'step' is 'x'; allowed: number"),
        (lambda: mophpc.loguniform(0, 1), "loguniform = [0.0, 1.0]: the lower bound must be above"),
        (lambda: mophpc.integer(1.5, 2), "field 'integer.0' is 1.5; allowed: integer"),
        (lambda: mophpc.choice([]), "field 'choice' is []; allowed: a list of at least 1 value"),
        (lambda: mophpc.choice(3), "field 'choice' is 3; allowed: list"),
        (lambda: mophpc.choice("abc"), "field 'choice' is 'abc'; allowed: list"),
        (lambda: mophpc.choice([1], when=3), "field 'when' is 3; allowed: a table"),
    ],
)
def test_a_mistake_in_python_is_one_sentence(make, said):
    with pytest.raises(ExperimentError, match=f"^{re.escape(said)}") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_condition_on_a_number_between_bounds_is_refused():
    space = {"a": mophpc.choice([1], when={"b": 0.5}), "b": mophpc.uniform(0, 1)}
    with pytest.raises(ValueError, match=r"asks for b = 0.5, which is drawn between bounds"):
        in_order(space)
    in_order(space | {"b": mophpc.uniform(0, 1, step=0.5)})
