"""The arena rule, and that one greedy walk speaks for every timing."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from mophpc.schedule import (
    ArenaQueue,
    Plan,
    Visit,
    assign_shards,
    least_arenas,
    make_plan,
    stops,
    stuck,
)
from mophpc.schedule.walk import arenas_in_use


def any_plan(rng: random.Random) -> Plan:
    """Make a plan that is complete and in no sensible order; many such plans cannot end."""
    num_ranks, num_configs, num_epochs = rng.randint(1, 4), rng.randint(1, 6), rng.randint(1, 2)
    num_shards = num_ranks + rng.randint(0, 1)
    owners = assign_shards(num_shards, num_ranks)
    lists: list[list[tuple[float, Visit]]] = [[] for _ in range(num_ranks)]
    disorder = rng.choice((0.0, 1.0, 4.0))
    for config_id in range(num_configs):
        start = rng.random() * num_configs
        for epoch in range(num_epochs):
            for place, shard in enumerate(rng.sample(range(num_shards), num_shards)):
                step = epoch * num_shards + place
                visit = Visit(config_id, epoch, shard, owners[shard], step)
                lists[owners[shard]].append((start + step + disorder * rng.random(), visit))
    return Plan(
        num_configs=num_configs,
        num_ranks=num_ranks,
        num_shards=num_shards,
        num_epochs=num_epochs,
        owners=owners,
        visits_by_rank=tuple(tuple(v for _, v in sorted(own, key=lambda p: p[0])) for own in lists),
        policy="any",
        max_arenas=rng.randint(1, 5),
    )


class Rank:
    def __init__(self, plan: Plan, rank: int, lookahead: int) -> None:
        self.stops = stops(plan, rank)
        needs = [n for n, stop in enumerate(self.stops) if stop.takes_arena]
        self.queue = ArenaQueue(needs, plan.max_arenas, lookahead)
        self.taken: set[int] = set()
        self.next, self.runs = 0, False


def ends_in_some_order(plan: Plan, lookahead: int, rng: random.Random) -> list[int]:
    """Fire what is allowed in a random order, starts and ends apart; return visits made by rank."""
    ranks = [Rank(plan, rank, lookahead) for rank in range(plan.num_ranks)]
    posted: set[tuple[int, int]] = set()
    sent: dict[tuple[int, int], int] = {}
    present: set[tuple[int, int]] = set()

    def take(own: Rank) -> bool:
        position = own.queue.take()
        if position is None:
            return False
        assert own.queue.held <= plan.max_arenas
        own.taken.add(position)
        stop = own.stops[position]
        (present if stop.creates else posted).add((stop.visit.config_id, stop.visit.step))
        return True

    def start(own: Rank) -> bool:
        if own.runs or own.next == len(own.stops):
            return False
        stop = own.stops[own.next]
        if (stop.visit.config_id, stop.visit.step) not in present:
            return False
        if stop.takes_arena:
            assert own.next in own.taken
            own.queue.start()
        own.runs = True
        return True

    def end(own: Rank) -> bool:
        if not own.runs:
            return False
        stop = own.stops[own.next]
        own.runs, own.next = False, own.next + 1
        key = (stop.visit.config_id, stop.visit.step + 1)
        if stop.send is not None:
            sent[key] = stop.send.source
        elif stop.is_last:
            own.queue.release()
        else:
            present.add(key)
        return True

    def match(_: Rank) -> bool:
        open_hops = sorted(key for key in sent if key in posted and key not in present)
        if not open_hops:
            return False
        key = rng.choice(open_hops)
        present.add(key)
        ranks[sent[key]].queue.release()
        return True

    while True:
        moves = [(act, own) for own in ranks for act in (take, start, end, match)]
        rng.shuffle(moves)
        if not any(act(own) for act, own in moves):
            return [own.next for own in ranks]


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_the_greedy_walk_ends_where_every_timing_ends(seed, lookahead):
    rng = random.Random(seed)
    plan = any_plan(rng)
    expected = [len(visits) for visits in plan.visits_by_rank]
    first = [0]
    for visits in plan.visits_by_rank:
        first.append(first[-1] + len(visits))
    for one in stuck(plan, lookahead=lookahead):
        expected[one.rank] = one.index - first[one.rank]
    for _ in range(3):
        assert ends_in_some_order(plan, lookahead, rng) == expected


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_least_arenas_is_the_least(seed, lookahead):
    plan = any_plan(random.Random(seed))
    floor = -(-plan.num_configs // plan.num_ranks) + 2
    found = least_arenas(plan, lookahead)
    enough = [n for n in range(floor, floor + 12) if not stuck(plan, n, lookahead)]
    assert found == (enough[0] if enough else None)
    assert enough == ([] if found is None else list(range(found, floor + 12)))


def reversed_pair(num_configs: int) -> Plan:
    """Rank 1 trains the configs in the opposite order of rank 0, which must keep them all."""
    return Plan(
        num_configs=num_configs,
        num_ranks=2,
        num_shards=2,
        num_epochs=1,
        owners=(0, 1),
        visits_by_rank=(
            tuple(Visit(c, 0, 0, 0, 0) for c in range(num_configs)),
            tuple(Visit(c, 0, 1, 1, 1) for c in reversed(range(num_configs))),
        ),
        policy="by hand",
        max_arenas=num_configs,
    )


def test_a_rank_that_must_keep_every_config():
    plan = reversed_pair(12)
    assert least_arenas(plan, lookahead=1) == 12
    assert least_arenas(plan, lookahead=3) == 10
    (one, two) = stuck(plan, 11, lookahead=1)
    assert (one.rank, one.index, one.reason) == (0, 11, "all 11 arenas of the rank are held")
    assert (two.rank, two.index, two.reason) == (1, 12, "its state never leaves rank 0")


def test_arenas_are_taken_in_the_order_of_the_list():
    queue = ArenaQueue([0, 2, 5, 6], max_arenas=3, lookahead=2)
    assert [queue.take(), queue.take(), queue.take()] == [0, 2, None]
    queue.start()
    assert [queue.take(), queue.take()] == [5, None]
    queue.start()
    assert queue.take() is None  # the lookahead allows it, three arenas are held
    queue.release()
    assert queue.held == 2
    assert [queue.take(), queue.take()] == [6, None]


def test_a_queue_that_is_told_more():
    queue = ArenaQueue((0, 2), max_arenas=2, lookahead=3)
    assert [queue.take(), queue.take(), queue.take()] == [0, 2, None]
    queue.extend([4, 5], max_arenas=2)
    assert queue.take() is None  # two arenas are held
    queue.extend([], max_arenas=3)
    assert [queue.take(), queue.take()] == [4, None]
    queue.release()
    assert queue.take() is None  # three have not started
    queue.start()
    assert [queue.take(), queue.take()] == [5, None]


def test_a_queue_does_not_change_what_it_was_given():
    needs = [0, 1]
    ArenaQueue(needs, max_arenas=3).extend([2], max_arenas=3)
    assert needs == [0, 1]


def timed_pair(kept: float) -> Plan:
    """Rank 1 trains each config so many seconds after rank 0 has, a second each."""
    plan = reversed_pair(8)
    return replace(
        plan,
        visits_by_rank=(
            tuple(Visit(c, 0, 0, 0, 0, float(c), c + 1.0) for c in range(8)),
            tuple(Visit(c, 0, 1, 1, 1, c + 1.0 + kept, c + 2.0 + kept) for c in range(8)),
        ),
    )


def test_arenas_in_use_are_counted_by_the_predicted_times():
    assert arenas_in_use(timed_pair(0.0), lookahead=0) == 1
    assert arenas_in_use(timed_pair(0.0), lookahead=3) == 4
    assert arenas_in_use(timed_pair(3.0), lookahead=0) == 4
    assert arenas_in_use(timed_pair(3.0), lookahead=3) == 7
    assert arenas_in_use(timed_pair(7.5), lookahead=3) == 9  # one for each config, and one more


def test_a_receive_ahead_leaves_the_next_visit_its_arena():
    """The lookahead allows six receives and three arenas are there: each rank still goes on."""
    plan = make_plan("round-robin", num_configs=6, num_shards=3, num_ranks=3, num_epochs=2)
    assert stuck(plan, 3, lookahead=6) == ()
