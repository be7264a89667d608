"""What wrong costs do to a schedule, with and without renewal, beside other ways to schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mophpc.schedule.balanced import mean_stay
from mophpc.schedule.execute import Reality, execute
from mophpc.schedule.policies import make_plan
from mophpc.schedule.rivals import dynamic, lock_step
from mophpc.schedule.stays import StayCosts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mophpc.schedule.costs import Costs
    from mophpc.schedule.plan import Plan

SCHEDULES = (
    "lock-step rotation",
    "randomized greedy",
    "dynamic longest remaining first",
    "balanced, planned once",
    "balanced, renewed",
)

DELAY_SHARE = 0.05
"""A renewal reaches the ranks after this share of a mean stay."""


@dataclass(frozen=True, slots=True)
class Row:
    """How one schedule did over all realities: makespan / lower bound of the reality."""

    schedule: str
    mean: float
    worst: float
    renewals: float
    """Mean number of renewals in a run."""
    makespan: float
    """Mean makespan, in seconds or what these stand for."""


def what_if(
    costs: Costs,
    owners: tuple[int, ...],
    num_ranks: int,
    num_epochs: int,
    *,
    noise: float,
    jitter: float,
    seeds: Sequence[int],
    delay_s: float | None = None,
) -> tuple[Row, ...]:
    """Say how schedules that are made from `costs` do in realities that differ from them.

    Args:
        costs: what is believed.
        owners: the rank that owns each shard.
        num_ranks: ranks.
        num_epochs: epochs.
        noise: standard deviation of the logarithm of each config's factor.
        jitter: the same, of each single visit's factor.
        seeds: a reality is drawn for each.
        delay_s: from the beginning of a renewal to when the ranks have it; by default a small
            share of a mean stay.

    Returns:
        A row for each of `SCHEDULES`, in that order.

    Raises:
        ExperimentError: there is nothing to plan.
        ValueError: there are no seeds.
    """
    if not seeds:
        raise ValueError("no seeds are given; at least one reality is needed")
    plan = make_plan(
        "balanced",
        num_configs=len(costs.visit_s),
        num_shards=len(owners),
        num_ranks=num_ranks,
        num_epochs=num_epochs,
        costs=costs,
        owners=owners,
    )
    realities = (
        Reality.draw(costs, num_epochs, noise=noise, jitter=jitter, seed=seed) for seed in seeds
    )
    return rows(
        [
            compare(plan, costs, reality, seed=seed, delay_s=delay_s)
            for reality, seed in zip(realities, seeds, strict=True)
        ]
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the schedules did in one reality."""

    ratios: tuple[float, ...]
    """Makespan / lower bound of each of `SCHEDULES`, without the last where nothing is renewed."""
    renewals: int
    makespans_s: tuple[float, ...]
    """As `ratios`."""


def compare(
    plan: Plan,
    believed: Costs,
    reality: Reality,
    *,
    seed: int,
    delay_s: float | None = None,
    renews: bool = True,
) -> Outcome:
    """Let all schedules run in one reality.

    Args:
        plan: the balanced plan, made from what is believed.
        believed: costs, as the schedules know them.
        reality: what takes how long.
        seed: of random choices and of renewals.
        delay_s: from the beginning of a renewal to when the ranks have it; by default a small
            share of a mean stay.
        renews: whether the plan with renewals is among them; it takes far longer than the others.
    """
    owners, num_ranks = plan.owners, plan.num_ranks
    if delay_s is None:
        delay_s = DELAY_SHARE * mean_stay(StayCosts.of(believed, owners, num_ranks))
    once = execute(plan, believed, reality, renew=False)
    makespans_s: tuple[float, ...] = (
        lock_step(reality, owners, num_ranks),
        dynamic(reality, owners, num_ranks, believed, "random", seed),
        dynamic(reality, owners, num_ranks, believed, "longest", seed),
        once.makespan_s,
    )
    renewals = 0
    if renews:
        renewed = execute(plan, believed, reality, renew=True, seed=seed, delay_s=delay_s)
        makespans_s, renewals = (*makespans_s, renewed.makespan_s), renewed.renewals
    bound_s = reality.bound(owners, num_ranks)
    ratios = tuple(span / bound_s if bound_s > 0.0 else 1.0 for span in makespans_s)
    return Outcome(ratios, renewals, makespans_s)


def rows(outcomes: Sequence[Outcome]) -> tuple[Row, ...]:
    """Summarize what schedules did in several realities, a row for each that was simulated."""
    ratios = np.array([outcome.ratios for outcome in outcomes])
    mean, worst = ratios.mean(axis=0).tolist(), ratios.max(axis=0).tolist()
    spans = np.mean([outcome.makespans_s for outcome in outcomes], axis=0).tolist()
    renewals = [0.0] * (len(SCHEDULES) - 1)
    renewals.append(float(np.mean([outcome.renewals for outcome in outcomes])))
    return tuple(map(Row, SCHEDULES, mean, worst, renewals, spans))
