"""Plans in a simulated reality: without renewals they are as predicted, with them they end."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import QUICK_S, Case, cases, some_costs
from test_orders import check_parts

from mophpc.errors import PlanError
from mophpc.schedule import POLICIES, Plan, Visit, check_plan, hops_per_config, predict
from mophpc.schedule import execute as execute_module
from mophpc.schedule import renewal as renewal_module
from mophpc.schedule.costs import Costs
from mophpc.schedule.execute import Executed, Reality, execute
from mophpc.schedule.orders import Orders
from mophpc.schedule.plan import untimed
from mophpc.schedule.renewal import Renewal, Solution

pytestmark = pytest.mark.timeout(60)


class Recorded(Renewal):
    """A renewal that keeps what it promised, and checks that it stays."""

    last: Recorded

    def begin(self, now_s: float = 0.0) -> list[Orders]:
        Recorded.last = self
        self.parts = [super().begin(now_s)]
        self.check()
        return self.parts[0]

    def adopt(self, solution: Solution, now_s: float) -> list[Orders]:
        self.parts.append(super().adopt(solution, now_s))
        self.check()
        return self.parts[-1]

    def check(self) -> None:
        for rank, visits in enumerate(self.plan().visits_by_rank):
            told = [stop.visit for part in self.parts for stop in part[rank].stops]
            assert list(visits[: len(told)]) == told


def executed(
    case: Case, plan: Plan, reality: Reality, *, delay_s: float = 0.0
) -> tuple[Executed, Recorded]:
    with (
        mock.patch.object(execute_module, "Renewal", Recorded),
        mock.patch.object(renewal_module, "MOST_SEARCH_S", QUICK_S),
    ):
        found = execute(plan, case.costs, reality, renew=True, seed=case.seed, delay_s=delay_s)
    return found, Recorded.last


def exact(case: Case) -> Reality:
    return Reality.draw(case.costs, case.num_epochs, noise=0.0, jitter=0.0, seed=0)


@settings(deadline=None, max_examples=40)
@given(cases(), st.sampled_from(sorted(POLICIES)))
def test_without_renewals_it_is_what_the_plan_predicts(case, policy):
    plan, costs = case.plan(policy), case.costs
    expected = predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s).makespan_s
    found = execute(plan, costs, exact(case), renew=False)
    assert found.makespan_s == pytest.approx(expected, rel=1e-9)
    assert (found.renewals, found.predicted_s) == (0, 0.0)


@settings(deadline=None, max_examples=20)
@given(cases(), st.floats(0.0, 2.0), st.floats(0.0, 1.0))
def test_without_renewals_in_another_reality(case, noise, jitter):
    """One epoch with jitter is a plan with other costs."""
    case = Case(case.num_configs, case.num_ranks, case.num_shards, 1, case.seed, case.costs)
    reality = Reality.draw(case.costs, 1, noise=noise, jitter=jitter, seed=case.seed)
    plan = case.plan()
    expected = predict(plan, reality.visit_s[0], hop_s=reality.hop_s, eval_s=reality.eval_s)
    found = execute(plan, case.costs, reality, renew=False)
    assert found.makespan_s == pytest.approx(expected.makespan_s, rel=1e-9)
    assert found.makespan_s >= reality.bound(plan.owners, plan.num_ranks) * (1 - 1e-9)


@settings(deadline=None, max_examples=20)
@given(
    cases(most=9),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from((0.0, 0.1, 0.5, 2.0)),
    st.sampled_from((0.0, 0.2, 1.0)),
    st.sampled_from((0.0, 0.01, 1.0, 5.0)),
)
def test_whatever_visits_take_a_renewed_plan_ends(case, policy, noise, jitter, delay):
    plan = case.plan(policy)
    reality = Reality.draw(case.costs, case.num_epochs, noise=noise, jitter=jitter, seed=case.seed)
    mean_s = float(case.costs.visit_s.mean())
    found, renewal = executed(case, plan, reality, delay_s=delay * mean_s)
    final = renewal.plan()
    assert renewal.is_over
    assert found.renewals == renewal.count == len(renewal.parts) - 1
    check_plan(untimed(final))
    check_parts(renewal.parts, final)
    assert hops_per_config(final) == ((case.num_ranks - 1) * case.num_epochs,) * case.num_configs
    assert found.makespan_s >= reality.bound(plan.owners, plan.num_ranks) * (1 - 1e-9)


@settings(deadline=None, max_examples=5)
@given(cases(most=8), st.floats(0.0, 1.0))
def test_equal_input_goes_equally(case, noise):
    plan = case.plan()
    reality = Reality.draw(case.costs, case.num_epochs, noise=noise, jitter=0.1, seed=1)
    one, first = executed(case, plan, reality, delay_s=0.1)
    two, second = executed(case, plan, reality, delay_s=0.1)
    assert one == two
    assert first.parts == second.parts


@settings(deadline=None, max_examples=10)
@given(cases(kinds=("equal", "skewed", "by config"), most=6, most_epochs=3))
def test_renewals_do_no_harm_where_costs_are_exact(case):
    """Without delay and noise the old rest stays unless a shorter one is found."""
    plan, costs = case.plan(), case.costs
    expected = predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s).makespan_s
    found, _ = executed(case, plan, exact(case))
    assert found.makespan_s <= expected * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_renewals_follow_costs_that_were_wrong(seed):
    costs = some_costs("by config", 16, 8, seed)
    case = Case(16, 8, 8, 4, seed, Costs.of(costs.visit_s * 10.0, 16, 8))
    reality = Reality.draw(case.costs, 4, noise=0.5, jitter=0.02, seed=seed)
    plan = case.plan()
    fixed = execute(plan, case.costs, reality, renew=False)
    renewed, _ = executed(case, plan, reality)
    bound = reality.bound(plan.owners, 8)
    assert renewed.renewals > 3
    assert renewed.makespan_s < min(fixed.makespan_s, 1.05 * bound)
    assert renewed.predicted_s == pytest.approx(renewed.makespan_s, rel=0.1)


def test_reality_by_hand():
    costs = Costs.of([[1.0, 2.0], [3.0, 1.0]], 2, 2, hop_s=0.5, eval_s=[0.5, 1.0])
    reality = Reality.draw(costs, 3, noise=0.0, jitter=0.0, seed=7)
    assert (reality.visit_s == costs.visit_s).all()
    assert reality.visit_s.shape == (3, 2, 2)
    assert reality.bound((0, 1), 2) == 15.0
    noisy = Reality.draw(costs, 3, noise=1.0, jitter=0.0, seed=7)
    factor = noisy.visit_s / costs.visit_s
    assert np.allclose(factor, factor[:1, :, :1])
    assert factor[0, 0, 0] != factor[0, 1, 0]
    again = Reality.draw(costs, 3, noise=1.0, jitter=0.0, seed=7)
    assert (again.visit_s == noisy.visit_s).all()


def test_a_plan_that_cannot_end():
    plan = Plan(
        num_configs=2,
        num_ranks=2,
        num_shards=2,
        num_epochs=1,
        owners=(0, 1),
        visits_by_rank=(
            (Visit(1, 0, 0, 0, 1), Visit(0, 0, 0, 0, 0)),
            (Visit(0, 0, 1, 1, 1), Visit(1, 0, 1, 1, 0)),
        ),
        policy="by hand",
        max_arenas=9,
    )
    costs = Costs.of(1.0, 2, 2)
    reality = Reality.draw(costs, 1, noise=0.0, jitter=0.0, seed=0)
    with pytest.raises(PlanError, match="ranks wait for each other for ever"):
        execute(plan, costs, reality, renew=False)
