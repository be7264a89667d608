"""Vectorised list scheduling against the same in plain Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import Case, cases

from mophpc.schedule.balanced import few_held, remaining_bound
from mophpc.schedule.dispatch import dispatch
from mophpc.schedule.stays import Progress, StayCosts, time_order

Order = list[tuple[int, int]]

pytestmark = pytest.mark.timeout(30)

UNEQUAL = ("far apart", "huge", "tiny")  # no two sums of costs are equal


def started(case: Case, made: int) -> Progress:
    """Return a state in the middle: so many stays were made, each by whoever could start first."""
    progress = Progress.start(case.num_configs, case.num_ranks, case.num_epochs)
    costs = case.stays
    rng = np.random.default_rng(case.seed)
    for _ in range(min(made, progress.num_stays)):
        start = np.maximum(progress.free_s, progress.ready_s[:, None])
        start = np.where(progress.may_be_next(), start, np.inf)
        choice = np.flatnonzero(start.ravel() == start.min())
        config_id, rank = divmod(int(rng.choice(choice)), case.num_ranks)
        time_order([(config_id, rank)], progress, costs)
    return progress


def some_extra(progress: Progress, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, progress.epochs_left + 1)


def limited(progress: Progress, extra: np.ndarray) -> Progress:
    """Return the state with only `extra` epochs after the current ones."""
    return replace(progress.copy(), epochs_left=extra.copy())


def listed(
    progress: Progress, costs: StayCosts, weights: np.ndarray, extra: np.ndarray
) -> tuple[float, Order]:
    """Schedule in plain Python: a rank that is free takes what is there and weighs most."""
    num_configs, num_ranks = costs.stay_s.shape
    state = limited(progress, extra)
    work = (progress.todo * costs.stay_s).sum(axis=1) + progress.todo.any(axis=1) * costs.eval_s
    work = work + progress.epochs_left * costs.epoch_s
    free, ready = progress.free_s.tolist(), progress.ready_s.tolist()
    order: Order = []
    end_s = 0.0
    now = min(free)
    while state.num_stays:
        acts = True
        while acts:
            acts = False
            for rank in range(num_ranks):
                may = state.may_be_next()[:, rank]
                here = [c for c in range(num_configs) if may[c] and ready[c] <= now]
                if free[rank] > now or not here:
                    continue
                config_id = max(here, key=lambda c: (max(work[c], 0.0) * weights[rank, c], -c))
                more = state.epochs_left[config_id] > 0
                ends_epoch = state.make(config_id, rank)
                took = costs.stay_s[config_id, rank] + ends_epoch * costs.eval_s[config_id]
                free[rank] = end = now + took
                hops = not (ends_epoch and more)
                ready[config_id] = end + (costs.hop_s[config_id] if hops else 0.0)
                work[config_id] -= took
                order.append((config_id, rank))
                end_s = max(end_s, end)
                acts = True
        now = min((at for at in (*free, *ready) if at > now), default=now)
    return end_s, order


def per_line(order: Order, place: int) -> dict[int, list[int]]:
    lines: dict[int, list[int]] = {}
    for stay in order:
        lines.setdefault(stay[place], []).append(stay[1 - place])
    return lines


@settings(deadline=None, max_examples=50)
@given(cases(kinds=UNEQUAL, most=8), st.integers(0, 60), st.booleans())
def test_one_variant_is_the_reference(case, made, weighted):
    costs = case.stays
    progress = started(case, made)
    rng = np.random.default_rng(case.seed)
    extra = some_extra(progress, rng)
    shape = (case.num_ranks, case.num_configs)
    weights = rng.lognormal(size=shape) if weighted else np.ones(shape)
    found = dispatch(progress, costs, weights[None], extra, most_held=case.num_configs)
    end_s, order = listed(progress, costs, weights, extra)
    assert per_line(found.order(0), 1) == per_line(order, 1)
    assert per_line(found.order(0), 0) == per_line(order, 0)
    if order:
        assert found.end_s[0] == pytest.approx(end_s, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(cases(kinds=UNEQUAL, most=8), st.integers(0, 60), st.integers(1, 5))
def test_one_variant_alone_is_one_among_others(case, made, room):
    progress = started(case, made)
    rng = np.random.default_rng(case.seed)
    extra = some_extra(progress, rng)
    weights = rng.lognormal(size=(3, case.num_ranks, case.num_configs))
    most_held = -(-case.num_configs // case.num_ranks) + room
    together = dispatch(progress, case.stays, weights, extra, most_held)
    for variant in range(3):
        alone = dispatch(progress, case.stays, weights[variant : variant + 1], extra, most_held)
        assert alone.order(0) == together.order(variant)
        assert alone.end_s[0] == together.end_s[variant]


def check_order(order: Order, progress: Progress, extra: np.ndarray) -> None:
    """Check that every stay is there once, where the config may be next."""
    state = limited(progress, extra)
    due = Counter(
        {
            (c, r): int(progress.todo[c, r] + extra[c])
            for c, r in np.ndindex(*progress.todo.shape)
            if progress.todo[c, r] + extra[c]
        }
    )
    assert Counter(order) == due
    for config_id, rank in order:
        assert state.may_be_next()[config_id, rank]
        state.make(config_id, rank)
    assert state.num_stays == 0


@settings(deadline=None, max_examples=50)
@given(cases(), st.integers(0, 60), st.integers(1, 9), st.integers(0, 5))
def test_every_variant_makes_every_stay_once(case, made, variants, room):
    costs = case.stays
    progress = started(case, made)
    rng = np.random.default_rng(case.seed)
    extra = some_extra(progress, rng)
    before = progress.copy()
    weights = rng.lognormal(size=(variants, case.num_ranks, case.num_configs))
    most_held = 1 + room
    found = dispatch(progress, costs, weights, extra, most_held)
    bound = remaining_bound(progress, costs, extra) if progress.num_stays else 0.0
    for variant in range(variants):
        order = found.order(variant)
        check_order(order, progress, extra)
        state = limited(progress, extra)
        starts = time_order(order, state, costs)
        for rank in range(case.num_ranks):
            own = [start for start, stay in zip(starts, order, strict=True) if stay[1] == rank]
            assert own == sorted(own)
        if not order:
            continue
        # What it says is what the order takes; waiting for room may make it longer.
        end_s = state.free_s[[rank for _, rank in order]].max()
        assert found.end_s[variant] >= end_s * (1 - 1e-12)
        assert state.free_s.max() >= bound * (1 - 1e-9)
        if most_held >= case.num_configs:
            assert found.end_s[variant] == pytest.approx(end_s, rel=1e-9, abs=1e-300)
    assert (progress.free_s == before.free_s).all()
    assert (progress.todo == before.todo).all()


@settings(deadline=None, max_examples=50)
@given(cases(), st.integers(0, 60), st.integers(0, 5))
def test_room_is_exceeded_only_where_nothing_else_can_go_on(case, made, room):
    progress = started(case, made)
    extra = some_extra(progress, np.random.default_rng(case.seed))
    most = few_held(case.num_configs, case.num_ranks) - 4 + room
    weights = np.ones((1, case.num_ranks, case.num_configs))
    order = dispatch(progress, case.stays, weights, extra, most).order(0)
    state = limited(progress, extra)
    stays_on = progress.epochs_left > extra  # after its last stay here, too
    at = [int(rank) for rank in progress.at]
    for config_id in np.flatnonzero(progress.num_stays_of == 0):
        at[config_id] = -1
    for config_id, rank in order:
        held = Counter(at)
        if at[config_id] != rank and held[rank] >= most:
            for other, place in zip(*np.nonzero(state.may_be_next()), strict=True):
                assert at[other] != place
                assert held[place] >= most
        at[config_id] = rank
        state.make(config_id, rank)
        if state.num_stays_of[config_id] == 0 and not stays_on[config_id]:
            at[config_id] = -1


@pytest.mark.parametrize("most", [few_held(40, 4), 30, 40])
def test_a_fast_rank_does_not_run_ahead(most):
    stay_s = np.tile((1.0, 10.0, 10.0, 10.0), (40, 1))
    costs = StayCosts(stay_s, np.zeros(40), np.zeros(40))
    progress = Progress.start(40, 4, 1)
    weights = np.ones((1, 4, 40))
    order = dispatch(progress, costs, weights, np.zeros(40, np.int64), most).order(0)
    at: dict[int, int] = {}
    left = dict.fromkeys(range(40), 4)
    held = 0
    for config_id, rank in order:
        at[config_id] = rank
        held = max(held, Counter(at.values())[0])
        left[config_id] -= 1
        if left[config_id] == 0:
            del at[config_id]
    assert min(most, 30) <= held <= most


def test_a_rank_does_not_miss_what_another_begins_while_it_waits():
    """At 1 s both ranks are free; config 0 turns on rank 1, and rank 0 waits for it till 2 s."""
    stay_s = np.array([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    costs = StayCosts(stay_s, np.zeros(2), np.zeros(2))
    progress = Progress(
        free_s=np.array([1.0, 1.0, 50.0]),
        ready_s=np.array([1.0, 50.0]),
        at=np.array([1, 2]),
        todo=np.ones((2, 3), np.bool_),
        epochs_left=np.zeros(2, np.int64),
    )
    found = dispatch(progress, costs, np.ones((1, 3, 2)), np.zeros(2, np.int64), 2)
    assert found.order(0) == [(0, 1), (0, 0), (1, 2), (1, 0), (0, 2), (1, 1)]
    assert found.end_s.tolist() == [77.0]


def test_nothing_to_do():
    progress = Progress.start(2, 2, 1)
    progress.todo[:] = False
    costs = StayCosts(np.ones((2, 2)), np.zeros(2), np.zeros(2))
    found = dispatch(progress, costs, np.ones((3, 2, 2)), np.zeros(2, np.int64), 2)
    assert found.end_s.tolist() == [0.0] * 3
    assert found.order(2) == []
