"""Which rank owns which shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mophpc.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence


def assign_shards(num_shards: int, num_ranks: int) -> tuple[int, ...]:
    """Return the rank that owns each shard: contiguous blocks, sizes that differ by at most one.

    Raises:
        LaunchError: there are more ranks than shards.
    """
    if num_ranks > num_shards:
        shards = "1 shard" if num_shards == 1 else f"{num_shards} shards"
        ranks = "1 rank" if num_shards == 1 else f"{num_shards} ranks"
        raise LaunchError(
            f"{num_ranks} ranks but the store has {shards}; start at most {ranks}, "
            f"or prepare the store again with --shards {num_ranks}"
        )
    size, larger = divmod(num_shards, num_ranks)
    sizes = [size + (rank < larger) for rank in range(num_ranks)]
    return tuple(rank for rank, count in enumerate(sizes) for _ in range(count))


def balance_shards(
    num_shards: int,
    num_ranks: int,
    rank_factors: Sequence[float] | None = None,
    shard_rows: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Return the rank that owns each shard, so that faster ranks own more.

    Each rank keeps the first shard of its block in `assign_shards`; the others go one by one, the
    largest first, to the rank that will have trained its own soonest.

    Args:
        num_shards: shards.
        num_ranks: ranks.
        rank_factors: seconds on each rank for the same work, in any unit; equal by default.
        shard_rows: rows of each shard; equal by default.

    Raises:
        LaunchError: there are more ranks than shards.
    """
    blocks = assign_shards(num_shards, num_ranks)
    factors = [1.0] * num_ranks if rank_factors is None else list(rank_factors)
    if len(set(factors)) == 1 or num_shards == num_ranks:
        return blocks
    rows = [1] * num_shards if shard_rows is None else list(shard_rows)
    owners = list(blocks)
    first = [blocks.index(rank) for rank in range(num_ranks)]
    load = [rows[shard] * factors[rank] for rank, shard in enumerate(first)]
    others = sorted((s for s in range(num_shards) if s not in first), key=lambda s: (-rows[s], s))
    for shard in others:
        ends = [has + rows[shard] * factor for has, factor in zip(load, factors, strict=True)]
        owners[shard] = rank = ends.index(min(ends))
        load[rank] = ends[rank]
    return tuple(owners)
