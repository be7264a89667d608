"""Runs that are cut off anywhere and go on, on other ranks, with states of any age."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obeying import Made, Past
from schedule_cases import Case, cases
from test_pool import NO_SHRINKING, Pasts, Run, check_end

from mophpc.schedule import format_plan, from_json, hops, hops_per_config, predict, to_json
from mophpc.schedule.plan import Fork, Plan, Visit
from mophpc.schedule.pool import Pool
from mophpc.schedule.resume import Standing

pytestmark = pytest.mark.timeout(60)


def learnt(past: Past) -> list[str]:
    """Return what a state has seen, wherever that was."""
    return [re.sub("r[0-9]+", "", token) for token in past]


@dataclass
class Cut:
    """What is left of a run that is killed: files of any age, and the journal."""

    run: Run
    rng: np.random.Generator
    num_ranks: int
    """That it goes on with."""
    waited: float = 0.0
    """How often a config is taken to have waited after an epoch, and nothing to be promised."""

    def __post_init__(self) -> None:
        pool, world = self.run.pool, self.run.world
        self.num_shards = self.run.case.num_shards
        self.visits = [v for own in pool._promises.visits for v in own] + pool._owed._visits
        self.forks = pool._forks + pool._owed._forks
        self.disk: Pasts = {}
        self.goals = [member.goal for member in pool.members]
        num_configs = len(self.goals)
        self.truth = [world.truth.get(config_id, ()) for config_id in range(num_configs)]
        self.steps = [self._kept(config_id) for config_id in range(num_configs)]
        self.before = [False] * num_configs  # whether a copy at this very step is to be made
        while self._is_lowered():
            pass
        self.again = [fork for fork in self.forks if self._is_to_be_made(fork)]
        self.standings = [self._standing(config_id) for config_id in range(num_configs)]
        for config_id in range(num_configs):
            self._rename(config_id)

    def _kept(self, config_id: int, most: int | None = None) -> int:
        """Return the step of some state of a config, the last one that some file has."""
        first = self.run.pool.members[config_id].begin
        first = max(first, self.run.loaded_at.get(config_id, 0))
        last = len(self.truth[config_id]) if most is None else most
        kept = [s for c, s in self.run.world.pasts if c == config_id and first <= s <= last]
        if most is None:
            kept.append(last)
        whole = [step for step in kept if step and step % self.num_shards == 0]
        if whole and self.rng.random() < self.waited:
            kept = whole
        return int(self.rng.choice(kept)) if kept else last

    def _is_to_be_made(self, fork: Fork) -> bool:
        at = self.steps[fork.config_id]
        return at < fork.step or (at == fork.step and self.before[fork.config_id])

    def _is_lowered(self) -> bool:
        """See to it that what is to be copied again is there: no state of later."""
        for fork in self.forks:
            if self.steps[fork.config_id] == fork.step and not self.before[fork.config_id]:
                self.before[fork.config_id] = bool(self.rng.random() < 0.5) or any(
                    (other.source, other.step) == (fork.config_id, fork.step)
                    for other in self.forks
                )
                if self.before[fork.config_id]:
                    return True
            if not self._is_to_be_made(fork):
                continue
            if self.steps[fork.source] > fork.step:
                self.steps[fork.source] = self._kept(fork.source, fork.step)
                self.before[fork.source] = False
                return True
        return False

    def _past(self, config_id: int) -> Past:
        """Return what the state of a config has seen."""
        step, pasts = self.steps[config_id], self.run.world.pasts
        if self.before[config_id] and step > self.run.pool.members[config_id].begin:
            last = next(v for v in self.visits if (v.config_id, v.step) == (config_id, step - 1))
            return (*pasts[config_id, step - 1], str(last))
        return pasts.get((config_id, step), self.truth[config_id])

    def _standing(self, config_id: int) -> Standing:
        step, past = self.steps[config_id], self._past(config_id)
        route = {v.step: v.shard for v in self.visits if v.config_id == config_id}
        shards = tuple(shard for at, shard in sorted(route.items()) if at >= step)
        forks = [config_id in (fork.config_id, fork.source) for fork in self.again]
        is_whole = step and step % self.num_shards == 0
        if is_whole and self.waited and not any(forks) and self.rng.random() < 0.5:
            self.goals[config_id], shards = step, ()
        if step:
            self.disk[config_id, step] = past
        return Standing(
            step=step,
            promised=shards,
            done=tuple(Visit.parse(one).shard for one in past[step - step % self.num_shards :]),
            end=self.run.pool.ends[config_id],
            is_over=self.run.pool.members[config_id].is_over,
        )

    def _rename(self, config_id: int) -> None:
        """Some have the state of another, of which they were to get a copy."""
        own = self.standings[config_id]
        source = int(self.rng.integers(len(self.standings)))
        is_source = any(fork.source == config_id for fork in self.again)
        is_free = own.step and not is_source and (source, own.step) not in self.disk
        if is_free and self.rng.random() < 0.2:
            self.disk[source, own.step] = self.disk.pop((config_id, own.step))
            self.standings[config_id] = replace(own, source=source)


class Resumed(Run):
    """A run that goes on where another one was cut off."""

    def __init__(
        self,
        run: Run,
        rng: np.random.Generator,
        *,
        num_ranks: int = 0,
        waited: float = 0.0,
    ) -> None:
        num_ranks = num_ranks or int(rng.integers(1, min(5, run.case.num_shards) + 1))
        left = Cut(run, rng, num_ranks, waited)
        old, standings = run.case, left.standings
        costs = run.pool._model.costs(left_too=True)
        case = Case(len(standings), num_ranks, old.num_shards, old.num_epochs, old.seed, costs)
        super().__init__(case, run.is_late, run.budget, 0.0, run.cuts_fresh)
        self.standings, self.again = standings, left.again
        self.old_pasts = {} if waited else run.world.pasts
        self.pool = Pool.resumed(self.plan, costs, standings, forks=left.again)
        self.world.disk = left.disk
        for config_id, own in enumerate(standings):
            if own.step:
                source = config_id if own.source is None else own.source
                self.world.truth[config_id] = left.disk[source, own.step]
        self.to_copy = list(left.again)
        self._copy_again()
        for config_id, (member, goal) in enumerate(zip(self.pool.members, left.goals, strict=True)):
            assert member.begin == member.made == standings[config_id].step
            if not member.is_over:
                assert member.goal <= max(goal, member.begin)
                if goal > member.goal:
                    self.pool.set_goal(config_id, goal // case.num_shards)

    def observe(self, made: Made) -> None:
        super().observe(made)
        self._copy_again()

    def _copy_again(self) -> None:
        """Know what the states are of which copies were made just now."""
        made = [fork for fork in self.to_copy if fork not in self.pool._owed._forks]
        self.world.truth |= {fork.config_id: self.world.truth[fork.source] for fork in made}
        for fork in made:
            self.to_copy.remove(fork)
            if fork not in self.pool._forks:
                self.loaded_at[fork.config_id] = fork.step

    def check(self) -> Plan:
        plan = check_end(self)
        assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
        assert sum(hops_per_config(plan)) == len(hops(plan)) <= plan.num_visits
        if plan.num_visits:
            assert predict(plan, 1.0).makespan_s >= 0.0
            assert format_plan(plan)
        assert not self.to_copy
        for config_id, own in enumerate(self.standings):
            route = sorted((v.step, v.shard) for v in plan.visits() if v.config_id == config_id)
            shards = tuple(shard for _, shard in route)
            assert shards[: len(own.promised)] == own.promised
            assert len(shards) == len(own.promised) or not own.is_over
        for key, past in self.world.pasts.items():
            if key in self.old_pasts:
                assert learnt(past) == learnt(self.old_pasts[key])
        return plan


@settings(deadline=None, max_examples=150, phases=NO_SHRINKING)
@given(
    cases(most=7),
    st.lists(st.integers(0, 80), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from((0.0, 0.5)),
)
def test_a_run_that_was_cut_off_goes_on(case, events, is_late, waited):
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
        run = Resumed(run, rng, waited=waited)
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
