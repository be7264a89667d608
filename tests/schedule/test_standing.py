"""Where configs stand when a run goes on: what is made first, what is told, what is refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from schedule_cases import Case, some_costs
from test_pool import Run, check_end

from mophpc.errors import PlanError
from mophpc.schedule import digest, format_plan, from_json, hops, make_plan, predict, to_json
from mophpc.schedule.check import CompletenessError, check_plan
from mophpc.schedule.costs import Costs, Observed
from mophpc.schedule.orders import END, Link, Orders, StateCopy
from mophpc.schedule.plan import Brought, Fork, Plan, Visit, columns
from mophpc.schedule.pool import Pool
from mophpc.schedule.resume import Standing, catch_up

pytestmark = pytest.mark.timeout(60)

OWNERS = (0, 0, 1, 1)


def sizes(num_configs: int, *, owners: tuple[int, ...] = OWNERS, num_epochs: int = 4) -> Plan:
    num_ranks = max(owners) + 1
    return Plan(
        num_configs, num_ranks, len(owners), num_epochs, owners, ((),) * num_ranks, "pool", 4
    )


def pool_of(*standings: Standing, forks: tuple[Fork, ...] = ()) -> Pool:
    costs = Costs.of(1.0, len(standings), len(OWNERS))
    pool = Pool.resumed(sizes(len(standings)), costs, standings, forks=forks)
    pool.begin(0.0)
    return pool


def run_of(pool: Pool, disk: dict[tuple[int, int], tuple[str, ...]]) -> Run:
    """Let ranks obey a pool; nobody decides anything but that what waits ends."""
    plan = pool._plan
    costs = Costs.of(1.0, plan.num_configs, plan.num_shards)
    case = Case(plan.num_configs, plan.num_ranks, plan.num_shards, plan.num_epochs, 0, costs)
    run = Run(case, budget=0)
    run.plan, run.pool = plan, pool
    run.world = run._world()
    run.world.disk = disk
    return run


def routed(config_id: int, *shards: int) -> tuple[str, ...]:
    """Return the past of a state that has met some shards."""
    return tuple(
        str(Visit(config_id, n // len(OWNERS), shard, OWNERS[shard], n))
        for n, shard in enumerate(shards)
    )


def shards_of(visits: list[Visit], config_id: int = 0) -> list[int]:
    return [visit.shard for visit in visits if visit.config_id == config_id]


def test_what_was_promised_comes_first_and_then_what_makes_the_rest_stays():
    costs = Costs.of(1.0, 1, 4)
    for standing, shards in (
        (Standing(), []),
        (Standing(1, (), (0,)), [1]),  # shards 2 and 3 are a stay of rank 1
        (Standing(2, (), (0, 1)), []),
        (Standing(1, (3,), (0,)), [3, 2, 1]),  # where it is already, without a hop
        (Standing(0, (2, 0)), [2, 0, 1, 3]),
        (Standing(5, (0,), (3,)), [0, 1, 2]),
        (Standing(4, (0, 1, 2)), [0, 1, 2, 3]),
        (Standing(3, (2, 1, 0, 2, 3), (3, 1, 0)), [2, 1, 0, 2, 3]),
        (Standing(3, (2, 1, 0), (3, 1, 0), end=5), [2, 1]),
        (Standing(1, (3,), (0,), is_over=True), [3]),
        (Standing(1, (), (0,), is_over=True), []),
        (Standing(4, (0,), end=4), []),
    ):
        visits = catch_up([standing], sizes(1), replace(costs, hop_s=np.array([0.5])))
        assert sorted(shards_of(visits)) == sorted(shards)
        promised = shards[: len(standing.promised)]
        assert shards_of(visits)[: len(promised)] == promised
        assert [visit.step for visit in visits] == [standing.step + n for n in range(len(visits))]


def test_no_rank_idles_that_could_start_something():
    case = Case(9, 4, 12, 3, 5, some_costs("skewed", 9, 12, 5, hop=0.3, ev=0.2))
    rng = np.random.default_rng(5)
    standings = []
    for _ in range(case.num_configs):
        route = [int(s) for _ in range(case.num_epochs) for s in rng.permutation(12)]
        step, until = sorted(int(n) for n in rng.integers(0, 37, 2))
        standings.append(
            Standing(step, tuple(route[step:until]), tuple(route[step - step % 12 : step]))
        )
    visits = catch_up(standings, case.plan("round-robin"), case.costs, 7.0)
    free, ready, at = {}, {}, {}
    for visit in visits:
        rank, config_id = visit.rank, visit.config_id
        hop_s = case.costs.hop_s[config_id] if at.get(config_id, rank) != rank else 0.0
        due = max(free.get(rank, 7.0), ready.get(config_id, 7.0) + hop_s)
        assert visit.predicted_start_s == pytest.approx(due)
        took = case.costs.eval_s[config_id] if visit.step % 12 == 11 else 0.0
        free[rank] = ready[config_id] = visit.predicted_end_s + took
        at[config_id] = rank


@pytest.mark.parametrize("num_configs", [8, 11, 16])
def test_a_rotation_takes_no_longer_when_it_is_promised_anew(num_configs):
    plan = make_plan(
        "round-robin", num_configs=num_configs, num_shards=8, num_ranks=8, num_epochs=3
    )
    standings = [
        Standing(0, tuple(visit.shard for visit in plan.route(config_id)))
        for config_id in range(num_configs)
    ]
    visits = catch_up(standings, plan, Costs.of(1.0, num_configs, 8))
    assert len(visits) == plan.num_visits
    assert max(visit.predicted_end_s for visit in visits) <= predict(plan, 1.0).makespan_s


def test_ten_thousand_visits_are_put_in_order_in_a_second():
    rng = np.random.default_rng(0)
    costs = some_costs("skewed", 100, 10, 0, hop=0.2)
    plan = sizes(100, owners=tuple(n % 4 for n in range(10)), num_epochs=10)
    standings = [
        Standing(0, tuple(int(s) for _ in range(10) for s in rng.permutation(10)))
        for _ in range(100)
    ]
    begin = time.process_time()
    visits = catch_up(standings, plan, costs)
    assert len(visits) == 10_000
    assert time.process_time() - begin < 1.0
    assert visits == catch_up(standings, plan, costs)


@pytest.mark.parametrize(
    ("standing", "text"),
    [
        (Standing(1), "0 shards of its epoch are done; 1 are due"),
        (Standing(2, (), (1, 1)), "epoch 0 visits a shard twice"),
        (Standing(6, (3,), (3, 0)), "epoch 1 visits a shard twice"),
        (Standing(0, (0, 1, 2, 3, 2, 2)), "epoch 1 visits a shard twice"),
        (Standing(0, (4,)), "shards are 0 to 3"),
        (Standing(0, (1,), end=2), "its end, step 2, is in the middle of an epoch"),
        (Standing(-4), "it ends before"),
    ],
)
def test_standings_that_cannot_be_are_refused(standing, text):
    with pytest.raises(PlanError, match=text):
        catch_up([Standing(), standing], sizes(2), Costs.of(1.0, 2, 4))


def test_each_config_needs_a_standing():
    with pytest.raises(PlanError, match="1 standings are given for 2 configs"):
        catch_up([Standing()], sizes(2), Costs.of(1.0, 2, 4))


@pytest.mark.parametrize(
    "fork", [Fork(0, 4, 1), Fork(1, 8, 0), Fork(0, 8, 2), Fork(0, 10, 1), Fork(0, 12, 1)]
)
def test_copies_that_nobody_comes_to_are_refused(fork):
    standings = [Standing(8, (0, 1, 2)), Standing(4, (0, 1, 2))]
    with pytest.raises(PlanError, match="copy"):
        catch_up(standings, sizes(2), Costs.of(1.0, 2, 4), 0.0, [fork])


def test_the_first_visit_of_a_config_reads_its_state_and_no_other_does():
    pool = pool_of(Standing(), Standing(1, (1, 2), (0,)), Standing(4, source=0))
    pool.set_goal(0, 1)
    pool.set_goal(2, 2)
    orders = pool.promise(0.0, ({"config_id": 0},))
    assert [own.news for own in orders] == [({"config_id": 0},)] * 2
    stops = [stop for own in orders for stop in own.stops]
    loads = {(s.visit.config_id, s.visit.step): s.loads for s in stops if s.loads is not None}
    assert loads == {(1, 1): 1, (2, 4): 0}
    for stop in stops:
        assert not (stop.creates and stop.loads is not None)
        assert stop.takes_arena == (
            stop.creates or stop.loads is not None or stop.receive is not None
        )
    for own in orders:
        read = Orders.from_json(json.loads(json.dumps(own.to_json())))
        assert [stop.loads for stop in read.stops] == [stop.loads for stop in own.stops]
        assert [stop.receive for stop in read.stops] == [stop.receive for stop in own.stops]
    assert set(pool.plan().brought) == {Brought(1, 1, 1, (0,)), Brought(2, 4, 0)}


def test_nobody_is_told_that_a_config_ends_whose_state_is_in_a_file():
    pool = pool_of(Standing(4), Standing(8, end=8), Standing(4, is_over=True), Standing(end=0))
    assert pool.waits(0)
    assert [pool.rank_of(config_id) for config_id in range(4)] == [-1] * 4
    assert [member.is_over for member in pool.members] == [False, True, True, True]
    pool.end(0)
    pool.close()
    assert pool.due(0.0)
    for own in pool.promise(0.0):
        assert own == Orders((), (), own.max_arenas, is_last=True)
    assert pool.is_over
    assert pool.num_decided == pool.plan().num_visits == 0
    assert pool.plan().all_spans == ((4, 4), (8, 8), (4, 4), (0, 0))


def test_a_config_that_was_to_end_makes_what_is_promised_and_ends_there():
    pool = pool_of(Standing(4, (0,), is_over=True), Standing())
    orders = pool.promise(0.0)
    assert [str(stop.visit) for stop in orders[0].stops] == ["c0e1s0r0n4"]
    assert orders[0].links == (Link(0, 5, END),)
    run = run_of(pool, {})
    run.world.disk[0, 4] = run.world.truth[0] = routed(0, 3, 2, 1, 0)
    run.world.tell(orders)
    run.go_on()
    assert check_end(run).all_spans == ((4, 5), (0, 0))


def test_a_config_that_waits_gets_a_copy_of_a_state_in_a_file():
    """Its own, in memory, is dropped; and the file of a third one can be told of by two."""
    pool = pool_of(Standing(), Standing(4, source=2), Standing(8, end=8))
    file = routed(2, 3, 2, 1, 0)
    run = run_of(pool, {(2, 4): file})
    run.world.truth[1] = file
    pool.set_goal(0, 1)
    while not pool.waits(0):
        assert run.world.step() or run._poll()
    new = pool.add(is_laid_out=True)
    forks = pool.copy([(0, 1), (new, 1)])
    assert forks == [Fork(0, 4, 2), Fork(new, 4, 2)]
    run.world.truth |= {0: file, new: file}
    for config_id in (0, 1, new):
        assert pool.waits(config_id)
        assert pool.boundary(config_id) == (1 if config_id == 1 else 2)
        pool.set_goal(config_id, 2)
    run.go_on()
    plan = check_end(run)
    assert plan.all_spans == ((0, 8), (4, 8), (8, 8), (4, 8))
    assert plan.forks == ()
    assert sorted((b.config_id, b.step, b.source) for b in plan.brought) == [
        (0, 4, 2),
        (1, 4, 2),
        (3, 4, 2),
    ]
    assert all((hop.config_id, hop.step) not in ((0, 4), (1, 4), (3, 4)) for hop in hops(plan))
    before, after = columns(plan).links(plan)
    read = {(0, 4), (1, 4), (3, 4)}
    for index, visit in enumerate(plan.visits()):
        assert (before[index] < 0) == (visit.step == 0 or (visit.config_id, visit.step) in read)
        assert (after[index] < 0) == (visit.step == 7 or (visit.config_id, visit.step) == (0, 3))


def test_a_config_whose_state_is_in_a_file_gets_a_copy_of_one_in_memory():
    pool = pool_of(Standing(), Standing(4))
    run = run_of(pool, {})  # nobody may read its file
    pool.set_goal(0, 1)
    while not pool.waits(0):
        assert run.world.step() or run._poll()
    assert pool.copy([(1, 0)]) == [Fork(1, 4, 0)]
    run.world.truth[1] = run.world.truth[0]
    pool.set_goal(1, 2)
    run.go_on()
    plan = check_end(run)
    assert plan.forks == (Fork(1, 4, 0),)
    assert plan.brought == ()


def test_states_in_files_are_swapped():
    pool = pool_of(Standing(4), Standing(4))
    own = [routed(config_id, 0, 1, 2, 3) for config_id in (0, 1)]
    run = run_of(pool, {(0, 4): own[0], (1, 4): own[1]})
    pool.copy([(0, 1), (1, 0)])
    run.world.truth = {0: own[1], 1: own[0]}
    for config_id in (0, 1):
        pool.set_goal(config_id, 2)
    run.go_on()
    assert {(b.config_id, b.source) for b in check_end(run).brought} == {(0, 1), (1, 0)}


def test_a_copy_of_which_no_state_is_kept_is_made_again():
    """The source goes on only then, and the config waits for it, without a state of its own."""
    standings = (Standing(2, (2, 3, 1, 0), (0, 1)), Standing(4, (3, 2, 0)))
    pool = pool_of(*standings, forks=(Fork(1, 4, 0),))
    assert not pool.waits(1)
    assert pool.boundary(1) == 2
    with pytest.raises(PlanError, match="caught up"):
        pool.copy([(1, 0)])
    orders = pool.promise(0.0)
    told = [str(stop.visit) for own in orders for stop in own.stops]
    assert told == ["c0e0s2r1n2", "c0e0s3r1n3"]
    pool.set_goal(0, 3)
    pool.set_goal(1, 3)
    run = run_of(pool, {(0, 2): routed(0, 0, 1)})
    run.world.truth[0] = routed(0, 0, 1)
    run.world.tell(orders)
    while pool._owed._forks:
        assert run.world.step()
    run.world.truth[1] = run.world.truth[0]
    run.go_on()
    plan = check_end(run)
    assert plan.forks == (Fork(1, 4, 0),)
    assert plan.all_spans == ((2, 12), (4, 12))
    assert [visit.shard for visit in plan.route(1)][:3] == [3, 2, 0]


def test_a_config_that_waited_with_a_copy_waits_again_when_it_is_made():
    pool = pool_of(Standing(3, (3,), (0, 1, 2)), Standing(4), forks=(Fork(1, 4, 0),))
    (last,) = (stop.visit for own in pool.promise(0.0) for stop in own.stops)
    assert not pool.due(1e-9)
    assert not pool.waits(1)
    pool.observe(Observed(0, last.shard, last.rank, last.step, 0.0, 0.0))
    assert pool.waits(0)
    assert pool.waits(1)
    assert pool.due(1e-9)
    (copies,) = (own.copies for own in pool.promise(1e-9) if own.copies)
    assert copies == (StateCopy(0, 1, 4),)


def test_a_copy_is_ready_when_its_source_has_come_so_far():
    standings = [Standing(0, (3, 2, 0, 1)), Standing(4, (3, 2))]
    visits = catch_up(standings, sizes(2), Costs.of(1.0, 2, 4), 0.0, [Fork(1, 4, 0)])
    at = {(visit.config_id, visit.step): visit.predicted_start_s for visit in visits}
    assert [at[0, step] for step in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert [at[1, step] for step in (4, 5)] == [4.0, 5.0]


def test_a_config_may_end_while_it_waits_for_a_copy():
    pool = pool_of(Standing(0, (0, 1, 2, 3)), Standing(4, (3, 2)), forks=(Fork(1, 4, 0),))
    pool.end(1)
    pool.close()
    run = run_of(pool, {})
    while pool._owed._forks:
        assert run.world.step() or run._poll()
    run.world.truth[1] = run.world.truth[0]
    run.is_closed = True
    while not pool.waits(0):
        assert run.world.step() or run._poll()
    pool.end(0)
    run.go_on()
    plan = check_end(run)
    assert plan.all_spans[0] == (0, 4)
    assert plan.all_spans[1][0] == 4
    assert {3, 2} <= {visit.shard for visit in plan.route(1)}


def resumed_plan() -> Plan:
    """Return a plan of a config that goes on after shard 1."""
    own = (
        (Visit.parse("c0e0s0r0n1"),),
        (Visit.parse("c0e0s2r1n2"), Visit.parse("c0e0s3r1n3")),
    )
    brought = (Brought(0, 1, 0, (1,)),)
    plan = replace(sizes(1), visits_by_rank=own, spans=((1, 4),), brought=brought)
    check_plan(plan)
    return plan


@pytest.mark.parametrize(
    ("brought", "text"),
    [
        ((), "begins with step 1, of no state"),
        ((Brought(0, 1, 0, (0,)),), "the shard is visited twice"),
        ((Brought(0, 1, 0, ()),), "1 different ones are due"),
        ((Brought(0, 1, 0, (1, 1)),), "1 different ones are due"),
        ((Brought(0, 1, 0, (4,)),), "1 different ones are due"),
        ((Brought(0, 1, 1, (1,)),), "said to be that of config 1"),
        ((Brought(0, 1, 0, (1,)), Brought(0, 2, 0, (1, 0))), "in the middle of an epoch"),
        ((Brought(0, 1, 0, (1,)), Brought(0, 1, 0, (1,))), "two states for one visit"),
    ],
)
def test_states_that_are_brought_are_checked(brought, text):
    with pytest.raises(CompletenessError, match=text):
        check_plan(replace(resumed_plan(), brought=brought))


def test_a_state_is_brought_to_a_visit_of_the_plan():
    for step, config_id in ((4, 0), (0, 0), (1, 1), (1, -1)):
        with pytest.raises(PlanError, match="brought has step"):
            replace(resumed_plan(), brought=(Brought(config_id, step, 0),))
    with pytest.raises(PlanError, match="brought has step"):
        replace(resumed_plan(), spans=None)


def test_what_is_brought_is_part_of_the_digest_and_of_the_file():
    plan = resumed_plan()
    record = json.loads(json.dumps(to_json(plan)))
    assert record["brought"] == [[0, 1, 0, 1]]
    assert from_json(record) == plan
    assert digest(plan) != digest(replace(plan, brought=(Brought(0, 1, 0, (3,)),)))
    with pytest.raises(PlanError, match="digest"):
        from_json(record | {"brought": [[0, 1, 0, 3]]})
    with pytest.raises(PlanError, match="takes config, step and source"):
        from_json(record | {"brought": [[0, 1]]})
    assert "brought" not in to_json(replace(plan, spans=((0, 0),), brought=()))


def test_a_plan_that_begins_late_is_shown_from_there():
    own = ((Visit.parse("c0e2s0r0n8"), Visit.parse("c0e2s1r0n9")), ())
    brought = (Brought(0, 8, 0),)
    plan = replace(sizes(1), visits_by_rank=own, spans=((8, 10),), brought=brought)
    text = format_plan(plan)
    assert text.startswith("epoch 2, step")
    assert "epoch 1" not in text
    assert format_plan(plan, epoch=1) == "epoch 1: no visits in this plan"
