"""Policies: from sizes to a plan. A policy is a pure function; equal input gives an equal plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mophpc.errors import ExperimentError, PlanError
from mophpc.schedule.balanced import plan_epochs, rotation
from mophpc.schedule.costs import Costs
from mophpc.schedule.owners import assign_shards
from mophpc.schedule.plan import Plan, Visit
from mophpc.schedule.simulate import predict
from mophpc.schedule.stays import Progress, StayCosts, time_order, visits_of
from mophpc.schedule.walk import SPARE_ARENAS, arenas_in_use, least_arenas

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mophpc.schedule.stays import Order

MOST_VISITS = 10_000_000
"""A plan of so many takes minutes and some gigabytes to make."""


MOST_RANKS = 8192
"""The idle ones cost planning time too: it grows with the square of the ranks."""


class Policy(Protocol):
    """Orders the visits of every rank; `owners` maps shard to rank.

    A policy that knows costs gives the visits their predicted times too.
    """

    def __call__(
        self,
        *,
        num_configs: int,
        num_ranks: int,
        num_epochs: int,
        owners: tuple[int, ...],
        seed: int,
        costs: Costs,
    ) -> tuple[tuple[Visit, ...], ...]:
        """Return the visits of each rank, in order."""
        ...


def round_robin(
    *,
    num_configs: int,
    num_ranks: int,
    num_epochs: int,
    owners: tuple[int, ...],
    seed: int = 0,  # noqa: ARG001 - every policy gets the seed; this one draws nothing
    costs: Costs | None = None,  # noqa: ARG001 - nor does it look at costs
) -> tuple[tuple[Visit, ...], ...]:
    """Rotate the configs over the ranks: the plan that is optimal when all visits cost the same.

    Let n = max(num_configs, num_ranks) slots, and shift(r) = floor(r * n / num_ranks). In an even
    epoch, config c is on rank r in slot (c + shift(r)) mod n, and visits there all the shards that
    r owns, ascending. An odd epoch is the even one backwards: slot n - 1 - slot, shards descending.

    Why this is right:

    - The shifts of two ranks differ by less than n, so (config, slot) fixes at most one rank and
      (rank, slot) at most one config: a Latin rectangle. With configs >= ranks and equally many
      shards per rank, every rank is busy in every slot, and n slots are the lower bound.
    - A config's visits to neighbouring ranks lie floor(n / ranks) slots or more apart, so a hop
      has at least floor(n / ranks) - 1 slots in which other configs hide it.
    - They also lie at most ceil(n / ranks) slots apart, so the configs on their way from a rank to
      the next, or kept on a rank at the turn of an epoch, are never more than that many.
    - Walking backwards, a config starts an epoch on the rank where it ended the last one; an epoch
      costs num_ranks - 1 hops per config, and the turn costs none.
    """
    slots = max(num_configs, num_ranks)
    shift = np.arange(num_ranks) * slots // num_ranks
    shards = [[s for s, owner in enumerate(owners) if owner == rank] for rank in range(num_ranks)]
    counts = np.array([len(own) for own in shards])
    slot = (np.arange(num_configs)[:, None] + shift) % slots  # (configs, ranks)
    order = np.argsort(slot, axis=1)  # (configs, ranks): the ranks as the config meets them
    visited = np.cumsum(counts[order], axis=1) - counts[order]
    step = np.empty_like(visited)  # (configs, ranks): the config's first step of an epoch there
    np.put_along_axis(step, order, visited, axis=1)

    num_shards = len(owners)
    by_rank = []
    for rank in range(num_ranks):
        configs = np.argsort(slot[:, rank], kind="stable").tolist()
        steps = step[:, rank].tolist()
        forth = [
            (config, shard, steps[config] + place)
            for config in configs
            for place, shard in enumerate(shards[rank])
        ]
        back = [(config, shard, num_shards - 1 - place) for config, shard, place in reversed(forth)]
        by_rank.append(
            tuple(
                Visit(config, epoch, shard, rank, epoch * num_shards + place)
                for epoch in range(num_epochs)
                for config, shard, place in (back if epoch % 2 else forth)
            )
        )
    return tuple(by_rank)


def balanced(
    *,
    num_configs: int,  # noqa: ARG001 - as many as there are costs
    num_ranks: int,
    num_epochs: int,
    owners: tuple[int, ...],
    seed: int,
    costs: Costs,
) -> tuple[tuple[Visit, ...], ...]:
    """Schedule by longest remaining work and a seeded search; see `mophpc.schedule.balanced`."""
    order, starts = plan_epochs(StayCosts.of(costs, owners, num_ranks), num_epochs, seed)
    return _by_rank(order, starts, owners, num_ranks, costs)


def random(
    *,
    num_configs: int,
    num_ranks: int,
    num_epochs: int,
    owners: tuple[int, ...],
    seed: int,
    costs: Costs,
) -> tuple[tuple[Visit, ...], ...]:
    """Rotate the configs, shuffled once, over the ranks: for comparison."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
    order = rotation(generator.permutation(num_configs), num_ranks, num_epochs)
    progress = Progress.start(num_configs, num_ranks, num_epochs)
    starts = time_order(order, progress, StayCosts.of(costs, owners, num_ranks))
    return _by_rank(order, starts, owners, num_ranks, costs)


def _by_rank(
    order: Order,
    starts_s: Sequence[float],
    owners: tuple[int, ...],
    num_ranks: int,
    costs: Costs,
) -> tuple[tuple[Visit, ...], ...]:
    shards = [[s for s, owner in enumerate(owners) if owner == rank] for rank in range(num_ranks)]
    lists: list[list[Visit]] = [[] for _ in range(num_ranks)]
    for visit in visits_of(order, starts_s, costs.visit_s, shards):
        lists[visit.rank].append(visit)
    return tuple(map(tuple, lists))


POLICIES: Mapping[str, Policy] = {
    "balanced": balanced,
    "random": random,
    "round-robin": round_robin,
}


def _check_sizes(
    policy: str, num_configs: int, num_shards: int, num_ranks: int, num_epochs: int
) -> None:
    if policy not in POLICIES:
        allowed = ", ".join(sorted(POLICIES))
        raise ExperimentError(f"schedule policy {policy!r} is not known; allowed: {allowed}")
    sizes = {"configs": num_configs, "shards": num_shards, "ranks": num_ranks, "epochs": num_epochs}
    for name, size in sizes.items():
        if size < 1:
            raise ExperimentError(f"a plan needs at least 1 of {name}, got {size}")
    num_visits = num_configs * num_shards * num_epochs
    if num_visits > MOST_VISITS:
        raise ExperimentError(
            f"{num_configs} configs x {num_shards} shards x {num_epochs} epochs are {num_visits} "
            f"visits; at most {MOST_VISITS} can be planned"
        )
    if num_ranks > MOST_RANKS:
        raise ExperimentError(
            f"{num_ranks} ranks are too many to plan for; at most {MOST_RANKS} are allowed"
        )


def make_plan(
    policy: str,
    *,
    num_configs: int,
    num_shards: int,
    num_ranks: int,
    num_epochs: int,
    seed: int = 0,
    costs: Costs | None = None,
    owners: tuple[int, ...] | None = None,
) -> Plan:
    """Make a plan by a named policy, with as many arenas a rank as it needs to end.

    Without costs every visit is taken to cost a second, and the rest nothing; without owners the
    ranks get blocks of shards.

    Raises:
        ExperimentError: the policy is not known, or there is nothing to plan.
        LaunchError: there are more ranks than shards.
        PlanError: the policy made a plan that cannot end (a bug in the policy).
    """
    _check_sizes(policy, num_configs, num_shards, num_ranks, num_epochs)
    owners = owners or assign_shards(num_shards, num_ranks)
    costs = costs or Costs.of(1.0, num_configs, num_shards)
    plan = Plan(
        num_configs=num_configs,
        num_ranks=num_ranks,
        num_shards=num_shards,
        num_epochs=num_epochs,
        owners=owners,
        visits_by_rank=POLICIES[policy](
            num_configs=num_configs,
            num_ranks=num_ranks,
            num_epochs=num_epochs,
            owners=owners,
            seed=seed,
            costs=costs,
        ),
        policy=policy,
        max_arenas=-(-num_configs // num_ranks) + SPARE_ARENAS,
    )
    arenas = least_arenas(plan)
    if arenas is None:
        raise PlanError(f"policy {policy!r} made a plan that cannot end with any number of arenas")
    plan = replace(plan, max_arenas=arenas)
    plan = predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s).plan
    if policy != "balanced":
        return plan  # a rotation holds few states, and waits for none
    return replace(plan, max_arenas=max(arenas, arenas_in_use(plan)))
