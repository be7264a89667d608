"""The invariants of MOP as properties of every policy, and what round-robin promises."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import cases

from mophpc.errors import ExperimentError, LaunchError
from mophpc.schedule import (
    POLICIES,
    Plan,
    check_plan,
    digest,
    hops,
    hops_per_config,
    least_arenas,
    lower_bound,
    make_plan,
    predict,
    routes,
    stuck,
)
from mophpc.schedule.walk import SPARE_ARENAS, arenas_in_use


def rotation(num_configs: int, num_ranks: int, num_epochs: int, num_shards: int = 0) -> Plan:
    return make_plan(
        "round-robin",
        num_configs=num_configs,
        num_shards=num_shards or num_ranks,
        num_ranks=num_ranks,
        num_epochs=num_epochs,
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return draw(cases()).plan(draw(st.sampled_from(sorted(POLICIES))))


@settings(deadline=None)
@given(plans())
def test_completeness(plan):
    found = Counter((v.config_id, v.epoch, v.shard) for v in plan.visits())
    due = product(range(plan.num_configs), range(plan.num_epochs), range(plan.num_shards))
    assert found == Counter(due)
    for visit in plan.visits():
        assert plan.owners[visit.shard] == visit.rank
    for route in routes(plan):
        epochs = [visit.epoch for visit in route]
        assert epochs == sorted(epochs)


@settings(deadline=None)
@given(plans(), st.integers(0, 2**32), st.floats(0.0, 2.0))
def test_isolation_and_exclusivity_whatever_visits_cost(plan, seed, hop_s):
    rng = np.random.default_rng(seed)
    cost_s = rng.exponential(size=(plan.num_configs, plan.num_shards))
    timed = predict(plan, cost_s, hop_s=hop_s, eval_s=rng.exponential()).plan
    for visits in (*timed.visits_by_rank, *routes(timed)):
        for one, two in pairwise(visits):
            assert one.predicted_end_s <= two.predicted_start_s


@settings(deadline=None)
@given(plans())
def test_no_barrier_only_hops_between_two_ranks(plan):
    """Every wait is for one hop: each rank's list and each route, and nothing else, set order."""
    sends = [(hop.source, hop.dest, hop.tag, hop.step) for hop in hops(plan)]
    assert len(sends) == len(set(sends))
    assert all(hop.source != hop.dest for hop in hops(plan))
    assert stuck(plan) == ()


@settings(deadline=None)
@given(plans())
def test_every_policy_passes_every_check(plan):
    check_plan(plan)


@settings(deadline=None, max_examples=40)
@given(cases(), st.sampled_from(sorted(POLICIES)))
def test_same_input_same_plan(case, policy):
    plan = case.plan(policy)
    assert digest(case.plan(policy)) == digest(plan)
    assert case.plan(policy) == plan


@settings(deadline=None, max_examples=40)
@given(cases(), st.sampled_from(sorted(POLICIES)))
def test_a_config_begins_an_epoch_where_it_ended_the_last(case, policy):
    plan = case.plan(policy)
    assert hops_per_config(plan) == ((case.num_ranks - 1) * case.num_epochs,) * case.num_configs
    for route in routes(plan):
        for one, two in pairwise(route):
            assert one.epoch == two.epoch or one.rank == two.rank
        for (epoch, rank), stay in groupby(route, key=lambda visit: (visit.epoch, visit.rank)):
            shards = [visit.shard for visit in stay]
            own = list(plan.shards_of(rank))
            assert shards == (own[::-1] if epoch % 2 else own)


@settings(deadline=None, max_examples=40)
@given(cases(), st.sampled_from(sorted(POLICIES)))
def test_predicted_times_are_those_of_the_costs(case, policy):
    plan = case.plan(policy)
    costs = case.costs
    found = predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s)
    assert found.plan == plan
    bound = lower_bound(costs.visit_s, plan.owners, case.num_epochs)
    assert found.makespan_s >= bound * (1 - 1e-9)
    assert least_arenas(plan) <= plan.max_arenas <= case.num_configs + SPARE_ARENAS
    if policy == "balanced":  # its ranks do not wait for arenas
        assert plan.max_arenas >= arenas_in_use(plan)


@pytest.mark.parametrize("num_configs", [8, 12, 16])
@pytest.mark.parametrize("policy", ["round-robin", "balanced"])
def test_no_policy_needs_more_than_the_bound_where_costs_are_equal(policy, num_configs):
    plan = make_plan(policy, num_configs=num_configs, num_shards=8, num_ranks=4, num_epochs=3)
    assert predict(plan, 1.0).makespan_s == num_configs * 2 * 3


def test_seeds_give_other_random_plans():
    sizes = {"num_configs": 9, "num_shards": 3, "num_ranks": 3, "num_epochs": 2}
    found = {digest(make_plan("random", **sizes, seed=seed)) for seed in range(5)}
    assert len(found) == 5
    assert len({digest(make_plan("round-robin", **sizes, seed=seed)) for seed in range(5)}) == 1


def test_owners_may_be_given():
    plan = make_plan(
        "balanced", num_configs=3, num_shards=4, num_ranks=2, num_epochs=2, owners=(1, 0, 0, 1)
    )
    check_plan(plan)
    assert plan.owners == (1, 0, 0, 1)
    assert plan.shards_of(1) == (0, 3)


def test_round_robin_is_as_defined():
    for num_configs, num_ranks in product(range(1, 12), range(1, 7)):
        slots = max(num_configs, num_ranks)
        plan = rotation(num_configs, num_ranks, 2)
        for rank, visits in enumerate(plan.visits_by_rank):
            shift = rank * slots // num_ranks
            even = sorted(range(num_configs), key=lambda c: (c + shift) % slots)
            assert [v.config_id for v in visits if v.epoch == 0] == even
            assert [v.config_id for v in visits if v.epoch == 1] == even[::-1]


def test_shards_of_a_rank_ascend_and_then_descend():
    plan = rotation(2, 2, 3, num_shards=5)
    turns = [v.shard for v in plan.visits_by_rank[0] if v.config_id == 0]
    assert turns == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    route = [v.shard for v in plan.route(0)]
    assert route == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_epochs", [1, 2, 3])
def test_equal_costs_reach_the_bound(num_epochs):
    for num_configs, num_ranks, per_rank in product(range(1, 14), range(1, 8), (1, 3)):
        plan = rotation(num_configs, num_ranks, num_epochs, num_ranks * per_rank)
        slots = max(num_configs, num_ranks)
        prediction = predict(plan, 1.0)
        bound = lower_bound(np.ones((num_configs, plan.num_shards)), plan.owners, num_epochs)
        assert prediction.makespan_s == bound == slots * per_rank * num_epochs
        if num_configs >= num_ranks:
            assert prediction.idle_share == 0.0


def test_an_epoch_costs_each_config_one_hop_per_further_rank():
    for num_configs, num_ranks, num_epochs in product((1, 3, 4, 9), (1, 2, 4, 5), (1, 2, 5)):
        plan = rotation(num_configs, num_ranks, num_epochs, num_ranks + 2)
        assert hops_per_config(plan) == ((num_ranks - 1) * num_epochs,) * num_configs
        for route in routes(plan):
            for one, two in pairwise(route):
                if one.epoch != two.epoch:
                    assert one.rank == two.rank


def test_slots_between_visits_hide_the_hop():
    for num_configs, num_ranks in product(range(1, 20), range(2, 8)):
        slots = max(num_configs, num_ranks)
        timed = predict(rotation(num_configs, num_ranks, 2), 1.0).plan
        for route in routes(timed):
            gaps = [
                two.predicted_start_s - one.predicted_start_s
                for one, two in pairwise(route)
                if one.rank != two.rank
            ]
            assert min(gaps) >= slots // num_ranks
            assert max(gaps) <= -(-slots // num_ranks)
        if num_configs % num_ranks == 0 and num_configs > num_ranks:
            # A hop as long as the slack costs nothing at all.
            slack = slots // num_ranks - 1
            plan = rotation(num_configs, num_ranks, 3)
            assert predict(plan, 1.0, hop_s=slack).makespan_s == 3 * slots


@pytest.mark.parametrize("num_epochs", [1, 2, 3, 5])
def test_some_routes_do_not_depend_on_the_number_of_ranks(num_epochs):
    two, four = (routes(rotation(16, ranks, num_epochs, 4)) for ranks in (2, 4))
    equal = [
        config_id
        for config_id in range(16)
        if [v.shard for v in two[config_id]] == [v.shard for v in four[config_id]]
    ]
    assert equal == [0, 1, 2, 3, 8, 9, 10, 11]


def test_arenas_stay_near_the_configs_of_a_rank():
    for num_ranks, num_configs, num_epochs in product(range(1, 13), range(1, 28), (1, 2, 3)):
        plan = rotation(num_configs, num_ranks, num_epochs)
        assert plan.max_arenas == -(-num_configs // num_ranks) + SPARE_ARENAS


@settings(deadline=None)
@given(
    num_configs=st.integers(1, 70),
    num_ranks=st.integers(1, 12),
    num_epochs=st.integers(1, 3),
    more_shards=st.integers(0, 20),
)
def test_arenas_stay_near_the_configs_of_a_rank_with_any_shards(
    num_configs, num_ranks, num_epochs, more_shards
):
    plan = rotation(num_configs, num_ranks, num_epochs, num_ranks + more_shards)
    assert plan.max_arenas <= -(-num_configs // num_ranks) + 3


def test_bad_sizes_and_names():
    sizes = {"num_configs": 2, "num_shards": 2, "num_ranks": 2, "num_epochs": 1}
    allowed = ", ".join(sorted(POLICIES))
    with pytest.raises(ExperimentError, match=f"'best' is not known; allowed: {allowed}"):
        make_plan("best", **sizes)
    for name in sizes:
        with pytest.raises(ExperimentError, match=f"at least 1 of {name[4:]}, got 0"):
            make_plan("round-robin", **{**sizes, name: 0})
    with pytest.raises(LaunchError, match="3 ranks but the store has 2 shards"):
        make_plan("round-robin", **{**sizes, "num_ranks": 3})
