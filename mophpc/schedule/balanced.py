"""The balanced policy: list scheduling by longest remaining work, and a seeded search around it.

An epoch is an open shop: every (config, rank) stay once, in any order, which is NP-hard. List
scheduling alone comes within some percent of the lower bound where configs are many; the search
finds the orders that close the gap where they are few. It is bounded by an estimate of its own
seconds, not by a clock, so that equal input gives an equal plan.

Epochs after the ones that were searched are mirrored: the epoch before, walked backwards. Then each
config begins an epoch on the rank where it ended the last one, and an epoch takes as long as its
mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from mophpc.schedule.dispatch import dispatch
from mophpc.schedule.matching import match_rounds
from mophpc.schedule.stays import Progress, time_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mophpc.schedule.costs import FloatArray
    from mophpc.schedule.stays import Order, StayCosts

    IntArray = NDArray[np.int64]

GOOD_ENOUGH = 1.0005
"""A plan within this factor of the lower bound is not improved."""

ROOM = 4
"""A rank holds at most its share of the configs, twice, and so many states more, ..."""

WORTH_ROOM = 1.005
"""... unless the plan becomes longer by this factor: where ranks differ much in speed, configs have
to wait for the slow ones somewhere."""

MOST_PLANNING_S = 0.5
PLANNING_SHARE = 0.003
"""Seconds and share of the run that the search may take, by its own estimate."""

# Measured on one core of 2.5 GHz: seconds of a move of all variants, per move and per array item.
_MOVE_S, _ITEM_S = 45e-6, 12e-9
_ALONE_S = 15e-6  # of a single variant
_VARIANTS, _GENERATIONS, _MATCHINGS = 64, 24, 4
_MATCHED_CONFIGS_PER_RANK = 2
_MOST_MATCHED = 4096  # (config, rank) pairs


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a search may do; nothing where even one pass takes too long."""

    variants: int
    generations: int
    matchings: int
    seconds: float = field(default=0.0, compare=False)
    """What it takes, by the estimate."""

    @property
    def is_nothing(self) -> bool:
        """Whether there is no time for a single pass."""
        return self.variants == 0


ONE_PASS = Effort(1, 1, 0)


def effort(num_stays: int, num_configs: int, num_ranks: int, allowed_s: float) -> Effort:
    """Return what a search can do in so many seconds, by the estimate; nothing below one pass.

    Args:
        num_stays: stays that a pass has to schedule.
        num_configs: configs.
        num_ranks: ranks.
        allowed_s: seconds.
    """

    def pass_s(variants: int) -> float:
        return _pass_s(num_stays, num_configs, num_ranks, variants)

    if pass_s(1) > allowed_s:
        return Effort(0, 0, 0)
    variants = _VARIANTS
    while variants > 1 and pass_s(variants) > allowed_s:
        variants //= 2
    generations = max(1, min(_GENERATIONS, int(allowed_s / pass_s(variants))))
    few = num_configs <= _MATCHED_CONFIGS_PER_RANK * num_ranks
    small = num_configs * num_ranks <= _MOST_MATCHED
    matchings = _MATCHINGS if few and small and variants > 1 else 0
    return Effort(variants, generations, matchings, generations * pass_s(variants))


def _pass_s(num_stays: int, num_configs: int, num_ranks: int, variants: int) -> float:
    """Return the seconds in which so many variants are scheduled, by the estimate."""
    moves = 1.5 * num_stays + 2 * num_ranks  # some ranks wait
    move_s = _ALONE_S if variants == 1 else _MOVE_S
    return moves * (move_s + variants * num_configs * _ITEM_S)


def first_effort(costs: StayCosts, num_epochs: int) -> Effort:
    """Return how much to search before a run: a small share of what the run will take at least.

    One pass may take twice that share: it is worth much more than what further ones add.
    """
    num_configs, num_ranks = costs.stay_s.shape
    share_s = PLANNING_SHARE * num_epochs * epoch_bound(costs)
    stays = num_configs * num_ranks
    found = effort(stays, num_configs, num_ranks, min(MOST_PLANNING_S, share_s))
    if found.is_nothing and not effort(stays, num_configs, num_ranks, 2 * share_s).is_nothing:
        return ONE_PASS
    return found


def renewal_effort(progress: Progress, allowed_s: float) -> Effort:
    """Return how much to search in the middle of a run: one pass at least."""
    num_configs, num_ranks = progress.todo.shape
    stays = int(progress.todo.sum()) + num_configs * num_ranks  # this epoch and the next
    found = effort(stays, num_configs, num_ranks, min(MOST_PLANNING_S, allowed_s))
    every = int(progress.todo.sum()) + num_ranks * int(progress.epochs_left.sum())
    pass_s = _pass_s(every, num_configs, num_ranks, 1)
    if found.is_nothing:
        found = ONE_PASS
    return replace(found, seconds=pass_s + found.seconds)


def mean_stay(costs: StayCosts) -> float:
    """Return the mean seconds of the stays that cost anything."""
    stays = costs.stay_s[costs.stay_s > 0.0]
    return float(stays.mean()) if stays.size else 0.0


def epoch_bound(costs: StayCosts) -> float:
    """Return the seconds that no epoch can beat, hops aside."""
    ranks = costs.stay_s.sum(axis=0)
    mean = (ranks.sum() + costs.eval_s.sum()) / max(1, len(ranks))
    return float(max(costs.epoch_s.max(initial=0.0), ranks.max(initial=0.0), mean))


def remaining_bound(progress: Progress, costs: StayCosts, extra: IntArray | None = None) -> float:
    """Return when the last stay can end at the earliest, hops aside.

    Args:
        progress: where everything stands.
        costs: seconds of the stays.
        extra: shape (configs,): epochs after each config's current one; all by default.
    """
    extra = progress.epochs_left if extra is None else extra
    busy = progress.todo.any(axis=1)
    due = progress.todo + extra[:, None]
    by_config = (due * costs.stay_s).sum(axis=1) + (busy + extra) * costs.eval_s
    by_rank = (due * costs.stay_s).sum(axis=0)
    mean = (progress.free_s.sum() + by_config.sum()) / len(by_rank)
    configs = np.where(busy, progress.ready_s + by_config, 0.0)
    ranks = np.where(by_rank > 0.0, progress.free_s + by_rank, 0.0)
    return float(max(mean, configs.max(initial=0.0), ranks.max(initial=0.0)))


def plan_order(
    progress: Progress, costs: StayCosts, limit: Effort, seed: tuple[int, ...], most_held: int
) -> Order:
    """Return an order of all stays that are left; `progress` is not changed.

    From the very beginning one epoch is searched and the others mirror it. From the middle of a
    run list scheduling of all that is left is hard to beat; the current epochs and the next are
    searched where there is time for it.

    Args:
        progress: where everything stands.
        costs: seconds of the stays.
        limit: how much to search.
        seed: of the search.
        most_held: states that a rank may hold.
    """
    extra = np.zeros_like(progress.epochs_left)
    if not (progress.at < 0).all():
        plain = np.ones((1, costs.stay_s.shape[1], costs.stay_s.shape[0]))
        order = dispatch(progress, costs, plain, progress.epochs_left, most_held).order(0)
        end_s = _end(order, progress, costs)
        if limit.variants == 1 or end_s <= GOOD_ENOUGH * remaining_bound(progress, costs):
            return order
        extra = _to_next_epoch(progress)
        searched = _search(progress, costs, extra, limit, seed, most_held)
        return order if end_s <= _end(searched, progress, costs) else searched
    return _search(progress, costs, extra, limit, seed, most_held)


def _to_next_epoch(progress: Progress) -> IntArray:
    """Return how many epochs after its current one each config needs to be in step with the others.

    All reach the end of the epoch after that of the config that is furthest behind.
    """
    left = progress.epochs_left
    busy = progress.todo.any(axis=1)
    behind = int(left[busy].max(initial=0))
    target = max(0, behind - 1)
    return np.where(busy, np.maximum(0, left - target), 0)


def _search(
    progress: Progress,
    costs: StayCosts,
    extra: IntArray,
    limit: Effort,
    seed: tuple[int, ...],
    most_held: int,
) -> Order:
    """Return the best order found for the current epochs and `extra` ones, and their mirror."""
    goal_s = remaining_bound(progress, costs, extra) * GOOD_ENOUGH
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed))))
    num_configs, num_ranks = costs.stay_s.shape
    best_s, best = np.inf, np.ones((num_ranks, num_configs))
    order: Order = []
    for _ in range(limit.generations):
        weights = best * _perturbations(generator, limit.variants, num_ranks, num_configs)
        weights[0] = best
        found = dispatch(progress, costs, weights, extra, most_held)
        variant = int(found.end_s.argmin())
        if found.end_s[variant] < best_s:
            best_s, best = float(found.end_s[variant]), weights[variant]
            order = found.order(variant)
        if best_s <= goal_s:
            return order + mirrored(order, progress, extra)
    for haste, noise in _matching_variants(generator, costs, limit.matchings):
        end_s, matched = match_rounds(progress, costs, extra, haste=haste, noise_s=noise)
        if end_s < best_s:
            best_s, order = end_s, matched
    return order + mirrored(order, progress, extra)


def _perturbations(
    generator: np.random.Generator, variants: int, num_ranks: int, num_configs: int
) -> FloatArray:
    """Return factors around 1, shape (variants, ranks, configs).

    Some variants change a config's weight on all ranks, some on single ranks, some change a few
    weights and some all, each at a scale of its own.
    """
    if variants == 1:
        return np.ones((1, num_ranks, num_configs))
    shape = (variants, num_ranks, num_configs)
    each, single = (variants, 1, 1), (variants, 1, num_configs)
    scale = 0.3 * np.exp(generator.standard_normal(each) - 0.5)
    change = generator.standard_normal(single) * (generator.random(each) < 0.7)
    change = change + generator.standard_normal(shape) * (generator.random(each) < 0.6)
    change *= generator.random(shape) < np.exp(-2.0 * generator.random(each))
    return np.asarray(np.exp(scale * change), np.float64)


def _matching_variants(
    generator: np.random.Generator, costs: StayCosts, count: int
) -> Iterator[tuple[float, FloatArray]]:
    scale = 0.05 * float(costs.stay_s.mean()) if costs.stay_s.size else 0.0
    for number in range(count):
        noise = np.zeros(costs.stay_s.shape)
        if number >= 2:
            noise = scale * generator.standard_normal(costs.stay_s.shape)
        yield (1.0, 0.3)[number % 2], noise


def mirrored(order: Order, progress: Progress, extra: IntArray) -> Order:
    """Return the epochs that come after an order: its last epoch backwards, and that backwards, ...

    Args:
        order: stays of the current epochs of `progress` and `extra` ones.
        progress: the state before the order.
        extra: shape (configs,): epochs in the order after each config's current one.
    """
    num_ranks = progress.todo.shape[1]
    left = (progress.epochs_left - extra).tolist()
    most = max(left, default=0)
    if most == 0:
        return []
    counts = [0] * len(left)
    last: Order = []
    for config_id, rank in reversed(order):
        if counts[config_id] < num_ranks:
            counts[config_id] += 1
            last.append((config_id, rank))
    # A config whose last epoch had begun before the order: what came before is not known here, and
    # any order of those ranks will do.
    for config_id, rank in _unknown(last, counts, num_ranks, left):
        last.append((config_id, rank))
    result: Order = []
    for epoch in range(most):
        result += [stay for stay in last if left[stay[0]] > epoch]
        last.reverse()
    return result


def _unknown(
    last: Order, counts: list[int], num_ranks: int, left: list[int]
) -> list[tuple[int, int]]:
    missing = []
    for config_id, count in enumerate(counts):
        if left[config_id] > 0 and count < num_ranks:
            met = {rank for other, rank in last if other == config_id}
            missing += [(config_id, rank) for rank in range(num_ranks) if rank not in met]
    return missing


def plan_epochs(
    costs: StayCosts, num_epochs: int, seed: int, limit: Effort | None = None
) -> tuple[Order, list[float]]:
    """Return an order of a whole run's stays, and when each starts.

    Args:
        costs: seconds of the stays.
        num_epochs: epochs.
        seed: of the search.
        limit: how much to search; by default what the run's length allows.
    """
    num_configs, num_ranks = costs.stay_s.shape
    progress = Progress.start(num_configs, num_ranks, num_epochs)
    allowed = limit or first_effort(costs, num_epochs)
    if allowed.is_nothing:
        order = rotation(np.argsort(-costs.epoch_s, kind="stable"), num_ranks, num_epochs)
    else:
        goal_s = num_epochs * epoch_bound(costs) * WORTH_ROOM
        order = plan_order(progress, costs, allowed, (seed,), few_held(num_configs, num_ranks))
        few_s = _end(order, progress, costs)
        if few_s > goal_s:
            roomy = plan_order(progress, costs, allowed, (seed,), num_configs)
            if few_s > WORTH_ROOM * _end(roomy, progress, costs):
                order = roomy
    return order, time_order(order, progress, costs)


def few_held(num_configs: int, num_ranks: int) -> int:
    """Return how many states a rank may hold where that costs no time."""
    return 2 * -(-num_configs // num_ranks) + ROOM


def _end(order: Order, progress: Progress, costs: StayCosts) -> float:
    state = progress.copy()
    time_order(order, state, costs)
    return float(state.free_s.max())


def rotation(configs: IntArray, num_ranks: int, num_epochs: int) -> Order:
    """Return the rotation of `configs`, in that order, over the ranks; see `round_robin`."""
    num_configs = len(configs)
    slots = max(num_configs, num_ranks)
    epoch: Order = []
    for slot in range(slots):
        for rank in range(num_ranks):
            place = (slot - rank * slots // num_ranks) % slots
            if place < num_configs:
                epoch.append((int(configs[place]), rank))
    order: Order = []
    for _ in range(num_epochs):
        order += epoch
        epoch = epoch[::-1]
    return order
