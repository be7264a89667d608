"""The plan is renewed while it runs: what was promised stays, and every visit is made."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import QUICK_S, Case, cases, some_costs
from test_orders import check_parts

from mophpc.schedule import POLICIES, Visit, check_plan, hops_per_config
from mophpc.schedule import renewal as renewal_module
from mophpc.schedule.costs import Costs, Observed
from mophpc.schedule.orders import Orders
from mophpc.schedule.plan import untimed
from mophpc.schedule.renewal import Renewal

pytestmark = pytest.mark.timeout(60)


@dataclass
class Run:
    """Ranks that make what they are told, in any order that the visits allow."""

    case: Case
    renewal: Renewal
    rng: np.random.Generator
    scale_s: float
    now_s: float = 0.0
    parts: list[list[Orders]] = field(default_factory=list)
    diverged: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.told: list[list[Visit]] = [[] for _ in range(self.case.num_ranks)]
        self.made = [0] * self.case.num_ranks
        self.steps = [0] * self.case.num_configs

    def tell(self, orders: list[Orders]) -> None:
        self.parts.append(json.loads(json.dumps([own.to_json() for own in orders])))
        self.parts[-1] = [Orders.from_json(own) for own in self.parts[-1]]
        for rank, own in enumerate(self.parts[-1]):
            self.told[rank] += [stop.visit for stop in own.stops]
        whole = untimed(self.renewal.plan())
        check_plan(whole)
        for rank, visits in enumerate(whole.visits_by_rank):
            assert list(visits[: len(self.told[rank])]) == self.told[rank]

    def visit(self, rank: int) -> bool:
        """Make a rank's next visit if it has one that can be made."""
        if self.made[rank] == len(self.told[rank]):
            return False
        visit = self.told[rank][self.made[rank]]
        if self.steps[visit.config_id] != visit.step:
            return False
        self.steps[visit.config_id] += 1
        self.made[rank] += 1
        gone = visit.config_id in self.diverged
        took = 0.0 if gone else self.scale_s * float(self.rng.lognormal())
        evaluates = (visit.step + 1) % self.case.num_shards == 0
        eval_s = 0.1 * took if evaluates else 0.0
        self.now_s += took
        self.renewal.observe(
            Observed(
                config_id=visit.config_id,
                shard=visit.shard,
                rank=rank,
                step=visit.step,
                start_s=self.now_s - took,
                end_s=self.now_s,
                eval_s=eval_s,
                diverged=gone,
            )
        )
        self.now_s += eval_s
        return True

    @property
    def is_open(self) -> bool:
        return not self.renewal.is_over

    def renew(self) -> None:
        solution = self.renewal.snapshot(self.now_s).solve()
        for _ in range(self.rng.integers(0, 3)):  # what goes on while it is solved
            self.visit(int(self.rng.integers(self.case.num_ranks)))
        self.now_s += float(self.rng.exponential()) * self.scale_s * self.rng.integers(0, 2)
        self.tell(self.renewal.adopt(solution, self.now_s))

    def to_the_end(self, diverging: float) -> None:
        self.tell(self.renewal.begin())
        num_visits = sum(map(len, self.renewal.plan().visits_by_rank))
        while sum(self.made) < num_visits:
            ranks = self.rng.permutation(self.case.num_ranks)
            moved = sum(self.visit(int(rank)) for rank in ranks[: self.rng.integers(1, 4)])
            if self.rng.random() < diverging:
                self.diverged.add(int(self.rng.integers(self.case.num_configs)))
            if not moved and not any(self.visit(int(rank)) for rank in ranks):
                # Nobody can go on: only the next part helps, and it is due at the latest then.
                assert not self.renewal.is_over
                self.now_s = max(self.now_s, self.renewal.patience_end_s)
                assert self.renewal.due(self.now_s)
                self.renew()
            elif self.renewal.due(self.now_s) or self.rng.random() < 0.02 * self.is_open:
                self.renew()


def run(case: Case, policy: str, scale: float = 1.0, diverging: float = 0.0) -> Run:
    plan = case.plan(policy)
    renewal = Renewal(plan, case.costs, seed=case.seed)
    mean_s = float(case.costs.visit_s.mean()) or 1.0
    made = Run(case, renewal, np.random.default_rng(case.seed), scale * mean_s)
    with mock.patch.object(renewal_module, "MOST_SEARCH_S", QUICK_S):
        made.to_the_end(diverging)
    return made


def check_end(made: Run) -> None:
    case, final = made.case, made.renewal.plan()
    assert made.renewal.is_over
    assert not made.renewal.due(made.now_s + 1e9)
    check_plan(untimed(final))
    check_parts(made.parts, untimed(final))
    assert hops_per_config(final) == ((case.num_ranks - 1) * case.num_epochs,) * case.num_configs
    assert made.renewal.count == len(made.parts) - 1


@settings(deadline=None, max_examples=25)
@given(cases(most=9), st.sampled_from(sorted(POLICIES)), st.sampled_from((0.05, 1.0, 20.0)))
def test_what_is_promised_stays_and_the_run_ends(case, policy, scale):
    check_end(run(case, policy, scale))


@settings(deadline=None, max_examples=20)
@given(cases(most=9), st.sampled_from((0.05, 1.0)), st.sampled_from((0.02, 0.3)))
def test_configs_that_diverge(case, scale, diverging):
    check_end(run(case, "balanced", scale, diverging))


@settings(deadline=None, max_examples=5)
@given(cases(kinds=("skewed",), most=6))
def test_equal_input_gives_equal_parts(case):
    """A renewal draws from the seed and its number only."""
    assert run(case, "balanced").parts == run(case, "balanced").parts


def skewed(num_configs: int = 12, num_ranks: int = 4, num_epochs: int = 3) -> Case:
    costs = some_costs("by config", num_configs, num_ranks, seed=1)
    return Case(num_configs, num_ranks, num_ranks, num_epochs, 0, costs)


def test_a_run_begins_later_than_zero():
    case = skewed()
    renewal = Renewal(case.plan(), case.costs)
    length_s = renewal.makespan_s
    renewal.begin(100.0)
    assert renewal.makespan_s == length_s + 100.0
    assert not renewal.due(100.0)
    assert renewal.due(renewal.patience_end_s)
    assert renewal.snapshot(100.0).progress.free_s.min() >= 100.0


def test_a_plan_without_times_is_promised_at_once():
    case = skewed()
    plan = untimed(case.plan())
    renewal = Renewal(plan, case.costs)
    orders = renewal.begin()
    assert renewal.is_over
    check_parts([[Orders.from_json(own.to_json()) for own in orders]], plan)


def test_a_short_plan_is_promised_at_once():
    case = Case(2, 2, 2, 1, 0, Costs.of(1.0, 2, 2))
    renewal = Renewal(case.plan(), case.costs)
    check_parts([renewal.begin()], renewal.plan())


def test_the_first_part_is_a_small_part():
    case = skewed(num_configs=24, num_epochs=5)
    renewal = Renewal(case.plan(), case.costs)
    told = sum(len(own.stops) for own in renewal.begin())
    assert case.num_ranks <= told < 0.1 * 24 * 4 * 5
    assert not renewal.is_over


def test_solving_that_takes_long_is_done_less_often():
    case = skewed()
    renewal = Renewal(case.plan(), case.costs)
    renewal.begin()
    before = renewal.patience_end_s
    renewal.took(50.0)
    renewal.adopt(renewal.snapshot(before).solve(), before)
    assert not renewal.due(before + 50.0 / 0.02 - 1.0) or renewal.is_over


def test_what_is_expected_follows_what_is_measured():
    """All visits take twice as long as thought, so the whole run will."""
    case = skewed()
    renewal = Renewal(case.plan(), case.costs)
    length_s = renewal.makespan_s
    first = [own.stops[0].visit for own in renewal.begin()]
    for rank, visit in enumerate(first):
        end_s = 2.0 * float(case.costs.visit_s[visit.config_id, visit.shard])
        renewal.observe(Observed(visit.config_id, visit.shard, rank, visit.step, 0.0, end_s))
    now_s = max(renewal.patience_end_s, 20.0)
    renewal.adopt(renewal.snapshot(now_s).solve(), now_s)
    assert renewal.makespan_s == pytest.approx(2.0 * length_s, rel=0.25)
    assert renewal.learned is None


def test_what_was_learned():
    made = run(skewed(num_configs=3, num_ranks=2), "balanced")
    learned = made.renewal.learned
    assert learned is not None
    assert learned.visit_s.shape == (3, 2)


def test_the_old_rest_stays_where_no_better_one_is_found():
    case = Case(8, 4, 4, 4, 0, Costs.of(1.0, 8, 4))
    renewal = Renewal(case.plan("round-robin"), case.costs)
    renewal.begin()
    solution = renewal.snapshot(1.5).solve()
    assert not solution.is_new


@pytest.mark.parametrize("num_configs", [1, 2, 3])
def test_fewer_configs_than_ranks(num_configs):
    costs = some_costs("skewed", num_configs, 8, seed=2)
    check_end(run(Case(num_configs, 4, 8, 4, 3, costs), "balanced"))
