from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mophpc.schedule import POLICIES, lower_bound, make_plan, predict
from mophpc.schedule.bounds import idle_advice
from mophpc.schedule.costs import Costs
from mophpc.schedule.table import format_ratings, rate


def test_a_config_needs_its_visits_its_evaluation_and_its_hops():
    costs = [[5.0, 4.0, 3.0], [1.0, 1.0, 1.0]]
    assert lower_bound(costs, (0, 1, 2), eval_s=[1.5, 9.0], hop_s=[0.25, 0.0]) == 14.0
    # Two shards of one rank: a hop less.
    assert lower_bound(costs, (0, 1, 1), num_epochs=2, eval_s=[1.5, 2.0], hop_s=0.25) == 27.5
    assert lower_bound(costs, (0, 0, 0), hop_s=100.0) == 15.0


def test_evaluations_load_the_ranks():
    costs = np.ones((4, 2))
    assert lower_bound(costs, (0, 1)) == 4.0
    assert lower_bound(costs, (0, 1), eval_s=0.5) == 5.0
    assert lower_bound(costs * [2.0, 0.5], (0, 1), eval_s=0.5) == 8.0


@pytest.mark.parametrize("name", ["eval_s", "hop_s"])
def test_a_wrong_shape(name):
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\); expected \(2,\)"):
        lower_bound(np.ones((2, 2)), (0, 1), **{name: np.ones(3)})


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_no_policy_beats_the_bound(policy, num_configs, num_ranks, more, num_epochs, seed):
    num_shards = num_ranks + more
    rng = np.random.default_rng(seed)
    costs = Costs.of(
        rng.lognormal(size=(num_configs, num_shards)),
        num_configs,
        num_shards,
        hop_s=rng.exponential(size=num_configs),
        eval_s=rng.exponential(size=num_configs),
    )
    plan = make_plan(
        policy,
        num_configs=num_configs,
        num_shards=num_shards,
        num_ranks=num_ranks,
        num_epochs=num_epochs,
        costs=costs,
    )
    bound = lower_bound(
        costs.visit_s, plan.owners, num_epochs, eval_s=costs.eval_s, hop_s=costs.hop_s
    )
    found = predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s)
    assert found.makespan_s >= bound * (1 - 1e-12)
    if num_ranks == 1:
        assert found.makespan_s == pytest.approx(bound)


def test_advice():
    assert idle_advice(8, 8, 0.4) is None
    assert idle_advice(3, 8, 0.625) == (
        "with 3 configs on 8 ranks 62% of the ranks' time is idle, as a config trains on one rank "
        "at a time; 8 configs or more, or 3 ranks or fewer, would fill it"
    )
    assert "with 1 config on 2 ranks 50%" in str(idle_advice(1, 2, 0.5))
    assert "2 configs or more, or 1 rank, would fill it" in str(idle_advice(1, 2, 0.5))


def test_ratings():
    plan = make_plan("round-robin", num_configs=2, num_shards=2, num_ranks=2, num_epochs=1)
    ratings = [rate(predict(plan, [[1.0], [3.0]]), 4.0), rate(predict(plan, 0.0), 0.0)]
    assert format_ratings(ratings, unit="s").splitlines() == [
        "policy       makespan [s]   idle  ratio to bound  hops  arenas",
        "round-robin             6  33.3%           1.500     2       3",
        "round-robin             0   0.0%               -     2       3",
    ]
