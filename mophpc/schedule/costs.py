"""What visits, hops and evaluations cost: given, or estimated from what was measured so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mophpc.errors import CostsError
from mophpc.schedule.owners import balance_shards

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import ArrayLike, NDArray

    from mophpc.costs_file import ConfigCosts, CostsFile

    FloatArray: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """Seconds that a plan's parts take."""

    visit_s: FloatArray
    """Shape (configs, shards): training, on the rank that owns the shard."""
    hop_s: FloatArray
    """Shape (configs,): from the end of a visit to where the next one can start."""
    eval_s: FloatArray
    """Shape (configs,): evaluation, once an epoch, on the rank where the epoch ends."""

    @classmethod
    def of(
        cls,
        visit_s: ArrayLike,
        num_configs: int,
        num_shards: int,
        *,
        hop_s: ArrayLike = 0.0,
        eval_s: ArrayLike = 0.0,
    ) -> Costs:
        """Return costs from anything that broadcasts to their shapes.

        Raises:
            ValueError: a shape is wrong, or a number is negative or not finite.
        """
        return cls(
            seconds("visit_s", visit_s, (num_configs, num_shards)),
            seconds("hop_s", hop_s, (num_configs,)),
            seconds("eval_s", eval_s, (num_configs,)),
        )

    def stay_s(self, owners: Sequence[int], num_ranks: int) -> FloatArray:
        """Return what configs take on a rank per epoch, all its shards: (configs, ranks)."""
        stays = np.zeros((len(self.visit_s), num_ranks))
        for shard, rank in enumerate(owners):
            stays[:, rank] += self.visit_s[:, shard]
        return stays

    @property
    def are_equal(self) -> bool:
        """Whether every visit costs the same and nothing else costs anything."""
        same = self.visit_s.size == 0 or bool((self.visit_s == self.visit_s.flat[0]).all())
        return same and not self.hop_s.any() and not self.eval_s.any()


def seconds(name: str, values: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """Return `values` broadcast to a shape.

    Raises:
        ValueError: they do not fit, or one is negative or not finite.
    """
    array = np.asarray(values, np.float64)
    try:
        full = np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}") from None
    if not (np.isfinite(full) & (full >= 0.0)).all():
        raise ValueError(f"{name} holds a number that is negative or not finite")
    return full


def owners_for(
    given: CostsFile | None,
    num_shards: int,
    num_ranks: int,
    shard_rows: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return the rank that owns each shard; a rank that is faster by the costs file owns more.

    Raises:
        LaunchError: there are more ranks than shards.
    """
    factors = None if given is None else given.rank_factors
    if factors is not None and len(factors) != num_ranks:
        factors = None  # of other ranks; `foreign_factors` says so
    return balance_shards(num_shards, num_ranks, factors, shard_rows)


def foreign_factors(given: CostsFile | None, num_ranks: int) -> str | None:
    """Return what to say of speeds that are of another number of ranks; None where they are not."""
    factors = None if given is None else given.rank_factors
    if factors is None or len(factors) == num_ranks or len(set(factors)) == 1:
        return None
    return (
        f"the costs file has speeds of {len(factors)} ranks, and here are {num_ranks}: all are "
        f"taken to be as fast as those in the mean"
    )


def given_costs(
    given: CostsFile,
    names: Sequence[str],
    owners: Sequence[int],
    num_ranks: int,
    shard_rows: Sequence[int] | None = None,
) -> Costs:
    """Return what a costs file says of an experiment.

    Args:
        given: the costs file.
        names: names of the configs, by config_id.
        owners: the rank that owns each shard.
        num_ranks: ranks.
        shard_rows: rows of each shard; not needed where the file has seconds per visit.

    Raises:
        CostsError: a config is missing, or a list has another length than there are shards.
    """
    given.check_names(names)
    visit_s = np.empty((len(names), len(owners)))
    for config_id, name in enumerate(names):
        visit_s[config_id] = _visit_seconds(name, given.configs[name], len(owners), shard_rows)
    factors = given.rank_factors
    if factors is not None and len(factors) != num_ranks:
        factors = (float(np.mean(factors)),) * num_ranks  # which rank is which is not known
    if factors is not None:
        visit_s *= np.array(factors)[np.asarray(owners)]
    hop_s = np.zeros(len(names))
    if given.link is not None and num_ranks > 1:
        state = np.array([given.configs[name].state_nbytes for name in names], np.float64)
        hop_s = given.link.latency_s + state / given.link.bandwidth_bytes_per_s
    return Costs(visit_s, hop_s, np.array([given.configs[name].eval_s for name in names]))


def _visit_seconds(
    name: str, costs: ConfigCosts, num_shards: int, shard_rows: Sequence[int] | None
) -> FloatArray:
    if costs.visit_s is None:
        if shard_rows is None:
            raise CostsError(
                f"the costs of config {name} are per row, and how many rows a shard has is not "
                f"known; give visit_s, or the rows"
            )
        per_row = costs.seconds_per_row or 0.0
        return np.asarray(np.array(shard_rows, np.float64) * per_row + costs.overhead_s)
    if isinstance(costs.visit_s, tuple) and len(costs.visit_s) != num_shards:
        raise CostsError(
            f"visit_s of config {name} has {len(costs.visit_s)} numbers; there are {num_shards} "
            f"shards"
        )
    return np.broadcast_to(np.array(costs.visit_s, np.float64), (num_shards,)) + costs.overhead_s


NOISE = 0.05
"""How far (in logarithms) one measured visit lies from its mean."""
CONFIG_DOUBT, RANK_DOUBT, PAIR_DOUBT = 0.3, 0.1, 0.05
"""How far the first costs may lie from the true ones: per config, per rank, per pair of both."""

LEAST_S = 1e-9
"""Ratios are taken between numbers of at least this many seconds."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A visit that was made; seconds since the run's start."""

    config_id: int
    shard: int
    rank: int
    step: int
    start_s: float
    end_s: float
    """When training ended; the evaluation comes after it."""
    eval_s: float = 0.0
    diverged: bool = False


class CostModel:
    """Costs that follow what is measured.

    The logarithm of measured / first cost is taken as m + a(config) + b(rank) + e(config, shard) +
    noise, and each term is estimated by a mean that is shrunk towards zero by how much it is
    doubted: so one visit of a config corrects its cost on every rank, and one rank that is slower
    than thought is seen from whatever it trains.
    """

    def __init__(self, first: Costs, owners: Sequence[int], num_ranks: int) -> None:
        self._first = first
        self._owners = np.asarray(owners, np.int64)
        self._num_ranks = num_ranks
        self._count = np.zeros(first.visit_s.shape)
        self._sum = np.zeros(first.visit_s.shape)
        self._free_count = np.zeros(len(first.eval_s))  # visits that were thought to cost nothing
        self._free_sum = np.zeros(len(first.eval_s))
        self._eval_count = np.zeros(len(first.eval_s))
        self._eval_sum = np.zeros(len(first.eval_s))
        self._left = np.zeros(len(first.eval_s), np.bool_)

    def take(self, seen: Observed) -> None:
        """Take a visit that was made, with its evaluation; one that diverged says that it left."""
        if seen.diverged:
            self.drop(seen.config_id)
            return
        self.observe(seen.config_id, seen.shard, seen.end_s - seen.start_s)
        if seen.eval_s > 0.0:
            self.observe_eval(seen.config_id, seen.eval_s)

    def observe(self, config_id: int, shard: int, visit_s: float) -> None:
        """Take the measured time of a visit."""
        expected = float(self._first.visit_s[config_id, shard])
        if expected < LEAST_S:  # no ratio tells of other visits
            self._free_sum[config_id] += visit_s
            self._free_count[config_id] += 1
            return
        self._sum[config_id, shard] += np.log(max(visit_s, LEAST_S) / expected)
        self._count[config_id, shard] += 1

    def observe_eval(self, config_id: int, eval_s: float) -> None:
        """Take the measured time of an evaluation."""
        self._eval_sum[config_id] += eval_s
        self._eval_count[config_id] += 1

    def add(self) -> None:
        """Take one more config; it is taken to cost what the others do in the mean."""
        known, num_shards = self.costs(left_too=True), self._first.visit_s.shape[1]
        visit_s, hop_s, eval_s = (
            np.concatenate((own, mean.mean(axis=0, keepdims=True)))
            for own, mean in (
                (self._first.visit_s, known.visit_s),
                (self._first.hop_s, known.hop_s),
                (self._first.eval_s, known.eval_s),
            )
        )
        self._first = Costs(visit_s, hop_s, eval_s)
        row = np.zeros((1, num_shards))
        self._count, self._sum = (np.concatenate((own, row)) for own in (self._count, self._sum))
        self._free_count, self._free_sum, self._eval_count, self._eval_sum = (
            np.append(own, 0.0)
            for own in (self._free_count, self._free_sum, self._eval_count, self._eval_sum)
        )
        self._left = np.append(self._left, False)

    def drop(self, config_id: int) -> None:
        """A config has left the schedule: its visits cost nothing any more."""
        self._left[config_id] = True

    def has_left(self, config_id: int) -> bool:
        """Whether a config has left the schedule."""
        return bool(self._left[config_id])

    @property
    def has_seen_all(self) -> bool:
        """Whether every config has been observed, or has left."""
        return bool(((self._count.sum(axis=1) + self._free_count > 0) | self._left).all())

    def costs(self, *, left_too: bool = False) -> Costs:
        """Return the costs as they are known now.

        Args:
            left_too: whether configs that have left the schedule have theirs, too.
        """
        count, total = self._count, self._sum
        visit_s = self._first.visit_s
        if count.any():
            visit_s = visit_s * np.exp(self._ratio(count, total))
        free_s = self._free_sum / np.maximum(self._free_count, 1.0)
        visit_s = np.where(self._first.visit_s < LEAST_S, free_s[:, None], visit_s)
        measured = self._eval_sum / np.maximum(self._eval_count, 1.0)
        eval_s = np.where(self._eval_count > 0, measured, self._first.eval_s)
        stays = ~self._left | left_too
        return Costs(visit_s * stays[:, None], self._first.hop_s * stays, eval_s * stays)

    def _ratio(self, count: FloatArray, total: FloatArray) -> FloatArray:
        """Return the estimated logarithm of true / first cost, shape (configs, shards)."""
        config = np.zeros((len(count), 1))
        rank = np.zeros((1, count.shape[1]))
        common = 0.0
        weight = {d: (NOISE / d) ** 2 for d in (CONFIG_DOUBT, RANK_DOUBT, PAIR_DOUBT)}
        for _ in range(4):  # each term from what the others leave; this settles fast
            # The common term is the mean over configs, each counting once.
            seen = count.sum(axis=1) > 0
            left = (total - count * rank).sum(axis=1)[seen] / count.sum(axis=1)[seen]
            common = float(left.mean())
            rest = total - count * (common + rank)
            config[:, 0] = rest.sum(axis=1) / (count.sum(axis=1) + weight[CONFIG_DOUBT])
            rest = total - count * (common + config)
            by_rank = np.zeros((2, self._num_ranks))
            np.add.at(by_rank[0], self._owners, rest.sum(axis=0))
            np.add.at(by_rank[1], self._owners, count.sum(axis=0))
            rank[0] = (by_rank[0] / (by_rank[1] + weight[RANK_DOUBT]))[self._owners]
        mean = common + config + rank
        pair: FloatArray = (total - count * mean) / (count + weight[PAIR_DOUBT])
        return np.asarray(mean + pair, np.float64)
