"""A plan with copies of states is told again to its end, in any timing and in its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from obeying import Made, World
from schedule_cases import Case, cases, some_costs
from test_pool import NO_SHRINKING, Run, check_end, pasts_of

from mophpc.schedule.check import check_plan
from mophpc.schedule.plan import Fork, Plan, Visit, from_json, to_json
from mophpc.schedule.retold import Retold

pytestmark = pytest.mark.timeout(60)


def check_retold(plan: Plan, seed: int, visit_s: np.ndarray, *, is_late: bool) -> None:
    """Walk a plan again, in another timing."""
    plan = from_json(to_json(plan))
    retold, rng = Retold(plan), np.random.default_rng([seed, 1])

    def observe(one: Made) -> None:
        retold.observe(one.visit.config_id, one.visit.step)

    world = World(plan, rng, visit_s, observe, is_late)
    pasts = pasts_of(plan)

    def tell() -> bool:
        known = {(f.config_id, f.source, f.step) for f in retold._forks}
        orders = retold.tell()
        if orders is None:
            return False
        copied = known - {(f.config_id, f.source, f.step) for f in retold._forks}
        world.truth |= {c: pasts[c, step] for c, _, step in copied}
        world.tell(orders)
        return True

    while not world.is_over:
        told = tell()
        assert world.step() or told or world.is_over, "stuck"
    assert retold.is_over
    assert retold.tell() is None
    assert world.pasts == pasts
    for rank, own in zip(world.ranks, plan.visits_by_rank, strict=True):
        assert tuple(stop.visit for stop in rank.stops) == own
        assert rank.queue.held == 0, "a state that nobody let go of"


@settings(deadline=None, max_examples=80, phases=NO_SHRINKING)
@given(cases(most=9))
def test_whatever_was_decided_can_be_told_again(case):
    made = Run(case)
    made.to_the_end()
    check_retold(check_end(made), case.seed, case.costs.visit_s, is_late=bool(case.seed % 2))


def visits(*tokens: str) -> tuple[Visit, ...]:
    return tuple(map(Visit.parse, tokens))


def test_each_rank_is_told_its_list_in_order():
    """An epoch of one config after the first visit of the other: not by the number of steps."""
    own = (
        visits("c0e0s0r0n0", "c0e1s0r0n1", "c0e2s0r0n2", "c1e0s0r0n0", "c1e1s0r0n1"),
        visits("c1e2s0r0n2"),
    )
    plan = Plan(2, 1, 1, 3, (0,), (own[0] + own[1],), "pool", 4)
    check_plan(plan)
    orders = Retold(plan).tell()
    assert orders is not None
    assert tuple(stop.visit for stop in orders[0].stops) == plan.visits_by_rank[0]
    check_retold(plan, 0, np.ones((2, 1)), is_late=False)


def test_a_source_that_ends_where_it_is_copied_is_there_until_the_copy_is_made():
    own = visits("c0e0s0r0n0", "c1e0s0r0n0", "c2e1s0r0n1")
    spans, forks = ((0, 1), (0, 1), (1, 2)), (Fork(2, 1, 0),)
    plan = Plan(3, 1, 1, 2, (0,), (own,), "pool", 6, spans, forks)
    check_plan(plan)
    check_retold(plan, 0, np.ones((3, 1)), is_late=False)


def test_a_plan_that_was_cut_off_before_any_visit_is_over_at_once():
    plan = Plan(2, 2, 2, 1, (0, 1), ((), ()), "pool", 4, ((0, 0), (0, 0)))
    check_plan(plan)
    retold = Retold(plan)
    orders = retold.tell()
    assert orders is not None
    assert all(own.is_last for own in orders)
    assert retold.is_over
    assert retold.tell() is None


def test_states_that_were_swapped_in_one_breath():
    own = visits("c0e0s0r0n0", "c1e0s0r0n0", "c0e1s0r0n1", "c1e1s0r0n1")
    plan = Plan(
        2, 1, 1, 2, (0,), (own,), "pool", 6, ((0, 2), (0, 2)), (Fork(0, 1, 1), Fork(1, 1, 0))
    )
    check_plan(plan)
    check_retold(plan, 0, np.ones((2, 1)), is_late=False)


def test_the_cases_have_sources_that_end_where_they_are_copied():
    ends = 0
    for seed in range(10):
        made = Run(Case(6, 2, 4, 3, seed, some_costs("skewed", 6, 4, seed)))
        made.to_the_end()
        plan = check_end(made)
        ends += sum(plan.all_spans[fork.source][1] == fork.step for fork in plan.forks)
    assert ends > 3
