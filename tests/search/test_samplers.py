"""Optuna's samplers."""

from __future__ import annotations

import logging
import math
import sys

import pytest
from driving import experiment, rides

import mophpc
from mophpc.dimensions import is_among
from mophpc.errors import ExperimentError
from mophpc.search import Result, make_method, make_rows
from mophpc.search.draw import key_of
from mophpc.search.samplers import OptunaSource

pytest.importorskip("optuna")

SPACE = {
    "arch": mophpc.choice(["mlp", "cnn"]),
    "kernel": mophpc.choice([3, 5.0, True, 1.0, 1], when={"arch": "cnn"}),
    "width": mophpc.integer(8, 512, log=True, when={"arch": "mlp"}),
    "depth": mophpc.integer(1, 8, step=2),
    "lr": mophpc.loguniform(1e-4, 1e-1),
    "drop": mophpc.uniform(0.0, 0.5, step=0.1),
    "decay": mophpc.uniform(-1.0, 1.0),
}
NAMES = ["tpe", "gp", "cmaes", "qmc", "nsgaii", "RandomSampler", "NSGAIIISampler"]


def score(values, epochs):
    if values["decay"] > 0.9:
        return math.inf
    return abs(math.log10(values["lr"]) + 2) + values["drop"] + values["decay"] ** 2 + 1 / epochs


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_of_the_space_and_all_different(name):
    made = experiment(name, space=SPACE, configs=30, epochs=3)
    found = rides(made, room=5, score=score)
    assert len({key_of(ride.values) for ride in found}) == len(found) == 30
    for ride in found:
        row = ride.values
        assert list(row) == [key for key, own in SPACE.items() if own.exists(row)]
        for key in row:
            if key not in ("lr", "decay", "width"):
                assert is_among(row[key], SPACE[key].grid)
        assert type(row["lr"]) is float
        assert 1e-4 <= row["lr"] <= 1e-1
        assert -1 <= row["decay"] <= 1
        assert type(row.get("width", 8)) is int
        assert 8 <= row.get("width", 8) <= 512


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_and_results_give_the_same_configs(name):
    made = experiment(name, space=SPACE, configs=25, epochs=3)
    other = experiment(name, space=SPACE, configs=25, epochs=3, seed=2)
    first = rides(made, order=3, score=score)
    assert rides(made, order=3, score=score) == first
    assert rides(other, order=3, score=score) != first


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes"])
def test_what_is_learnt_helps(name):
    space = {"x": mophpc.uniform(-3, 3), "y": mophpc.uniform(-3, 3)}

    def far(values, epochs):
        return (values["x"] - 1) ** 2 + (values["y"] + 2) ** 2

    found = rides(experiment(name, space=space, configs=60, epochs=1), room=4, score=far)
    scores = [far(ride.values, 1) for ride in found]
    assert sum(scores[-15:]) / 15 < sum(scores[:15]) / 15 / 2


def test_configs_come_as_there_is_room():
    method = make_method(experiment("tpe", configs=7), 4)
    assert len(method.ask(4)) == 4
    assert len(method.ask(1)) == 1
    assert method.tell(Result(0, 9, 1.0, is_over=True)) == ()
    assert len(method.ask(4)) == 2
    assert method.ask(4) == []


def test_a_small_space_is_exhausted_and_no_more():
    space = {"a": mophpc.choice([1, 2, 3]), "b": mophpc.integer(1, 4)}
    found = rides(experiment("tpe", space=space, configs=12, epochs=1), score=lambda v, e: v["a"])
    assert len({key_of(ride.values) for ride in found}) == 12
    with pytest.raises(ExperimentError, match=r"search\.configs is 13, but there are 12 combina"):
        make_method(experiment("tpe", space=space, configs=13), 4)
    source = OptunaSource("qmc", space, 1)
    assert len(source.more(20)) == 12
    assert source.more(1) == []


def test_a_constraint_is_kept():
    def fits(row):
        return row["a"] + row["b"] < 0.1

    space = {"a": mophpc.uniform(0, 1), "b": mophpc.uniform(0, 1)}
    for name in ("tpe", "cmaes", "gp"):
        source = OptunaSource(name, space, 1, fits)
        for number in range(8):
            (row,) = source.more(1)
            assert fits(row)
            source.learn(number, row["a"])


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "nsgaii"])
def test_those_that_diverge_count_as_the_worst(name):
    source = OptunaSource(name, {"x": mophpc.uniform(0, 1)}, 1, options=None)
    rows = source.more(4)
    for number, found in enumerate([math.inf, 3.0, math.inf, 5.0]):
        source.learn(number, found)
    told = [trial.value for trial in source._study.trials]
    assert told == [3.0, 3.0, 3.0, 5.0]
    assert len(source.more(3)) == 3
    assert len(rows) == 4


def test_options_are_the_samplers_arguments():
    made = experiment("tpe", configs=4, options={"n_startup_trials": 2, "multivariate": True})
    assert len(rides(made)) == 4
    with pytest.raises(ExperimentError, match=r"search.options do not fit Optuna's TPESampler: .*"):
        make_method(experiment("tpe", configs=4, options={"startup": 2}), 4)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tpe", {"n_startup_trials": "many"}, "TypeError: '<' not supported between instances of"),
        ("tpe", {"n_ei_candidates": -1}, "ValueError: negative dimensions"),
        ("cmaes", {"sigma0": "x"}, "TypeError: '>' not supported"),
        ("gp", {"n_startup_trials": "many"}, "TypeError: '>=' not supported"),
    ],
)
def test_options_that_a_sampler_cannot_use_are_found_before_the_run(name, options, said):
    with pytest.raises(ExperimentError) as caught:
        make_method(experiment(name, configs=40, options=options), 4)
    text = str(caught.value)
    assert text.startswith(
        f"Optuna's sampler '{name}', of search.method or search.sampler, raised {said}"
    )
    assert text.endswith(f"; check search.options ({options})")
    assert "\n" not in text


@pytest.mark.parametrize("when", ["ask", "tell"])
def test_what_a_sampler_fails_of_in_a_run_is_one_sentence(monkeypatch, when):
    source = OptunaSource("tpe", {"x": mophpc.uniform(0, 1)}, 1)
    assert len(source.more(2)) == 2

    def fail(*given, **named):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(source._study, when, fail)
    said = "'tpe', of .*, raised RuntimeError: two lines; take another one"
    with pytest.raises(ExperimentError, match=said):
        source.more(1) if when == "ask" else source.learn(0, 1.0)


def test_a_rehearsal_changes_nothing():
    options = {"n_startup_trials": 10}  # which is the default
    plain, rehearsed = (experiment("tpe", configs=15, options=o) for o in ({}, options))
    assert rides(plain) == rides(rehearsed)


def test_mistakes_of_a_constraint_are_its_own():
    def fits(row):
        raise ExperimentError("search.constraint raised KeyError: 'x'")

    source = OptunaSource("tpe", {"x": mophpc.uniform(0, 1)}, 1, fits)
    with pytest.raises(ExperimentError, match=r"^search\.constraint raised"):
        source.more(1)


def test_rungs_and_populations_take_configs_from_a_sampler():
    for method in ("halving", "asha", "population"):
        assert len(rides(experiment(method, sampler="tpe", configs=9))) == 9
    assert len(rides(experiment("hyperband", sampler="qmc"))) == 17


def test_nothing_is_logged_or_warned_of(capfd, caplog):
    caplog.set_level(logging.DEBUG)
    for name in NAMES:
        rides(experiment(name, space=SPACE, configs=15, epochs=1), score=score)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if "optuna" in record.name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FooSampler", "sampler 'FooSampler' is unknown; allowed: tpe, gp, .*QMCSampler, Random"),
        ("GridSampler", r"'GridSampler' cannot be used here \(say search.method = \"grid\"\)"),
        ("BaseSampler", r"'BaseSampler' cannot be used here \(it is abstract\)"),
        ("PartialFixedSampler", "'PartialFixedSampler' cannot be used here"),
    ],
)
def test_a_sampler_that_there_is_not_is_named(name, said):
    with pytest.raises(ExperimentError, match=said):
        make_method(experiment(name, configs=3), 4)


def test_that_optuna_is_not_installed_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ExperimentError) as caught:
        make_method(experiment("tpe", configs=3), 4)
    assert str(caught.value) == (
        "'tpe' is one of Optuna's samplers, and Optuna is not installed; say "
        'pip install "mophpc[optuna]", or search.method = "random"'
    )


@pytest.mark.parametrize(("name", "package"), [("cmaes", "cmaes"), ("gp", "scipy")])
def test_that_a_package_of_the_sampler_is_missing_is_said_before_the_run(
    monkeypatch, name, package
):
    monkeypatch.setitem(sys.modules, package, None)
    said = f"sampler '{name}' needs {package}, which is not installed; say pip install {package}"
    with pytest.raises(ExperimentError, match=said):
        make_method(experiment(name, configs=5), 4)


def test_nothing_can_be_planned_of_configs_that_come_later():
    with pytest.raises(ExperimentError, match=r'search\.method is "tpe", whose conf'):
        make_rows(experiment("tpe", configs=3))
