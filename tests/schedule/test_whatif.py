from __future__ import annotations

import numpy as np
import pytest

from mophpc.schedule.costs import Costs
from mophpc.schedule.whatif import SCHEDULES, what_if

OWNERS = (0, 0, 1, 2)


def some_costs() -> Costs:
    """Return costs of visits so short that a search may take no more than a few passes."""
    generator = np.random.default_rng(3)
    visit_s = generator.choice([0.3, 0.6, 2.4], (9, 1))
    return Costs.of(visit_s, 9, 4, hop_s=0.03, eval_s=0.06)


def test_with_exact_costs_renewal_does_no_harm():
    table = {
        row.schedule: row
        for row in what_if(some_costs(), OWNERS, 3, 3, noise=0, jitter=0, seeds=[0])
    }
    assert tuple(table) == SCHEDULES
    assert all(row.mean == row.worst >= 1.0 - 1e-9 for row in table.values())
    once, renewed = table["balanced, planned once"], table["balanced, renewed"]
    assert once.mean < 1.05
    assert renewed.mean <= 1.001 * once.mean
    assert renewed.renewals > 0
    assert {row.renewals for row in table.values() if row is not renewed} == {0.0}


def test_wrong_costs_cost_time_and_renewal_wins_it_back():
    table = {
        row.schedule: row
        for row in what_if(some_costs(), OWNERS, 3, 4, noise=0.4, jitter=0.03, seeds=range(6))
    }
    renewed = table["balanced, renewed"]
    assert renewed.mean < table["balanced, planned once"].mean
    assert renewed.mean < table["lock-step rotation"].mean
    assert renewed.mean < 1.05
    assert all(1.0 - 1e-9 <= row.mean <= row.worst for row in table.values())


def test_equal_input_gives_equal_rows():
    costs = some_costs()
    first, second = (
        what_if(costs, OWNERS, 3, 2, noise=0.2, jitter=0.03, seeds=[4, 5]) for _ in range(2)
    )
    assert first == second
    assert first != what_if(costs, OWNERS, 3, 2, noise=0.2, jitter=0.03, seeds=[4, 6])


def test_costs_of_nothing():
    rows = what_if(Costs.of(0.0, 3, 4), OWNERS, 3, 2, noise=0.2, jitter=0.1, seeds=[0])
    assert {row.mean for row in rows} == {1.0}


def test_no_seeds():
    with pytest.raises(ValueError, match="no seeds"):
        what_if(some_costs(), OWNERS, 3, 2, noise=0.2, jitter=0.1, seeds=[])
