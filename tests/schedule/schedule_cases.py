"""Sizes and costs of every odd kind, for the property tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st

from mophpc.schedule import Plan, assign_shards, balanced, make_plan
from mophpc.schedule.costs import Costs
from mophpc.schedule.stays import StayCosts

KINDS = ("equal", "skewed", "by config", "zero", "some zero", "huge", "tiny", "far apart")
SKEWED = (1.0, 1.0, 1.1, 1.3, 2.0, 2.2, 3.5, 5.0, 9.0)

QUICK_S = 0.004
"""Most seconds of a search in these tests, by its own estimate."""


@dataclass(frozen=True)
class Case:
    """One experiment to plan, and what it costs."""

    num_configs: int
    num_ranks: int
    num_shards: int
    num_epochs: int
    seed: int
    costs: Costs

    @property
    def owners(self) -> tuple[int, ...]:
        return assign_shards(self.num_shards, self.num_ranks)

    @property
    def sizes(self) -> dict[str, int]:
        names = ("num_configs", "num_ranks", "num_shards", "num_epochs", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def stays(self) -> StayCosts:
        return StayCosts.of(self.costs, self.owners, self.num_ranks)

    def plan(self, policy: str = "balanced", **more: Any) -> Plan:
        with mock.patch.object(balanced, "MOST_PLANNING_S", QUICK_S):
            return make_plan(policy, **self.sizes, costs=self.costs, **more)


def some_costs(
    kind: str, num_configs: int, num_shards: int, seed: int, *, hop: float = 0.0, ev: float = 0.0
) -> Costs:
    """Draw costs of a kind; `hop` and `ev`: length of hops and evaluations, in mean visits."""
    rng = np.random.default_rng(seed)
    shape = (num_configs, num_shards)
    spread = rng.lognormal(sigma=0.5, size=shape)
    visit_s = {
        "equal": np.ones(shape),
        "skewed": rng.choice(SKEWED, size=shape),
        "by config": np.broadcast_to(rng.choice(SKEWED, size=(num_configs, 1)), shape) * 1.0,
        "zero": np.zeros(shape),
        "some zero": spread * (rng.random(shape) < 0.5),
        "huge": 1e9 * rng.random(shape),
        "tiny": 1e-7 * spread,
        "far apart": np.exp(rng.uniform(-15, 15, size=shape)),
    }[kind]
    mean = float(visit_s.mean()) or 1.0
    each = rng.uniform(0.5, 1.5, size=(2, num_configs)) * mean
    return Costs.of(visit_s, *shape, hop_s=hop * each[0], eval_s=ev * each[1])


@st.composite
def cases(
    draw: st.DrawFn, *, kinds: tuple[str, ...] = KINDS, most: int = 12, most_epochs: int = 4
) -> Case:
    num_ranks = draw(st.integers(1, 6))
    num_configs = draw(st.integers(1, most))
    num_shards = num_ranks * draw(st.integers(1, 3)) + draw(st.sampled_from((0, 0, 1, 2)))
    seed = draw(st.integers(0, 2**32 - 1))
    costs = some_costs(
        draw(st.sampled_from(kinds)),
        num_configs,
        num_shards,
        seed,
        hop=draw(st.sampled_from((0.0, 0.2, 30.0))),
        ev=draw(st.sampled_from((0.0, 0.3, 5.0))),
    )
    epochs = draw(st.integers(1, most_epochs))
    return Case(num_configs, num_ranks, num_shards, epochs, seed, costs)
