"""Runs that are cut off anywhere and go on, on other ranks, with states of any age."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import Case, cases
from test_pool import NO_SHRINKING, Pasts, Run, check_end

from mophpc.schedule import from_json, to_json
from mophpc.schedule.plan import Plan, Visit
from mophpc.schedule.pool import Pool
from mophpc.schedule.resume import Standing

pytestmark = pytest.mark.timeout(60)


def cut(run: Run, rng: np.random.Generator) -> tuple[list[Standing], Pasts, list[int]]:
    """Return where configs stand when a run is killed now, what is on disk, and their goals."""
    world, pool = run.world, run.pool
    num_shards = run.case.num_shards
    standings: list[Standing] = []
    disk: Pasts = {}
    goals = [member.goal for member in pool.members]
    for config_id, member in enumerate(pool.members):
        truth = world.truth.get(config_id, ())
        first = max(member.begin, run.copied_at.get(config_id, 0))
        kept = [s for c, s in world.pasts if c == config_id and first <= s <= len(truth)]
        step = int(rng.choice([*kept, len(truth)]))
        route = {
            visit.step: visit.shard
            for own in pool._promises.visits
            for visit in own
            if visit.config_id == config_id and visit.step >= step
        }
        epochs = len(truth) // num_shards
        if epochs * num_shards >= max(first, 1) and rng.random() < 0.3:  # as if it had waited then
            step, route = epochs * num_shards, {}
            goals[config_id] = step
        if step:
            disk[config_id, step] = truth[:step]
        done = [Visit.parse(one).shard for one in truth[step - step % num_shards : step]]
        standings.append(
            Standing(
                step=step,
                promised=tuple(shard for _, shard in sorted(route.items())),
                done=tuple(done),
                end=pool.ends[config_id],
                is_over=member.is_over,
            )
        )
    for config_id, own in enumerate(standings):  # some are to get copies
        source = int(rng.integers(len(standings)))
        if own.step and rng.random() < 0.2 and (source, own.step) not in disk:
            disk[source, own.step] = disk.pop((config_id, own.step))
            standings[config_id] = replace(own, source=source)
    return standings, disk, goals


class Resumed(Run):
    """A run that goes on where another one was cut off."""

    def __init__(self, run: Run, num_ranks: int, rng: np.random.Generator) -> None:
        standings, disk, goals = cut(run, rng)
        old = run.case
        costs = run.pool._model.costs(left_too=True)
        case = Case(len(standings), num_ranks, old.num_shards, old.num_epochs, old.seed, costs)
        super().__init__(case, run.is_late, run.budget, 0.0, run.cuts_fresh)
        self.standings = standings
        self.pool = Pool.resumed(self.plan, costs, standings)
        self.world.disk = disk
        self.first = self.pool.plan()
        for config_id, own in enumerate(standings):
            if own.step:
                source = config_id if own.source is None else own.source
                self.world.truth[config_id] = disk[source, own.step]
        for config_id, (member, goal) in enumerate(zip(self.pool.members, goals, strict=True)):
            assert member.begin == member.made == standings[config_id].step
            if not member.is_over:
                assert member.goal <= max(goal, member.begin)
                if goal > member.goal:
                    self.pool.set_goal(config_id, goal // case.num_shards)

    def check(self) -> Plan:
        plan = check_end(self)
        assert from_json(to_json(plan)) == plan
        for config_id, own in enumerate(self.standings):
            found = sorted(
                (visit for visit in self.first.visits() if visit.config_id == config_id),
                key=lambda visit: visit.step,
            )
            shards = tuple(visit.shard for visit in found)
            assert shards[: len(own.promised)] == own.promised
            assert len(shards) == len(own.promised) or not own.is_over
            made = self.pool.members[config_id].made
            assert own.is_over or made == self.pool._promises.step_of(config_id)
        return plan


@settings(deadline=None, max_examples=150, phases=NO_SHRINKING)
@given(cases(most=7), st.lists(st.integers(0, 80), min_size=1, max_size=3), st.booleans())
def test_a_run_that_was_cut_off_goes_on(case, events, is_late):
    rng = np.random.default_rng(case.seed)
    run = Run(case, is_late=is_late, diverging=0.0)
    run.pool.begin(0.0)
    for config_id in range(case.num_configs):
        run._extend(config_id, 0)
    for number in events:
        for _ in range(number):
            run.world.step()
            run._decide()
            run._poll()
        num_ranks = int(rng.integers(1, min(5, case.num_shards) + 1))
        run = Resumed(run, num_ranks, rng)
        run.pool.begin(0.0)
    run.go_on()
    run.check()


@settings(deadline=None, max_examples=100, phases=NO_SHRINKING)
@given(cases(most=9), st.sampled_from(("round-robin", "random")), st.integers(1, 5))
def test_a_fixed_plan_keeps_its_routes_on_any_ranks(case, policy, num_ranks):
    rng = np.random.default_rng(case.seed)
    num_ranks = min(num_ranks, case.num_shards)
    old = case.plan(policy)
    routes = {
        config_id: tuple(visit.shard for visit in old.route(config_id))
        for config_id in range(case.num_configs)
    }
    standings = []
    for route in routes.values():
        step = int(rng.integers(0, len(route) + 1))
        done = route[step - step % case.num_shards : step]
        standings.append(Standing(step, route[step:], done))
    case = replace(case, num_ranks=num_ranks)
    run = Run(case, budget=0)
    run.pool = pool = Pool.resumed(run.plan, case.costs, standings)
    for config_id, own in enumerate(standings):
        past = tuple(map(str, old.route(config_id)[: own.step]))
        if past:
            run.world.disk[config_id, own.step] = run.world.truth[config_id] = past
        assert pool.members[config_id].is_over == (own.step == old.num_steps)
        assert pool.is_finished(config_id)
    pool.begin(0.0)
    run.go_on()
    plan = check_end(run)
    for config_id, own in enumerate(standings):
        assert tuple(v.shard for v in plan.route(config_id)) == own.promised
