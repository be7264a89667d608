"""Where everything stands, and the times of an order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import Case, cases

from mophpc.schedule import POLICIES, predict
from mophpc.schedule.costs import Costs
from mophpc.schedule.stays import Progress, StayCosts, time_order, visits_of


def order_of(case: Case, policy: str) -> list[tuple[int, int]]:
    """Return a plan's stays by start; each is named by its first visit."""
    plan = case.plan(policy)
    shards = {rank: plan.shards_of(rank) for rank in range(plan.num_ranks)}
    firsts = [
        visit
        for visit in plan.visits()
        if visit.shard == shards[visit.rank][-1 if visit.epoch % 2 else 0]
    ]
    firsts.sort(key=lambda v: (v.predicted_start_s, v.predicted_end_s, v.step))
    return [(visit.config_id, visit.rank) for visit in firsts]


def test_times_by_hand():
    """Config 1 is slow; rank 0 trains 0 then 1, rank 1 trains 1 then 0, and the same backwards."""
    costs = StayCosts.of(Costs.of([[1.0], [3.0]], 2, 2, hop_s=0.5, eval_s=[0.25, 0.0]), (0, 1), 2)
    progress = Progress.start(2, 2, 2)
    order = [(0, 0), (1, 1), (1, 0), (0, 1), (0, 1), (1, 0), (0, 0), (1, 1)]
    assert time_order(order, progress, costs) == [0.0, 0.0, 3.5, 3.0, 4.25, 6.5, 9.5, 10.0]
    assert progress.free_s.tolist() == [10.75, 13.0]
    assert progress.num_stays == 0
    assert costs.epoch_s.tolist() == [2.25, 6.0]


def test_a_config_begins_an_epoch_where_it_ended_the_last():
    progress = Progress.start(1, 3, 2)
    assert progress.may_be_next().tolist() == [[True, True, True]]
    assert not progress.make(0, 2)
    assert progress.may_be_next().tolist() == [[True, True, False]]
    assert not progress.make(0, 0)
    assert progress.make(0, 1)
    assert progress.may_be_next().tolist() == [[False, True, False]]
    assert (progress.num_stays, progress.num_stays_of.tolist()) == (3, [3])
    for rank in (1, 0, 2):
        progress.make(0, rank)
    assert not progress.may_be_next().any()
    assert progress.num_stays == 0


def test_a_copy_is_changed_by_itself():
    progress = Progress.start(2, 2, 1)
    other = progress.copy()
    time_order([(0, 0)], other, StayCosts(np.ones((2, 2)), np.ones(2), np.ones(2)))
    assert progress.num_stays == 4
    assert other.num_stays == 3
    assert progress.free_s.tolist() == [0.0, 0.0]
    assert progress.at.tolist() == [-1, -1]


@settings(deadline=None, max_examples=30)
@given(cases(kinds=("skewed", "by config", "huge", "tiny", "far apart")), st.data())
def test_an_order_takes_what_the_plan_predicts(case, data):
    """The two simulations agree, whether an order is timed at once or in two parts."""
    plan = case.plan(data.draw(st.sampled_from(sorted(POLICIES))))
    order = order_of(case, plan.policy)
    costs = case.costs
    makespan_s = predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s).makespan_s
    progress = Progress.start(case.num_configs, case.num_ranks, case.num_epochs)
    assert len(order) == progress.num_stays
    starts = time_order(order, progress, case.stays)
    assert progress.num_stays == 0
    assert progress.free_s.max() == pytest.approx(makespan_s, rel=1e-9)

    cut = data.draw(st.integers(0, len(order)))
    state = Progress.start(case.num_configs, case.num_ranks, case.num_epochs)
    parts = time_order(order[:cut], state, case.stays) + time_order(order[cut:], state, case.stays)
    assert parts == starts
    assert (state.free_s == progress.free_s).all()


@settings(deadline=None, max_examples=30)
@given(cases())
def test_visits_of_stays_are_those_of_the_plan(case):
    order = order_of(case, "round-robin")
    shards = [case.plan("round-robin").shards_of(rank) for rank in range(case.num_ranks)]
    visits = visits_of(order, [0.0] * len(order), case.costs.visit_s, shards)
    steps = [0] * case.num_configs
    for visit in visits:
        assert visit.step == steps[visit.config_id]
        assert visit.epoch == visit.step // case.num_shards
        assert case.owners[visit.shard] == visit.rank
        steps[visit.config_id] += 1
    assert steps == [case.num_shards * case.num_epochs] * case.num_configs


def test_visits_go_on_where_a_config_stands():
    visits = visits_of(
        [(0, 0), (0, 1)], [1.0, 9.0], np.array([[1.0, 2.0, 4.0]]), [(0, 1), (2,)], lambda _: 3
    )
    assert [(v.step, v.epoch, v.shard, v.predicted_start_s, v.predicted_end_s) for v in visits] == [
        (3, 1, 1, 1.0, 3.0),
        (4, 1, 0, 3.0, 4.0),
        (5, 1, 2, 9.0, 13.0),
    ]
