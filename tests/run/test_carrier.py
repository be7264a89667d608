"""Memory of arenas, reused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mophpc.errors import HopError
from mophpc.events import EventLog
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.parcel import Outgoing, Parcel
from mophpc.run.arenas import ArenaPool
from mophpc.run.carrier import Carrier
from mophpc.schedule import make_plan, stops
from mophpc.schedule.orders import whole


def make_pool() -> tuple[ArenaPool, list[int]]:
    made: list[int] = []

    def allocate(nbytes: int):
        made.append(nbytes)
        return np.zeros(nbytes, dtype=np.uint8)

    return ArenaPool(allocate), made


def test_memory_that_came_back_is_used_again():
    pool, made = make_pool()
    for _ in range(5):
        arenas = [pool.take(100), pool.take(100)]
        assert not np.shares_memory(*arenas)
        for arena in arenas:
            pool.give_back(arena)
    assert made == [100, 100]
    assert pool.most == 2


def test_the_smallest_that_fits_is_used():
    pool, made = make_pool()
    for arena in [pool.take(n) for n in (1000, 100, 500)]:
        pool.give_back(arena)
    assert len(pool.take(90)) == 90
    assert len(pool.take(400)) == 400
    assert len(pool.take(900)) == 900
    assert made == [1000, 100, 500]


def test_memory_that_is_too_small_makes_room():
    pool, made = make_pool()
    pool.give_back(pool.take(100))
    pool.take(200)
    assert made == [100, 200]
    assert pool.most == 1


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 60))
def test_there_are_never_more_buffers_than_arenas_were_held_together(seed, held, turns):
    rng = random.Random(seed)
    pool, _ = make_pool()
    lent: list = []
    most = 0
    for _ in range(turns):
        if lent and (len(lent) == held or rng.random() < 0.5):
            pool.give_back(lent.pop(rng.randrange(len(lent))))
        else:
            lent.append(pool.take(rng.choice((1, 10, 10, 300, 5000))))
            lent[-1][:] = len(lent)
        most = max(most, len(lent))
    assert pool.most == most
    for i, arena in enumerate(lent):
        assert not any(np.shares_memory(arena, other) for other in lent[i + 1 :])


def test_a_state_that_the_plan_does_not_know_is_refused():
    plan = make_plan("round-robin", num_configs=2, num_shards=2, num_ranks=2, num_epochs=1)
    own = stops(plan, 1)
    expected = next(stop for stop in own if stop.receive is not None)
    assert expected.receive is not None
    world = LocalWorld(2)
    pool, _ = make_pool()
    carrier = Carrier(
        LocalTransport(world, 1),
        nbytes=lambda config_id, step: 10,
        allocate=lambda n: np.zeros(n, dtype=np.uint8),
        lookahead=3,
        checked=False,
        events=EventLog(None, 1, 0.0),
        check=lambda: None,
    )
    carrier.tell(whole(plan, 1))
    carrier.advance()
    other = Parcel(1 - expected.visit.config_id, 1, pool.take(10))
    Outgoing(LocalTransport(world, 0), other, 1, expected.receive.tag)
    with pytest.raises(HopError, match="the plan says config"):
        carrier.advance()
