"""Configs that come, go on, get copies and end as somebody decides: ranks that obey never wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from obeying import Made, Past, World
from schedule_cases import Case, cases, some_costs

from mophpc.schedule import check_plan
from mophpc.schedule.costs import Costs, Observed
from mophpc.schedule.plan import Plan, untimed
from mophpc.schedule.pool import PLANNING_SHARE, Pool
from mophpc.schedule.renewal import Renewal

pytestmark = pytest.mark.timeout(60)

NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""What happens depends on a seed, so that a case does not become simpler."""

Pasts: TypeAlias = dict[tuple[int, int], Past]

MOST_VAIN = 20
"""Rounds in which nothing happens until ranks are taken to wait for ever."""


@dataclass
class Run:
    """A pool, ranks that obey, and somebody who decides at random on whatever waits."""

    case: Case
    is_late: bool = False
    budget: int = 40
    """Decisions until everything ends."""
    diverging: float = 0.05
    cuts_fresh: bool = False
    """Whether a copy may be made to wait before it has made a visit, and be copied itself."""
    copied: int = 0
    loaded_at: dict[int, int] = field(default_factory=dict)
    """By config: the step for which it got the last copy of a state that was in a file."""
    pool: Pool = field(init=False)

    def __post_init__(self) -> None:
        case = self.case
        self.rng = np.random.default_rng(case.seed)
        self.plan = untimed(case.plan("round-robin"))
        self.pool = Pool(self.plan, case.costs)
        self.world = self._world()
        self.is_closed = False
        self.fresh: set[int] = set()
        """Copies that have made no visit since."""

    def _world(self) -> World:
        visit_s = np.array(self.case.costs.visit_s)
        return World(self.plan, self.rng, visit_s, self.observe, self.is_late)

    def observe(self, made: Made) -> None:
        visit = made.visit
        self.fresh.discard(visit.config_id)
        if made.is_new and not self.pool.members[visit.config_id].is_laid_out:
            self.pool.lay_out(visit.config_id)
        self.pool.observe(
            Observed(
                config_id=visit.config_id,
                shard=visit.shard,
                rank=visit.rank,
                step=visit.step,
                start_s=made.start_s,
                end_s=made.end_s,
                diverged=made.is_diverged,
            )
        )
        if made.is_diverged:
            self.pool.end(visit.config_id)

    def to_the_end(self) -> None:
        self.pool.begin(0.0)
        for config_id in range(self.case.num_configs):
            self._extend(config_id, 0)
        self.go_on()

    def go_on(self) -> None:
        """Let things happen until the ranks have made all."""
        vain = 0
        while not (self.pool.is_over and self.world.is_over):
            happened = self.world.step()
            changed = self._decide()
            told = self._poll()
            vain = 0 if happened or changed or told else vain + 1
            if vain:  # nobody has anything to do until the planner finds it due
                assert vain < MOST_VAIN, "stuck"
                self.world.now_s = (
                    4.0 * self.world.now_s + 1.0
                )  # made-up costs are far off at times

    def _poll(self) -> bool:
        if not self.pool.due(self.world.now_s):
            return False
        self.world.tell(self.pool.promise(self.world.now_s))
        self.pool.took(1e-4 * float(self.rng.random()))
        return True

    # What somebody decides.

    def _decide(self) -> bool:
        if self.is_closed:
            return False
        waiting = [c for c in range(len(self.pool.members)) if self.pool.waits(c)]
        for config_id in waiting:
            if self.pool.is_finished(config_id):
                self.pool.end(config_id)
        waiting = [c for c in waiting if not self.pool.members[c].is_over]
        if self.budget <= 0 and not self.pool.training:
            for config_id in waiting:
                self.pool.end(config_id)
            self.pool.close()
            self.is_closed = True
            return True
        changed = False
        if self.budget > 0 and self.rng.random() < 0.7:
            changed = self._decide_once(waiting)
        if self.budget > 0 and not self.pool.training and not changed:
            self.budget -= 1
            changed = True
        return changed

    def _decide_once(self, waiting: list[int]) -> bool:
        self.budget -= 1
        kind = self.rng.random()
        training = [
            c for c, m in enumerate(self.pool.members) if not m.is_over and c not in waiting
        ]
        if kind < 0.1:
            self._extend(self.pool.add(), 0)
        elif kind < 0.2 and training:
            if self.cuts_fresh or (training := [c for c in training if c not in self.fresh]):
                self._cut(self._one(training))
        elif kind < 0.2 + self.diverging and training:
            self.world.diverging.add(self._one(training))
        elif not waiting:
            self.budget += 1
            return False
        elif kind < 0.5:
            self._copy(waiting)
        elif kind < 0.6:
            self.pool.end(self._one(waiting))
        else:
            for config_id in waiting:
                if self.rng.random() < 0.7:
                    self._extend(config_id, self._made(config_id))
        return True

    def _one(self, of: list[int]) -> int:
        return of[int(self.rng.integers(len(of)))]

    def _made(self, config_id: int) -> int:
        return self.pool.members[config_id].made // self.case.num_shards

    def _extend(self, config_id: int, made: int) -> None:
        if made < self.case.num_epochs:
            goal = int(self.rng.integers(made + 1, self.case.num_epochs + 1))
            then = int(self.rng.integers(0, self.case.num_epochs - goal + 1))
            self.pool.set_goal(config_id, goal, then)

    def _cut(self, config_id: int) -> None:
        """Let a config wait as soon as it can, as people do who want a copy of it."""
        goal = self.pool.goal_of(config_id)
        self.pool.set_goal(config_id, min(goal, max(1, self.pool.boundary(config_id))))

    def _copy(self, waiting: list[int]) -> None:
        """Replace some by others that have made as many epochs, and begin new ones, at a time."""
        made = self._made(self._one(waiting))
        able = [c for c in waiting if self._made(c) == made and c in self.world.truth]
        if not able:
            return
        count = int(self.rng.integers(0, len(able) + 1))
        replaced = [int(c) for c in self.rng.permutation(able)[:count]]
        new = [self.pool.add(is_laid_out=True) for _ in range(self.rng.integers(0, 3))]
        pairs = [(c, self._one(able)) for c in [*replaced, *new]]
        pairs = [(c, source) for c, source in pairs if c != source]
        pasts = {c: self.world.truth[source] for c, source in pairs}
        forks = self.pool.copy(pairs)
        self.copied += len(forks)
        self.loaded_at |= {f.config_id: f.step for f in forks if f not in self.pool._forks}
        assert [fork.config_id for fork in forks] == [c for c, _ in pairs]
        assert {fork.step for fork in forks} <= {made * self.case.num_shards}
        self.world.truth |= pasts
        for config_id, _ in pairs:
            assert self.pool.waits(config_id)
            self._extend(config_id, made)
            self.fresh.add(config_id)


def pasts_of(plan: Plan, disk: Pasts | None = None) -> Pasts:
    """Return what the state of each visit has seen before it, by what a plan says."""
    visits = {(v.config_id, v.step): v for v in plan.visits()}
    forks = {(fork.config_id, fork.step): fork.source for fork in plan.forks}
    brought = {(one.config_id, one.step): one.source for one in plan.brought}
    found: Pasts = {}
    for config_id, step in sorted(visits, key=lambda key: key[1]):
        if (source := brought.get((config_id, step))) is not None:
            assert disk is not None
            found[config_id, step] = disk[source, step]
            continue
        before = (forks.get((config_id, step), config_id), step - 1)
        found[config_id, step] = (*found[before], str(visits[before])) if step else ()
    return found


def check_end(made: Run) -> Plan:
    """Check what holds whenever a run is over; return its plan."""
    plan, world = untimed(made.pool.plan()), made.world
    check_plan(plan)
    told = tuple(tuple(stop.visit for stop in rank.stops) for rank in world.ranks)
    assert plan.visits_by_rank == told
    assert world.pasts == pasts_of(plan, world.disk)
    assert not made.pool.due(world.now_s + 1e9)
    assert made.pool.training == 0
    for rank in world.ranks:
        assert rank.was_told_last == 1
        assert rank.queue.held == 0, "a state that nobody let go of"
        assert not rank._copies, "a copy that was never made"
    assert made.pool.num_decided == plan.num_visits
    return plan


@settings(deadline=None, max_examples=80, phases=NO_SHRINKING)
@given(cases(most=9), st.sampled_from((0.0, 0.05, 0.2)))
def test_whatever_is_decided_is_made(case, diverging):
    made = Run(case, diverging=diverging)
    made.to_the_end()
    check_end(made)


@settings(deadline=None, max_examples=20, phases=NO_SHRINKING)
@given(cases(kinds=("skewed",), most=9, most_epochs=3), st.integers(0, 30))
def test_a_pool_goes_on_where_a_plan_that_is_renewed_stands(case, events):
    made = Run(case, diverging=0.0)
    renewal = Renewal(case.plan(), case.costs, seed=case.seed)

    def observe(one: Made) -> None:
        v = one.visit
        renewal.observe(Observed(v.config_id, v.shard, v.rank, v.step, one.start_s, one.end_s))

    made.world.report = observe
    made.world.tell(renewal.begin())
    for _ in range(events):
        made.world.step()
        if renewal.due(made.world.now_s):
            solution = renewal.snapshot(made.world.now_s).solve()
            made.world.tell(renewal.adopt(solution, made.world.now_s))
    if renewal.is_over:
        return
    made.pool = Pool.after(renewal)
    made.world.report = made.observe
    made.go_on()
    check_end(made)


def test_the_cases_make_many_copies():
    """Else the tests above would not say much."""
    copied = 0
    for seed in range(10):
        costs = some_costs("skewed", 6, 4, seed)
        made = Run(Case(6, 2, 4, 3, seed, costs))
        made.to_the_end()
        check_end(made)
        copied += made.copied
    assert copied > 30


def small(num_configs: int = 3, num_ranks: int = 2, num_epochs: int = 4) -> Run:
    costs = Costs.of(1.0, num_configs, num_ranks)
    return Run(Case(num_configs, num_ranks, num_ranks, num_epochs, 0, costs), budget=0)


def test_a_config_that_is_ended_while_it_trains_makes_what_is_promised():
    run = small()
    run.pool.begin(0.0)
    for config_id in range(3):
        run.pool.set_goal(config_id, 4)
    assert run._poll()
    promised = run.pool.boundary(0)
    assert promised >= 1
    run.pool.end(0)
    assert not run.pool.waits(0)
    run.go_on()
    plan = check_end(run)
    assert plan.all_spans[0][1] <= promised * 2
    assert plan.all_spans[1] == (0, 8)


def test_a_config_that_nobody_has_begun_can_end():
    run = small()
    run.pool.begin(0.0)
    run.pool.set_goal(1, 1)
    run.pool.end(0)
    assert run.pool.rank_of(0) == -1
    run.go_on()
    assert check_end(run).all_spans == ((0, 0), (0, 2), (0, 0))


def test_a_pool_in_which_nothing_is_decided_is_closed_at_once():
    run = small()
    run.pool.begin(0.0)
    run.go_on()
    assert check_end(run).num_visits == 0


def test_the_first_stay_of_a_config_of_unknown_size_is_promised_alone():
    run = small()
    run.pool.begin(0.0)
    config_id = run.pool.add()
    run.pool.set_goal(config_id, 4)
    first = run.pool.promise(0.0)
    assert [stop.visit.config_id for own in first for stop in own.stops] == [config_id]
    run.pool.lay_out(config_id)
    assert run.pool.due(0.0)  # a rank has nothing to do


def test_states_are_swapped_in_one_breath():
    run = small(num_configs=2)
    run.pool.begin(0.0)
    for config_id in (0, 1):
        run.pool.set_goal(config_id, 1)
    while run.pool.training:
        run._poll()
        assert run.world.step()
    truth = run.world.truth
    run.world.truth = {0: truth[1], 1: truth[0]}
    run.pool.copy([(0, 1), (1, 0)])
    for config_id in (0, 1):
        run.pool.set_goal(config_id, 2)
    run.go_on()
    plan = check_end(run)
    assert {(fork.config_id, fork.source) for fork in plan.forks} == {(0, 1), (1, 0)}


def test_planning_that_takes_long_is_done_less_often():
    run = small(num_configs=8, num_epochs=50)
    run.pool.begin(0.0)
    for config_id in range(8):
        run.pool.set_goal(config_id, 50)
    run.pool.promise(0.0)
    run.pool.took(10.0)
    run.pool._is_urgent = False
    assert not run.pool.due(10.0 / PLANNING_SHARE - 1.0)
    run.pool.end(0)  # decided, but no rank has run out of visits
    assert not run.pool.due(10.0 / PLANNING_SHARE - 1.0)
    assert run.pool.due(10.0 / PLANNING_SHARE + 1.0)


def test_what_is_decided_is_told_at_once_to_a_rank_without_visits():
    run = small(num_configs=1, num_ranks=1)
    run.pool.begin(0.0)
    run.pool.set_goal(0, 1)
    run.world.tell(run.pool.promise(0.0))
    while run.world.step():
        pass
    assert not run.pool.due(run.world.now_s)  # there is nothing to tell
    run.pool.set_goal(0, 2)
    assert run.pool.due(run.world.now_s)


@settings(deadline=None, max_examples=80, phases=NO_SHRINKING)
@given(cases(kinds=("equal", "skewed", "some zero"), most=9))
def test_reports_and_orders_that_take_their_time(case):
    """Reports of a rank keep their order; those of two ranks need not."""
    made = Run(case, is_late=True)
    made.to_the_end()
    check_end(made)


@settings(deadline=None, max_examples=80, phases=NO_SHRINKING)
@given(cases(most=9))
def test_copies_that_are_copied_before_they_have_made_a_visit(case):
    made = Run(case, cuts_fresh=True)
    made.to_the_end()
    check_end(made)


def test_a_copy_is_trained_for_an_epoch_before_it_can_wait():
    run = small(num_configs=2, num_ranks=2)
    run.pool.begin(0.0)
    for config_id in range(2):
        run.pool.set_goal(config_id, 1)
    run.world.tell(run.pool.promise(0.0))
    while run.world.step():
        pass
    run.pool.copy([(1, 0)])
    assert [run.pool.boundary(config_id) for config_id in range(2)] == [1, 2]


@pytest.mark.parametrize(("groups", "order"), [((0, 1, 0), [2, 0, 1]), ((0, 1, 2), [2, 1, 0])])
def test_what_may_follow_takes_as_long_as_with_the_slowest_of_a_group(groups, order):
    """Config 2 is slow; config 0 counts as slow if it competes with it."""
    plan = Plan(3, 1, 1, 5, (0,), ((),), "pool", 4, spans=((0, 0),) * 3)
    pool = Pool(plan, Costs.of(np.array([[1.0], [1.5], [5.0]]), 3, 1))
    for config_id, group in enumerate(groups):
        pool.set_group(config_id, group)
        pool.set_goal(config_id, 1, 4)
    pool.begin()
    told = [stop.visit.config_id for now_s in (0.0, 4.0) for stop in pool.promise(now_s)[0].stops]
    assert told == order
