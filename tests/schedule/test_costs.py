"""Costs that are given, and those that follow what is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import KINDS, cases, some_costs

from mophpc.costs_file import ConfigCosts, CostsFile, LinkCosts
from mophpc.errors import CostsError
from mophpc.schedule import assign_shards
from mophpc.schedule.costs import CostModel, Costs, foreign_factors, given_costs, seconds


def test_costs_broadcast():
    costs = Costs.of([[1.0], [2.0]], 2, 3, hop_s=0.5, eval_s=[0.0, 1.0])
    assert costs.visit_s.tolist() == [[1.0] * 3, [2.0] * 3]
    assert costs.hop_s.tolist() == [0.5, 0.5]
    assert costs.eval_s.tolist() == [0.0, 1.0]
    assert costs.stay_s((0, 0, 1), 2).tolist() == [[2.0, 1.0], [4.0, 2.0]]


@pytest.mark.parametrize(
    ("visit_s", "more", "message"),
    [
        (np.ones((3, 3)), {}, r"visit_s has shape \(3, 3\); expected \(2, 3\)"),
        ([[1.0], [-1.0]], {}, "visit_s holds a number that is negative or not finite"),
        (np.inf, {}, "visit_s holds a number that is negative or not finite"),
        (1.0, {"hop_s": np.nan}, "hop_s holds a number"),
        (1.0, {"eval_s": [1.0, 1.0, 1.0]}, r"eval_s has shape \(3,\); expected \(2,\)"),
    ],
)
def test_bad_costs(visit_s, more, message):
    with pytest.raises(ValueError, match=message):
        Costs.of(visit_s, 2, 3, **more)


def test_seconds_of_a_number_and_of_nothing():
    assert seconds("x", 2, (2,)).tolist() == [2.0, 2.0]
    assert seconds("x", [], (0,)).size == 0


def test_equal_costs():
    assert Costs.of(3.0, 2, 2).are_equal
    assert Costs.of(0.0, 2, 2).are_equal
    assert not Costs.of([[1.0, 1.0], [1.0, 1.5]], 2, 2).are_equal
    assert not Costs.of(3.0, 2, 2, hop_s=[0.0, 0.1]).are_equal
    assert not Costs.of(3.0, 2, 2, eval_s=0.1).are_equal


def per_row(**more: float) -> ConfigCosts:
    return ConfigCosts(seconds_per_row=0.5, **more)


def test_given_per_row_with_ranks_and_a_link():
    given = CostsFile(
        configs={
            "a": per_row(overhead_s=1.0, eval_s=3.0, state_nbytes=200),
            "b": ConfigCosts(visit_s=(1.0, 2.0, 3.0)),
            "c": ConfigCosts(visit_s=4.0, overhead_s=0.25),
            "unused": per_row(),
        },
        rank_factors=(1.0, 2.0),
        link=LinkCosts(latency_s=0.5, bandwidth_bytes_per_s=100.0),
    )
    costs = given_costs(given, ["c", "a", "b"], (0, 0, 1), 2, [2, 4, 6])
    assert costs.visit_s.tolist() == [[4.25, 4.25, 8.5], [2.0, 3.0, 8.0], [1.0, 2.0, 6.0]]
    assert costs.hop_s.tolist() == [0.5, 2.5, 0.5]
    assert costs.eval_s.tolist() == [0.0, 3.0, 0.0]


def test_one_rank_has_no_hops():
    link = LinkCosts(latency_s=0.5, bandwidth_bytes_per_s=100.0)
    given = CostsFile(configs={"a": ConfigCosts(visit_s=1.0)}, link=link)
    assert given_costs(given, ["a"], (0, 0), 1).hop_s.tolist() == [0.0]


def test_what_is_missing_is_named():
    given = CostsFile(configs={"a": per_row(), "b": ConfigCosts(visit_s=(1.0, 2.0))})
    with pytest.raises(CostsError, match="there are no costs of config 'c'"):
        given_costs(given, ["a", "c"], (0, 1), 2, [1, 1])
    with pytest.raises(CostsError, match="the costs of config a are per row"):
        given_costs(given, ["b", "a"], (0, 1), 2)
    with pytest.raises(CostsError, match="visit_s of config b has 2 numbers; there are 3 shards"):
        given_costs(given, ["b"], (0, 1, 2), 3)


def test_factors_of_another_number_of_ranks():
    configs = {"a": ConfigCosts(visit_s=1.0)}
    unequal = CostsFile(configs=configs, rank_factors=(1.0, 2.0))
    assert given_costs(unequal, ["a"], (0, 1, 2), 3).visit_s.tolist() == [[1.5] * 3]
    said = foreign_factors(unequal, 3)
    assert said is not None
    assert "speeds of 2 ranks, and here are 3" in said
    assert foreign_factors(unequal, 2) is None
    equal = CostsFile(configs=configs, rank_factors=(2.0, 2.0))
    assert given_costs(equal, ["a"], (0, 1, 2), 3).visit_s.tolist() == [[2.0] * 3]
    assert foreign_factors(equal, 3) is None


TINY_S = 1e-6
"""What nobody measures, and no plan depends on."""


def model(first: Costs, num_ranks: int) -> CostModel:
    return CostModel(first, assign_shards(first.visit_s.shape[1], num_ranks), num_ranks)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_nothing_measured_changes_nothing(case):
    found = CostModel(case.costs, case.owners, case.num_ranks).costs()
    np.testing.assert_allclose(found.visit_s, case.costs.visit_s, rtol=1e-12, atol=1e-8)
    assert (found.hop_s == case.costs.hop_s).all()
    assert (found.eval_s == case.costs.eval_s).all()


@settings(deadline=None, max_examples=25)
@given(cases(), st.floats(-3, 3))
def test_estimates_converge(case, log_factor):
    """However wrong the first costs are, visits that all take what they take are soon known."""
    true = np.maximum(case.costs.visit_s, 1e-9)
    rng = np.random.default_rng(case.seed)
    first = true * np.exp(log_factor + 0.3 * rng.standard_normal(true.shape))
    learned = CostModel(
        Costs(first, case.costs.hop_s, case.costs.eval_s), case.owners, case.num_ranks
    )
    errors = []
    for times in (1, 9, 90):
        for config_id, shard in np.ndindex(*true.shape):
            for _ in range(times):
                learned.observe(config_id, shard, float(true[config_id, shard]))
        off = (learned.costs().visit_s + TINY_S) / (true + TINY_S)
        errors.append(np.abs(np.log(off)).max())
    assert errors[-1] < 0.02
    assert errors == sorted(errors, reverse=True) or max(errors) < 1e-6


def test_one_visit_corrects_a_config_on_all_shards():
    first = some_costs("skewed", 8, 6, seed=3)
    known = model(first, 3)
    for config_id in range(7):
        known.observe(config_id, config_id % 6, first.visit_s[config_id, config_id % 6])
    known.observe(7, 2, 3.0 * first.visit_s[7, 2])
    ratio = known.costs().visit_s / first.visit_s
    assert ratio[7] == pytest.approx(3.0, rel=0.1)
    assert ratio[:7] == pytest.approx(1.0, rel=0.1)


def test_a_slow_rank_is_seen():
    first = some_costs("skewed", 12, 8, seed=4)
    owners = np.array(assign_shards(8, 4))
    known = model(first, 4)
    factor = np.where(owners == 2, 1.5, 1.0)
    for config_id in range(8):  # the last four are never seen
        for shard in (config_id % 8, (config_id + 3) % 8, (config_id + 5) % 8):
            known.observe(config_id, shard, factor[shard] * first.visit_s[config_id, shard])
    ratio = known.costs().visit_s[8:] / first.visit_s[8:]
    slow = ratio[:, owners == 2].mean() / ratio[:, owners != 2].mean()
    assert slow == pytest.approx(1.5, rel=0.12)


def test_all_costs_have_the_wrong_unit():
    """What is common to all that was seen holds for the rest too."""
    first = some_costs("skewed", 6, 4, seed=5)
    known = model(first, 2)
    for config_id in range(3):
        known.observe(config_id, 0, 1000.0 * first.visit_s[config_id, 0])
    assert known.costs().visit_s == pytest.approx(1000.0 * first.visit_s, rel=0.01)


def test_all_are_seen_once_each_was_measured():
    known = model(Costs.of([[0.0, 0.0], [1.0, 0.0]], 2, 2), 2)
    known.observe(0, 0, 1.0)
    assert not known.has_seen_all
    known.observe(1, 0, 1.0)
    assert known.has_seen_all


def test_noise_is_averaged():
    rng = np.random.default_rng(1)
    first = Costs.of(1.0, 4, 4)
    known = model(first, 4)
    for _ in range(50):
        for config_id, shard in np.ndindex(4, 4):
            known.observe(config_id, shard, float((1.0 + config_id) * rng.lognormal(sigma=0.1)))
    expected = np.repeat(np.arange(1.0, 5.0)[:, None], 4, axis=1)
    assert known.costs().visit_s == pytest.approx(expected, rel=0.05)


def test_evaluations_are_means_of_what_was_measured():
    known = model(Costs.of(1.0, 3, 2, eval_s=[1.0, 2.0, 3.0]), 2)
    known.observe_eval(1, 4.0)
    known.observe_eval(1, 6.0)
    assert known.costs().eval_s.tolist() == [1.0, 5.0, 3.0]


def test_a_config_that_leaves_costs_nothing():
    known = model(Costs.of(2.0, 3, 2, hop_s=1.0, eval_s=1.0), 2)
    known.observe(0, 0, 4.0)
    known.drop(1)
    found = known.costs()
    assert found.visit_s[1].tolist() == [0.0, 0.0]
    assert (found.hop_s[1], found.eval_s[1]) == (0.0, 0.0)
    assert (found.visit_s[[0, 2]] > 2.0).all()
    assert found.hop_s[[0, 2]].tolist() == [1.0, 1.0]
    all_of_them = known.costs(left_too=True)
    assert (all_of_them.visit_s > 2.0).all()
    assert all_of_them.hop_s.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_whatever_is_measured_costs_are_seconds(kind, seed, data):
    first = some_costs(kind, 4, 5, seed)
    known = model(first, 3)
    measured = st.one_of(st.just(0.0), st.floats(0.0, 1e9))
    for _ in range(data.draw(st.integers(1, 12))):
        config_id, shard = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 4))
        known.observe(config_id, shard, data.draw(measured))
        found = known.costs().visit_s
        assert np.isfinite(found).all()
        assert (found >= 0.0).all()


def test_a_config_that_was_thought_free_says_nothing_of_others():
    first = Costs.of([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], 3, 2)
    known = model(first, 2)
    known.observe(0, 0, 5.0)
    found = known.costs().visit_s
    assert found[0] == pytest.approx(5.0, rel=0.2)
    assert found[1:] == pytest.approx(first.visit_s[1:], rel=0.2)
