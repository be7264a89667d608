"""Other schedulers: no visit is lost, none beats the bound, and small cases by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mophpc.schedule.costs import Costs
from mophpc.schedule.execute import Reality
from mophpc.schedule.rivals import dynamic, lock_step


def exactly(costs: Costs, num_epochs: int) -> Reality:
    return Reality.draw(costs, num_epochs, noise=0.0, jitter=0.0, seed=0)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Costs, Reality, tuple[int, ...], int]:
    num_configs, num_ranks = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    extra = draw(st.lists(st.integers(0, num_ranks - 1), max_size=4))
    owners = tuple(sorted([*range(num_ranks), *extra]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    visit_s = generator.lognormal(0.0, 1.0, (num_configs, len(owners)))
    visit_s *= generator.random(visit_s.shape) < draw(st.sampled_from((0.5, 1.0)))
    hop_s, eval_s = draw(st.sampled_from(((0.0, 0.0), (0.3, 0.2))))
    costs = Costs.of(visit_s, num_configs, len(owners), hop_s=hop_s, eval_s=eval_s)
    epochs, noise = draw(st.integers(1, 3)), draw(st.sampled_from((0.0, 0.5)))
    reality = Reality.draw(costs, epochs, noise=noise, jitter=0.1, seed=draw(st.integers(0, 99)))
    return costs, reality, owners, num_ranks


@settings(deadline=None)
@given(cases(), st.sampled_from(("longest", "random")), st.integers(0, 9))
def test_none_beats_the_bound_and_none_takes_longer_than_one_rank(case, rule, seed):
    costs, reality, owners, num_ranks = case
    bound_s = reality.bound(owners, num_ranks)
    evals_s = len(reality.visit_s) * reality.eval_s.sum()
    hops_s = len(reality.visit_s) * num_ranks * reality.hop_s.sum()
    one_by_one_s = reality.visit_s.sum() + evals_s + hops_s
    for makespan_s in (
        lock_step(reality, owners, num_ranks),
        dynamic(reality, owners, num_ranks, costs, rule, seed),
    ):
        assert bound_s * (1 - 1e-9) <= makespan_s <= one_by_one_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("configs", "ranks", "epochs"), [(4, 4, 3), (8, 4, 2), (7, 3, 1), (2, 5, 2)]
)
def test_equal_costs_rotate_without_a_gap(configs, ranks, epochs):
    reality = exactly(Costs.of(2.0, configs, ranks), epochs)
    owners = tuple(range(ranks))
    assert lock_step(reality, owners, ranks) == 2.0 * max(configs, ranks) * epochs


def test_lock_step_by_hand():
    """Slots of (rank 0, rank 1): (c0, c2), (c1, c0), (c2, c1), the longest of each counts."""
    costs = Costs.of([[1.0, 2.0], [3.0, 4.0], [6.0, 5.0]], 3, 2, eval_s=0.5)
    forth = 5.0 + 3.0 + 6.5  # rank 1 begins with c2, whose epoch ends on rank 0
    assert lock_step(exactly(costs, 1), (0, 1), 2) == forth
    back = max(6.0, 4.0) + max(3.5, 2.0) + max(1.5, 5.5)
    assert lock_step(exactly(costs, 2), (0, 1), 2) == forth + back


def test_lock_step_waits_for_hops():
    costs = Costs.of(1.0, 2, 2, hop_s=0.25)
    assert lock_step(exactly(costs, 2), (0, 1), 2) == 4.5


def test_dynamic_takes_what_it_believes_to_be_longest():
    """Rank 0 takes c1 first; whoever believes the opposite waits for it at the end."""
    visit_s = [[1.0], [1.0], [4.0]]
    reality = exactly(Costs.of(visit_s, 3, 2), 1)
    right, wrong = Costs.of(visit_s, 3, 2), Costs.of([[4.0], [4.0], [1.0]], 3, 2)
    assert dynamic(reality, (0, 1), 2, right, "longest", 0) == 8.0
    assert dynamic(reality, (0, 1), 2, wrong, "longest", 0) == 10.0


def test_dynamic_has_no_barrier_between_epochs():
    """One config is on both ranks in turn; its hop counts inside an epoch and not at a stay."""
    reality = exactly(Costs.of(1.0, 1, 2, hop_s=0.5, eval_s=0.25), 2)
    believed = Costs.of(1.0, 1, 2)
    makespan_s = dynamic(reality, (0, 1), 2, believed, "longest", 0)
    assert makespan_s == 2.5 + 0.25 + 2.5 + 0.25


def test_random_choices_follow_the_seed():
    costs = Costs.of(np.random.default_rng(0).random((9, 4)), 9, 4)
    reality = exactly(costs, 2)
    found = [dynamic(reality, (0, 1, 2, 3), 4, costs, "random", seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
