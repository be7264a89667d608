"""The balanced policy: search, effort, mirrored epochs, matchings."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import SKEWED, cases
from test_dispatch import check_order, some_extra, started

from mophpc.schedule import digest, lower_bound, make_plan, predict
from mophpc.schedule.balanced import (
    ONE_PASS,
    Effort,
    effort,
    epoch_bound,
    few_held,
    first_effort,
    mean_stay,
    mirrored,
    plan_epochs,
    plan_order,
    remaining_bound,
    renewal_effort,
    rotation,
)
from mophpc.schedule.costs import Costs
from mophpc.schedule.matching import match_rounds
from mophpc.schedule.stays import Progress, StayCosts, time_order

pytestmark = pytest.mark.timeout(60)

SMALL = Effort(variants=8, generations=2, matchings=2)


def mixed(num_configs: int, seed: int, *, per_shard: bool = False) -> Costs:
    """Draw costs like those of a search over mixed models: most are small, some are large."""
    rng = np.random.default_rng(seed)
    visit_s = 10.0 * rng.choice(SKEWED, size=(num_configs, 1))
    if per_shard:
        visit_s = visit_s * rng.lognormal(sigma=0.1, size=(num_configs, 8))
    return Costs.of(visit_s, num_configs, 8, hop_s=0.05, eval_s=0.1)


@pytest.mark.parametrize(("num_configs", "seed"), [(16, 0), (16, 1), (64, 0)])
@pytest.mark.parametrize("per_shard", [False, True])
def test_plans_are_near_the_bound(num_configs, seed, per_shard):
    costs = mixed(num_configs, seed, per_shard=per_shard)
    plan = make_plan(
        "balanced", num_configs=num_configs, num_shards=8, num_ranks=8, num_epochs=3, costs=costs
    )
    found = predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s)
    bound = lower_bound(costs.visit_s, plan.owners, 3, hop_s=costs.hop_s, eval_s=costs.eval_s)
    assert bound * (1 - 1e-9) <= found.makespan_s <= 1.03 * bound


def test_balanced_beats_rotation_where_costs_differ():
    costs = mixed(16, 7)
    sizes = {"num_configs": 16, "num_shards": 8, "num_ranks": 8, "num_epochs": 2}
    seconds = [
        predict(make_plan(policy, **sizes, costs=costs), costs.visit_s).makespan_s
        for policy in ("balanced", "round-robin")
    ]
    assert 1.03 * seconds[0] < seconds[1]


@settings(deadline=None, max_examples=30)
@given(cases(), st.integers(1, 5))
def test_mirrored_epochs_take_at_most_as_long_as_the_first(case, num_epochs):
    stays = StayCosts(case.stays.stay_s, np.zeros(case.num_configs), np.zeros(case.num_configs))
    one, _ = plan_epochs(stays, 1, case.seed, SMALL)
    progress = Progress.start(case.num_configs, case.num_ranks, 1)
    time_order(one, progress, stays)
    order, starts = plan_epochs(stays, num_epochs, case.seed, SMALL)
    state = Progress.start(case.num_configs, case.num_ranks, num_epochs)
    assert time_order(order, state, stays) == starts
    epoch = len(order) // num_epochs
    for number in range(1, num_epochs):
        assert (
            order[number * epoch : (number + 1) * epoch]
            == order[(number - 1) * epoch : number * epoch][::-1]
        )
    first = Progress.start(case.num_configs, case.num_ranks, 1)
    time_order(order[:epoch], first, stays)
    assert state.free_s.max() <= num_epochs * first.free_s.max() * (1 + 1e-9)
    # Where mirrored epochs overlap, a rank may hold fewer states at hardly any cost.
    assert first.free_s.max() <= progress.free_s.max() * 1.05 + 1e-300


@settings(deadline=None, max_examples=40)
@given(cases(most=9), st.integers(0, 80), st.sampled_from((ONE_PASS, SMALL)))
def test_the_rest_of_a_run_is_planned_whole(case, made, limit):
    costs = case.stays
    progress = started(case, made)
    order = plan_order(
        progress, costs, limit, (case.seed, 1), few_held(case.num_configs, case.num_ranks)
    )
    check_order(order, progress, progress.epochs_left)
    again = plan_order(
        progress, costs, limit, (case.seed, 1), few_held(case.num_configs, case.num_ranks)
    )
    assert again == order
    if order:
        state = progress.copy()
        time_order(order, state, costs)
        assert state.free_s.max() >= remaining_bound(progress, costs) * (1 - 1e-9)


@settings(deadline=None, max_examples=40)
@given(cases(most=9), st.integers(0, 80), st.sampled_from((0.0, 0.3, 1.0)), st.booleans())
def test_matchings_make_every_stay_once(case, made, haste, noisy):
    costs = case.stays
    progress = started(case, made)
    rng = np.random.default_rng(case.seed)
    extra = some_extra(progress, rng)
    noise = 0.05 * costs.stay_s.mean() * rng.standard_normal(costs.stay_s.shape) * noisy
    before = progress.copy()
    end_s, order = match_rounds(progress, costs, extra, haste=haste, noise_s=noise)
    check_order(order, progress, extra)
    assert (progress.todo == before.todo).all()
    assert (progress.epochs_left == before.epochs_left).all()
    if order:
        state = before.copy()
        state.epochs_left = extra.copy()
        time_order(order, state, costs)
        ranks = sorted({rank for _, rank in order})
        assert end_s == pytest.approx(state.free_s[ranks].max(), rel=1e-9, abs=1e-300)


def test_long_hops_and_evaluations_do_not_end_a_matching():
    for hop_s, eval_s in ((1e6, 0.0), (0.0, 1e6), (1e9, 1e9)):
        costs = StayCosts(np.ones((3, 2)), np.full(3, hop_s), np.full(3, eval_s))
        progress = Progress.start(3, 2, 2)
        found = match_rounds(
            progress, costs, np.ones(3, np.int64), haste=1.0, noise_s=np.zeros((3, 2))
        )
        check_order(found[1], progress, np.ones(3, np.int64))


@pytest.mark.parametrize("num_ranks", [2, 5, 8])
def test_matchings_keep_every_round_full_where_costs_are_equal(num_ranks):
    costs = StayCosts(np.ones((num_ranks, num_ranks)), np.zeros(num_ranks), np.zeros(num_ranks))
    progress = Progress.start(num_ranks, num_ranks, 2)
    extra = np.ones(num_ranks, np.int64)
    end_s, _ = match_rounds(
        progress, costs, extra, haste=1.0, noise_s=np.zeros((num_ranks, num_ranks))
    )
    assert end_s <= 2 * num_ranks + 2


def test_effort_grows_with_the_time_that_is_allowed():
    for num_configs, num_ranks in product((1, 8, 64, 1000), (1, 8, 64)):
        stays = num_configs * num_ranks
        found = [effort(stays, num_configs, num_ranks, s) for s in (0.0, 1e-3, 1e-2, 0.1, 1.0)]
        assert found[0].is_nothing
        work = [one.variants * one.generations for one in found]
        assert work == sorted(work)
        assert all(one.matchings == 0 or num_configs <= 2 * num_ranks for one in found)


def test_a_run_of_no_length_is_not_searched():
    costs = StayCosts.of(Costs.of(1e-6, 4, 2), (0, 1), 2)
    assert first_effort(costs, 3).is_nothing
    order, _ = plan_epochs(costs, 1, 0)
    assert order == rotation(np.arange(4), 2, 1)
    assert renewal_effort(Progress.start(4, 2, 3), 0.0) == ONE_PASS


def test_bounds_by_hand():
    stays = StayCosts(np.array([[1.0, 2.0], [3.0, 1.0]]), np.zeros(2), np.array([0.5, 1.0]))
    assert stays.epoch_s.tolist() == [3.5, 5.0]
    assert epoch_bound(stays) == 5.0
    progress = Progress.start(2, 2, 3)
    assert remaining_bound(progress, stays) == 15.0
    assert remaining_bound(progress, stays, np.zeros(2, np.int64)) == 5.0
    progress.free_s[:] = 100.0
    assert remaining_bound(progress, stays, np.zeros(2, np.int64)) == 104.25
    assert mean_stay(stays) == 1.75
    assert mean_stay(StayCosts(np.zeros((2, 2)), np.zeros(2), np.zeros(2))) == 0.0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_rotation_makes_every_stay_in_every_epoch(num_configs, num_ranks, num_epochs, seed):
    configs = np.random.default_rng(seed).permutation(num_configs)
    order = rotation(configs, num_ranks, num_epochs)
    progress = Progress.start(num_configs, num_ranks, num_epochs)
    check_order(order, progress, progress.epochs_left)


def test_configs_with_fewer_epochs_left_begin_where_they_ended_too():
    progress = Progress.start(2, 3, 4)
    for rank in (0, 1, 2, 2, 1, 0, 0, 2, 1):
        progress.make(0, rank)  # three epochs ahead
    order = [(0, 1), (1, 0), (1, 1), (0, 0), (0, 2), (1, 2)]
    found = mirrored(order, progress, np.zeros(2, np.int64))
    assert found == [stay for stay in (order[::-1] + order + order[::-1]) if stay[0] == 1]
    progress = Progress.start(2, 3, 4)
    for rank in (0, 1, 2, 2, 1, 0):
        progress.make(0, rank)
    order = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]
    check_order(
        order + mirrored(order, progress, np.zeros(2, np.int64)), progress, progress.epochs_left
    )


def test_what_is_mirrored():
    progress = Progress.start(2, 2, 3)
    order = [(0, 0), (1, 1), (0, 1), (1, 0)]
    no_extra = np.zeros(2, np.int64)
    assert mirrored(order, progress, no_extra) == [*order[::-1], *order]
    assert mirrored(order, progress, np.full(2, 2)) == []
    assert mirrored(order, Progress.start(2, 2, 1), no_extra) == []


def test_a_mirrored_epoch_that_had_begun_meets_every_rank():
    """Config 0 was on ranks 1 and 2 before the order, which has only its last stay."""
    progress = Progress.start(1, 3, 2)
    progress.make(0, 2)
    progress.make(0, 1)
    found = mirrored([(0, 0)], progress, np.zeros(1, np.int64))
    assert found[0] == (0, 0)
    assert Counter(found) == Counter([(0, 0), (0, 1), (0, 2)])


def test_the_search_finds_more_than_list_scheduling_alone():
    """Six configs of nearly equal cost on four ranks: each choice may spoil the last rounds."""
    rng = np.random.default_rng(5)
    stays = StayCosts(rng.uniform(0.9, 1.1, (6, 4)), np.zeros(6), np.zeros(6))
    ends = []
    for limit in (ONE_PASS, Effort(64, 24, 4)):
        order, _ = plan_epochs(stays, 1, 0, limit)
        progress = Progress.start(6, 4, 1)
        time_order(order, progress, stays)
        ends.append(progress.free_s.max())
    assert ends[1] <= ends[0]
    assert ends[1] <= 1.03 * epoch_bound(stays)


def test_the_same_seed_gives_the_same_plan():
    costs = mixed(12, 3, per_shard=True)
    sizes = {"num_configs": 12, "num_shards": 8, "num_ranks": 4, "num_epochs": 2, "costs": costs}
    found = [digest(make_plan("balanced", **sizes, seed=seed)) for seed in (1, 1)]
    assert found[0] == found[1]
