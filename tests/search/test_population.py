"""Population-based training."""

from __future__ import annotations

import math

import pytest
from driving import SPACE, experiment, rides, score
from hypothesis import given
from hypothesis import strategies as st

import mophpc
from mophpc.dimensions import is_among
from mophpc.errors import ExperimentError
from mophpc.search import Continue, Copy, Result, make_method
from mophpc.search.population import Explorer, Population, move
from mophpc.search.sources import Rows

WIDE = {
    "arch": mophpc.choice(["mlp", "cnn"]),
    "lr": mophpc.loguniform(1e-4, 1e-1),
    "width": mophpc.integer(8, 64, step=8, when={"arch": "mlp"}),
    "kernel": mophpc.choice([3, 5], when={"arch": "cnn"}),
    "drop": mophpc.uniform(0.0, 0.5, step=0.1),
    "decay": mophpc.uniform(0.0, 1.0),
}
orders = st.integers(0, 10_000)


def population(**search):
    return experiment("population", **({"epochs": 8, "interval": 2, "configs": 8} | search))


@given(orders, st.integers(2, 12), st.integers(1, 9))
def test_decisions_do_not_depend_on_the_order_of_results(order, configs, room):
    made = population(configs=configs)
    assert rides(made, order=order, room=room) == rides(made)


@given(st.integers(0, 1000), st.floats(0.05, 0.5))
def test_the_worst_copy_the_best_and_only_the_living(seed, quantile):
    made = population(seed=seed, quantile=quantile, configs=10)
    method = make_method(made, 4)
    alive = {i: start.values for i, start in enumerate(method.ask(4))}
    epochs = 2
    while alive and epochs <= 8:
        scores = {i: score(values, epochs) for i, values in alive.items()}
        decisions = []
        for config_id in sorted(alive, key=lambda i: (i * 7 + seed) % 11):
            is_over = epochs == 8 or not math.isfinite(scores[config_id])
            assert not decisions, "a generation is decided when all have come"
            decisions = method.tell(Result(config_id, epochs, scores[config_id], {}, is_over))
        alive = {i: alive[i] for i in alive if math.isfinite(scores[i])}
        if epochs == 8:
            assert decisions == ()
            return
        assert [decision.config_id for decision in decisions] == sorted(alive)
        ranked = sorted(alive, key=lambda i: (scores[i], i))
        count = max(1, int(len(ranked) * quantile)) if len(ranked) > 1 else 0
        copies = {d.config_id: d for d in decisions if isinstance(d, Copy)}
        assert set(copies) == set(ranked[len(ranked) - count :])
        for decision in decisions:
            assert (decision.epochs, decision.then) == (epochs + 2, 6 - epochs)
        for copy in copies.values():
            assert copy.source in ranked[:count]
            assert copy.values["tie"] == alive[copy.source]["tie"], "a choice does not move"
            lr = alive[copy.source]["lr"]
            assert copy.values["lr"] in (lr * 0.8, min(lr * 1.2, 1.0))
        alive |= {i: copy.values for i, copy in copies.items()}
        epochs += 2


def test_each_config_makes_all_epochs_and_the_last_generation_may_be_short():
    found = rides(population(epochs=9, interval=4), score=lambda v, epochs: v["lr"])
    assert {(ride.status, ride.epochs, ride.trained) for ride in found} == {("done", 9, 9)}
    targets = {d.epochs for ride in found for d in ride.decisions}
    assert targets == {4, 8, 9}


def test_generations_are_a_tenth_of_all_epochs_by_default():
    starts = make_method(experiment("population", epochs=30, configs=4), 4).ask(1)
    assert [(start.epochs, start.then) for start in starts] == [(3, 27)] * 4


def test_draws_are_the_seeds():
    assert rides(population()) == rides(population())
    found = set()
    for seed in range(10):
        explorer = Explorer(SPACE, ("lr",), (0.8, 1.2))
        method = Population(
            Rows([{"lr": 0.1 * i, "tie": 1} for i in range(4)]),
            4,
            epochs=2,
            interval=1,
            quantile=0.5,
            explorer=explorer,
            seed=seed,
        )
        method.ask(4)
        decisions = [method.tell(Result(i, 1, float(i))) for i in range(4)][-1]
        copies = [decision for decision in decisions if isinstance(decision, Copy)]
        assert [copy.config_id for copy in copies] == [2, 3]
        found.add(tuple((copy.source, copy.values["lr"]) for copy in copies))
    assert len(found) > 3


def test_the_last_one_alive_goes_on_alone():
    method = make_method(population(configs=2), 4)
    method.ask(1)
    assert method.tell(Result(0, 2, 1.0)) == ()
    assert method.tell(Result(1, 1, math.inf, is_over=True)) == [Continue(0, 4, 4)]


def test_nobody_copies_from_one_without_a_score():
    method = make_method(population(configs=2), 4)
    method.ask(1)
    method.tell(Result(0, 2, math.inf))
    assert method.tell(Result(1, 2, math.nan)) == [Continue(0, 4, 4), Continue(1, 4, 4)]


def test_one_that_somebody_stops_while_it_waits_is_no_source():
    method = make_method(population(configs=3), 4)
    method.ask(1)
    method.tell(Result(0, 2, 1.0))
    method.tell(Result(0, 2, 1.0, is_over=True))
    method.tell(Result(1, 2, 2.0))
    first, second = method.tell(Result(2, 2, 3.0))
    assert first == Continue(1, 4, 4)
    assert (second.config_id, second.source) == (2, 1)


@pytest.mark.parametrize(
    ("own", "value", "factor", "expected"),
    [
        (mophpc.uniform(0, 1), 0.5, 1.2, 0.6),
        (mophpc.uniform(0, 1), 0.9, 1.2, 1.0),
        (mophpc.uniform(0.45, 1), 0.5, 0.8, 0.45),
        (mophpc.uniform(-1, 1), -0.5, 1.2, -0.6),
        (mophpc.loguniform(1e-3, 1), 0.01, 0.8, 0.008),
        (mophpc.loguniform(1e-3, 1), 1e-3, 0.8, 1e-3),
        (mophpc.integer(1, 100), 50, 1.2, 60),
        (mophpc.integer(1, 100), 13, 0.8, 10),
        (mophpc.integer(1, 100), 2, 1.2, 3),
        (mophpc.integer(1, 100), 1, 0.8, 1),
        (mophpc.integer(8, 64, step=8), 32, 1.2, 40),
        (mophpc.integer(8, 60, step=8), 56, 1.2, 56),
        (mophpc.uniform(0, 0.5, step=0.1), 0.2, 1.2, 0.3),
        (mophpc.uniform(0, 0.5, step=0.1), 0.0, 1.2, 0.1),
        (mophpc.uniform(0, 0.5, step=0.1), 0.3, 1.0, 0.3),
        (mophpc.choice([1, 2, True]), 2, 1.2, True),
        (mophpc.choice([1, 2, True]), True, 1.2, True),
        (mophpc.choice([1, 2, True]), 1, 0.8, 1),
    ],
)
def test_a_value_moves_within_its_dimension(own, value, factor, expected):
    found = move(own, value, factor)
    assert type(found) is type(expected)
    assert found == pytest.approx(expected)


@given(st.integers(0, 2000))
def test_what_is_perturbed_is_a_config_of_the_space(seed):
    explorer = Explorer(WIDE, tuple(WIDE), (0.5, 2.0))
    row = {"arch": "mlp", "lr": 0.05, "width": 64, "drop": 0.4, "decay": 0.7}
    for generation in range(5):
        row = explorer.perturb(row, (seed, generation))
        assert list(row) == [name for name, own in WIDE.items() if own.exists(row)]
        assert 1e-4 <= row["lr"] <= 1e-1
        assert 0 <= row["decay"] <= 1
        assert is_among(row["drop"], WIDE["drop"].grid)
        if row["arch"] == "mlp":
            assert is_among(row["width"], WIDE["width"].grid)
        else:
            assert row["kernel"] in (3, 5)


def test_a_constraint_is_kept():
    row = {"lr": 0.5, "tie": 1}
    explorer = Explorer(SPACE, ("lr",), (0.8, 1.2), lambda row: row["lr"] > 0.5)
    assert {explorer.perturb(row, (seed,))["lr"] for seed in range(20)} == {0.6}
    nothing = Explorer(SPACE, ("lr",), (0.8, 1.2), lambda row: False)
    assert nothing.perturb(row, (1,)) == row


def test_a_choice_moves_only_if_it_is_named():
    made = population(explore=["tie"], configs=10)
    for ride in rides(made):
        for decision in ride.decisions:
            if isinstance(decision, Copy):
                assert decision.values["lr"] in {r.decisions[0].values["lr"] for r in rides(made)}


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"interval": 8}, "compares configs every search.interval = 8 epochs; epochs is 8"),
        ({"configs": 1}, "needs search.configs of 2 or more"),
        ({"explore": ["width"]}, "search.explore names 'width', which the space has not"),
        ({"space": {"a": [1, 2]}, "configs": 2}, "no hyperparameter has numbers between bounds"),
        ({"space": {"a": mophpc.integer(1, 1)}, "configs": None}, "2 configs or more; there is 1"),
    ],
)
def test_what_makes_no_population_is_named(search, said):
    with pytest.raises(ExperimentError, match=said):
        make_method(population(**search), 4)
