"""The four invariants of Model Hopper Parallelism, by walking real plans over real transports."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_testing import (
    Settings,
    Sizes,
    Visited,
    Walked,
    in_parts,
    sequential,
    uneven,
    walk,
    walk_in_threads,
)

from mophpc.hop.parcel import HEADER_BYTES, INLINE_BYTES
from mophpc.schedule import Plan, make_plan, routes
from mophpc.schedule.costs import Costs

LARGE_REST = 5000
"""Does not fit into a header."""


@st.composite
def plans(draw):
    ranks = draw(st.integers(1, 5))
    return make_plan(
        "round-robin",
        num_configs=draw(st.integers(1, 9)),
        num_shards=ranks + draw(st.integers(0, 3)),
        num_ranks=ranks,
        num_epochs=draw(st.integers(1, 3)),
    )


def sizes_for(plan: Plan, draw) -> list[Sizes]:
    arenas = st.sampled_from([1, 64, 1000, 4096, 100_000])
    rests = st.sampled_from([0, 100, INLINE_BYTES, INLINE_BYTES + 1, LARGE_REST])
    return [Sizes(draw(arenas), draw(rests)) for _ in range(plan.num_configs)]


@st.composite
def balanced_plans(draw):
    ranks = draw(st.integers(1, 5))
    num_configs, num_shards = draw(st.integers(1, 9)), ranks + draw(st.integers(0, 3))
    each = st.floats(0.0, 1.0)
    costs = draw(st.lists(each, min_size=num_configs, max_size=num_configs))
    return make_plan(
        "balanced",
        num_configs=num_configs,
        num_shards=num_shards,
        num_ranks=ranks,
        num_epochs=draw(st.integers(1, 3)),
        costs=Costs.of([[cost] for cost in costs], num_configs, num_shards),
    )


@settings(max_examples=25)
@given(st.data(), balanced_plans(), st.integers(0, 99))
def test_the_invariants_hold_for_a_plan_that_is_told_in_parts(data, plan, seed):
    sizes = sizes_for(plan, data.draw)
    with tempfile.TemporaryDirectory() as folder:
        own = Settings(sizes, pause=uneven(seed, 2e-3))
        walked = walk_in_threads(plan, own, Path(folder), parts=in_parts(plan, seed))
    visits = [visit for rank in walked for visit in rank.visits]
    check_completeness(plan, visits)
    check_isolation_and_exclusivity(plan, visits)
    check_hops(plan, sizes, walked)
    assert max(rank.most_arenas for rank in walked) <= plan.max_arenas
    assert not any(rank.arenas_kept for rank in walked)
    check_trajectory(plan, sizes, walked)


@settings(max_examples=40)
@given(st.data(), plans(), st.integers(1, 5), st.integers(0, 99))
def test_the_invariants_hold_for_every_plan_size_and_timing(data, plan, lookahead, seed):
    sizes = sizes_for(plan, data.draw)
    with tempfile.TemporaryDirectory() as folder:
        own = Settings(sizes, pause=uneven(seed, 2e-3))
        walked = walk_in_threads(plan, own, Path(folder), lookahead)
    check_all(plan, sizes, walked)


def check_all(plan: Plan, sizes: list[Sizes], walked: list[Walked]) -> None:
    visits = [visit for rank in walked for visit in rank.visits]
    check_completeness(plan, visits)
    check_isolation_and_exclusivity(plan, visits)
    check_hops(plan, sizes, walked)
    check_memory(plan, walked)
    check_trajectory(plan, sizes, walked)


def check_completeness(plan: Plan, visits: list[Visited]) -> None:
    """Every config visits every shard once per epoch."""
    made = Counter((v.config_id, v.epoch, v.shard) for v in visits)
    due = product(range(plan.num_configs), range(plan.num_epochs), range(plan.num_shards))
    assert made == Counter(due)
    assert all(plan.owners[v.shard] == v.rank for v in visits)


def check_isolation_and_exclusivity(plan: Plan, visits: list[Visited]) -> None:
    """A config is in one place at a time, a rank trains one config at a time, nothing is cut."""
    assert all(v.start_s <= v.end_s for v in visits)
    for key in ("config_id", "rank"):
        by_key: dict[int, list[Visited]] = {}
        for visit in sorted(visits, key=lambda v: v.start_s):
            by_key.setdefault(getattr(visit, key), []).append(visit)
        for own in by_key.values():
            assert all(a.end_s <= b.start_s for a, b in pairwise(own))


def check_hops(plan: Plan, sizes: list[Sizes], walked: list[Walked]) -> None:
    """An epoch moves (ranks - 1) times the state of every config, and a header per hop."""
    events = [event for rank in walked for event in rank.events if event["kind"] == "hop"]
    for direction in ("send", "receive"):
        own = [event for event in events if event["direction"] == direction]
        moved: Counter[tuple[int, int]] = Counter()
        for event in own:
            assert event["rank"] == event["source" if direction == "send" else "dest"]
            assert event["header_nbytes"] <= HEADER_BYTES
            moved[event["config"], event["step"] // plan.num_shards] += event["nbytes"]
        for config_id, epoch in product(range(plan.num_configs), range(plan.num_epochs)):
            size = sizes[config_id]
            state = size.arena + (size.rest if size.rest > INLINE_BYTES else 0)
            assert moved[config_id, epoch] == (plan.num_ranks - 1) * state
        assert len(own) == (plan.num_ranks - 1) * plan.num_configs * plan.num_epochs


def check_memory(plan: Plan, walked: list[Walked]) -> None:
    bound = -(-plan.num_configs // plan.num_ranks) + 3
    assert max(rank.most_arenas for rank in walked) <= bound
    assert not any(rank.arenas_kept for rank in walked)
    ends = [event for rank in walked for event in rank.events if event["kind"] == "visit"]
    assert len(ends) == plan.num_visits


def check_trajectory(plan: Plan, sizes: list[Sizes], walked: list[Walked]) -> None:
    """What a config ends as is what its route alone gives."""
    digests = {r["config"]: r["state_sha256"] for w in walked for r in w.records if _is_final(r)}
    for config_id, route in enumerate(routes(plan)):
        steps = [(visit.epoch, visit.shard) for visit in route]
        assert digests[config_id] == sequential(config_id, sizes[config_id], steps)


def _is_final(record) -> bool:
    return record["kind"] == "final"


@settings(max_examples=25)
@given(st.data(), plans(), st.integers(0, 99))
def test_a_config_that_diverges_leaves_and_the_others_go_on(data, plan, seed):
    sizes = sizes_for(plan, data.draw)
    steps = st.integers(0, plan.num_steps - 1)
    leave = data.draw(st.dictionaries(st.integers(0, plan.num_configs - 1), steps))
    with tempfile.TemporaryDirectory() as folder:
        own = Settings(sizes, diverge_at=leave, pause=uneven(seed, 1e-3))
        walked = walk_in_threads(plan, own, Path(folder))
    finals = [r for w in walked for r in w.records if r["kind"] == "final"]
    assert sorted(r["config"] for r in finals) == list(range(plan.num_configs))
    by_config = {r["config"]: r for r in finals}
    made = Counter(v.config_id for w in walked for v in w.visits)
    for config_id, route in enumerate(routes(plan)):
        left_at = leave.get(config_id)
        due = plan.num_steps if left_at is None else left_at + 1
        assert made[config_id] == by_config[config_id]["steps"] == due
        assert by_config[config_id]["status"] == ("done" if left_at is None else "diverged")
        steps_made = [(v.epoch, v.shard) for v in route[:due]]
        digest = sequential(config_id, sizes[config_id], steps_made)
        assert by_config[config_id]["state_sha256"] == digest
        epochs = [r for w in walked for r in w.records if _ends_epoch(r, config_id)]
        assert len(epochs) == (plan.num_epochs if left_at is None else left_at // plan.num_shards)
    for event in (e for w in walked for e in w.events if e["kind"] == "hop"):
        gone = leave.get(event["config"], plan.num_steps)
        assert (event["nbytes"] == 0) == (event["step"] > gone)
    check_memory_after_divergence(plan, walked)


def check_memory_after_divergence(plan: Plan, walked: list[Walked]) -> None:
    assert max(rank.most_arenas for rank in walked) <= -(-plan.num_configs // plan.num_ranks) + 3
    assert not any(rank.arenas_kept for rank in walked)


def _ends_epoch(record, config_id: int) -> bool:
    return record["kind"] == "epoch" and record["config"] == config_id


def test_an_epoch_begins_on_one_rank_while_another_is_still_in_the_last(tmp_path):
    """There is no barrier: a visit of epoch 0 waits here for one of epoch 1 to begin."""
    plan = make_plan("round-robin", num_configs=4, num_shards=2, num_ranks=2, num_epochs=2)
    last = plan.visits_by_rank[1][3]
    following = plan.visits_by_rank[0][4]
    assert (last.epoch, following.epoch) == (0, 1)
    assert last.config_id != following.config_id
    begun = threading.Event()

    def pause(config_id, epoch, shard, rank):
        if (config_id, epoch, rank) == (following.config_id, 1, 0):
            begun.set()
        if (config_id, epoch, rank) == (last.config_id, 0, 1):
            assert begun.wait(20), "rank 0 waits for rank 1 at the turn of the epoch"

    sizes = [Sizes(100, 10)] * 4
    check_all(plan, sizes, walk_in_threads(plan, Settings(sizes, pause=pause), tmp_path))


def test_a_slow_config_does_not_hold_up_a_rank_that_has_others(tmp_path):
    """A state comes while another config trains: the rank that expects it does not wait for it."""
    plan = make_plan("round-robin", num_configs=6, num_shards=2, num_ranks=2, num_epochs=1)
    started: list[tuple[int, int]] = []
    slow = plan.visits_by_rank[0][0].config_id

    def pause(config_id, epoch, shard, rank):
        started.append((rank, config_id))
        if (rank, config_id) == (0, slow):
            while sum(r == 1 for r, _ in started) < 3:
                threading.Event().wait(0.001)

    sizes = [Sizes(100, 10)] * 6
    check_all(plan, sizes, walk_in_threads(plan, Settings(sizes, pause=pause), tmp_path))


def test_sixty_four_configs_on_four_ranks_need_at_most_nineteen_arenas(tmp_path):
    plan = make_plan("round-robin", num_configs=64, num_shards=4, num_ranks=4, num_epochs=2)
    sizes = [Sizes(5000, 100)] * 64
    walked = walk_in_threads(plan, Settings(sizes, pause=uneven(1, 1e-3)), tmp_path)
    check_all(plan, sizes, walked)
    assert max(rank.most_arenas for rank in walked) <= 19


CASES = [(1, 0, 2, 3), (5, 0, 2, 1), (7, 3, 1, 2), (3, 1, 3, 3)]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("configs", "more_shards", "epochs", "lookahead"), CASES)
@pytest.mark.parametrize("diverging", [False, True])
def test_the_invariants_hold_under_mpi(
    comm, shared_path, configs, more_shards, epochs, lookahead, diverging
):
    from mophpc.hop.mpi import MpiTransport

    plan = make_plan(
        "round-robin",
        num_configs=configs,
        num_shards=comm.size + more_shards,
        num_ranks=comm.size,
        num_epochs=epochs,
    )
    arenas, rests = (100, 3 << 20, 4096), (10, LARGE_REST)
    sizes = [Sizes(arenas[i % 3], rests[i % 2]) for i in range(configs)]
    leave = {0: 1} if diverging else {}
    own = Settings(sizes, diverge_at=leave, pause=uneven(comm.size, 5e-3))
    mine = walk(MpiTransport(comm), plan, own, shared_path, lookahead)
    walked = comm.allgather(mine)
    if not diverging:
        check_all(plan, sizes, walked)
        return
    finals = {r["config"]: r for w in walked for r in w.records if r["kind"] == "final"}
    assert [finals[i]["status"] for i in range(configs)] == ["diverged"] + ["done"] * (configs - 1)
    for config_id, route in enumerate(routes(plan)):
        made = [(v.epoch, v.shard) for v in route][: 2 if config_id == 0 else None]
        digest = sequential(config_id, sizes[config_id], made)
        assert finals[config_id]["state_sha256"] == digest


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("seed", range(3))
def test_a_plan_that_is_told_in_parts_under_mpi(comm, shared_path, seed):
    from mophpc.hop.mpi import MpiTransport

    num_configs, num_shards = 7, comm.size + seed
    plan = make_plan(
        "balanced",
        num_configs=num_configs,
        num_shards=num_shards,
        num_ranks=comm.size,
        num_epochs=3,
        costs=Costs.of([[1.0 + i % 4] for i in range(num_configs)], num_configs, num_shards),
    )
    sizes = [Sizes((100, 3 << 20, 4096)[i % 3], (10, LARGE_REST)[i % 2]) for i in range(7)]
    own = Settings(sizes, pause=uneven(seed, 5e-3))
    parts = in_parts(plan, seed)[comm.rank]
    walked = comm.allgather(walk(MpiTransport(comm), plan, own, shared_path, parts=parts))
    check_completeness(plan, [visit for rank in walked for visit in rank.visits])
    check_hops(plan, sizes, walked)
    check_trajectory(plan, sizes, walked)
