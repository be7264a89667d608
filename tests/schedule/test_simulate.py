from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mophpc.errors import PlanError
from mophpc.schedule import (
    Plan,
    bytes_moved,
    check_plan,
    digest,
    idle_share,
    lower_bound,
    make_plan,
    predict,
    time_left_s,
)


def rotation(num_configs: int, num_ranks: int, num_epochs: int) -> Plan:
    return make_plan(
        "round-robin",
        num_configs=num_configs,
        num_shards=num_ranks,
        num_ranks=num_ranks,
        num_epochs=num_epochs,
    )


def test_times_by_hand():
    """Config 1 is slow; rank 0 trains 0 then 1, rank 1 trains 1 then 0."""
    found = predict(rotation(2, 2, 1), [[1.0], [3.0]], hop_s=0.5, eval_s=[0.25, 0.0])
    times = [
        [(v.predicted_start_s, v.predicted_end_s) for v in visits]
        for visits in found.plan.visits_by_rank
    ]
    assert times == [[(0.0, 1.0), (3.5, 6.5)], [(0.0, 3.0), (3.0, 4.0)]]
    assert found.makespan_s == 6.5
    assert found.busy_s == (4.0, 4.25)
    assert found.idle_shares == pytest.approx((1 - 4 / 6.5, 1 - 4.25 / 6.5))
    assert found.idle_share == pytest.approx(1 - 8.25 / 13)


def test_evaluation_holds_up_the_next_epoch():
    found = predict(rotation(1, 1, 2), 1.0, eval_s=0.5)
    starts = [visit.predicted_start_s for visit in found.plan.visits()]
    assert starts == [0.0, 1.5]
    assert (found.makespan_s, found.idle_share) == (3.0, 0.0)


@settings(deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32), st.booleans()
)
def test_no_plan_beats_the_bound(num_configs, num_ranks, num_epochs, seed, equal):
    plan = rotation(num_configs, num_ranks, num_epochs)
    rng = np.random.default_rng(seed)
    cost_s = np.ones((num_configs, 1)) if equal else rng.lognormal(size=(num_configs, num_ranks))
    cost_s = np.broadcast_to(cost_s, (num_configs, num_ranks))
    found = predict(plan, cost_s)
    bound = lower_bound(cost_s, plan.owners, num_epochs)
    assert found.makespan_s >= bound * (1 - 1e-12)
    assert sum(found.busy_s) == pytest.approx(num_epochs * cost_s.sum())
    assert digest(found.plan) == digest(plan)
    check_plan(found.plan)


def test_free_visits():
    found = predict(rotation(3, 2, 1), 0.0)
    assert (found.makespan_s, found.idle_share) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"cost_s": np.ones((3, 2))}, r"cost_s has shape \(3, 2\); expected \(2, 2\)"),
        ({"cost_s": [[1.0], [-1.0]]}, "cost_s holds a number that is negative or not finite"),
        ({"cost_s": 1.0, "hop_s": [1.0, np.nan]}, "hop_s holds a number"),
        ({"cost_s": 1.0, "eval_s": [1.0, 1.0, 1.0]}, r"eval_s has shape \(3,\)"),
    ],
)
def test_bad_costs(costs, message):
    with pytest.raises(ValueError, match=message):
        predict(rotation(2, 2, 1), **costs)


def test_a_plan_that_cannot_end():
    plan = rotation(2, 2, 1)
    turned = tuple(tuple(reversed(visits)) for visits in plan.visits_by_rank)
    with pytest.raises(PlanError, match="ranks wait for each other for ever"):
        predict(replace(plan, visits_by_rank=turned), 1.0)


def test_bounds():
    assert lower_bound([[1, 2], [3, 1]], (0, 1)) == 4.0
    assert lower_bound([[1, 9], [1, 1]], (0, 1)) == 10.0
    assert lower_bound([[1, 2], [3, 1]], (0, 0), num_epochs=3) == 21.0
    with pytest.raises(ValueError, match=r"cost_s has shape \(2,\); expected \(configs, 1\)"):
        lower_bound([1.0, 2.0], (0,))
    assert idle_share((1.0, 3.0), 4.0) == 0.5
    assert idle_share((), 4.0) == idle_share((0.0,), 0.0) == 0.0


def test_bytes_are_those_of_the_states_that_hop():
    plan = rotation(3, 4, 2)
    sizes = (10, 200, 3_000_000_000_000_000_000)
    assert bytes_moved(plan, sizes) == 2 * (4 - 1) * sum(sizes)
    with pytest.raises(ValueError, match="2 state sizes for 3 configs"):
        bytes_moved(plan, sizes[:2])


def test_time_left_follows_the_real_pace():
    found = predict(rotation(4, 2, 2), 1.0)
    assert found.makespan_s == 8.0
    assert time_left_s(found, 0.5, 0) == 8.0
    # Four visits end at 2.0 in the prediction and took 10 s: 6 are left at 5 s each.
    assert time_left_s(found, 10.0, 4) == 30.0
    assert time_left_s(found, 40.0, 16) == 0.0
    assert time_left_s(predict(rotation(4, 2, 2), 0.0), 10.0, 4) == 0.0
