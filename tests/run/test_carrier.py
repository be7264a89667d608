"""Memory of arenas, reused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mophpc.errors import HopError, UnreachableError
from mophpc.events import EventLog
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.parcel import Outgoing, Parcel
from mophpc.run.rank import carrier as carrying
from mophpc.run.rank.arenas import ArenaPool
from mophpc.run.rank.carrier import Carrier
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


# Stops, and ranks that go on without another.


class Pair:
    """Two ranks and a config that hops between them, as a carrier of each sees it."""

    def __init__(self, *, keeps: bool = False) -> None:
        world = LocalWorld(2)
        # With 2 shards and 2 epochs each config leaves a rank, stays there, and leaves again.
        self.plan = make_plan("round-robin", num_configs=2, num_shards=2, num_ranks=2, num_epochs=2)
        self.acks: list[tuple[int, int, int]] = []
        self.ranks = [self._carrier(LocalTransport(world, rank)) for rank in range(2)]
        self.at = [0, 0]
        for rank, carrier in enumerate(self.ranks):
            carrier.tell(whole(self.plan, rank))
            if keeps:
                carrier.acknowledge = lambda *ack: self.acks.append(ack)

    def _carrier(self, transport: LocalTransport) -> Carrier:
        return Carrier(
            transport,
            nbytes=lambda config_id, step: 10,
            allocate=lambda n: np.zeros(n, dtype=np.uint8),
            lookahead=3,
            checked=False,
            events=EventLog(None, transport.rank, 0.0),
            check=lambda: None,
        )

    def turn(self) -> None:
        for _ in range(3):
            for carrier in self.ranks:
                carrier.advance()

    def visit(self, rank: int) -> Parcel:
        """Make the rank's next visit; return the state that was trained."""
        carrier = self.ranks[rank]
        stop = carrier.next_stop(self.at[rank])
        assert stop is not None
        parcel = carrier.obtain(self.at[rank], 0.0)
        assert parcel is not None
        parcel.step += 1
        parcel.arena[:] = 10 * parcel.config_id + parcel.step
        carrier.pass_on(stop, parcel)
        self.at[rank] += 1
        return parcel


def found(parcels: list[Parcel]) -> set[tuple[int, int]]:
    for parcel in parcels:
        assert set(parcel.arena.tolist()) == {10 * parcel.config_id + parcel.step}
    return {(parcel.config_id, parcel.step) for parcel in parcels}


def test_a_stop_finds_every_state_wherever_it_is():
    pair = Pair()
    pair.visit(0)
    pair.visit(1)
    leaving = [pair.ranks[rank].take_all(receives=False) for rank in range(2)]
    both = [found(here) | found(out) for here, out in leaving]
    assert both in ([{(0, 1)}, {(1, 1)}], [{(1, 1)}, {(0, 1)}])
    pair.turn()  # each is taken, by who had posted its receive
    arrived = [pair.ranks[rank].take_all() for rank in range(2)]
    assert [found(here) for here, _ in arrived] == both[::-1]
    for carrier, (here, out) in zip(pair.ranks, arrived, strict=True):
        assert out == []
        for parcel in here:
            carrier.free(parcel)
        assert carrier.take_all() == ([], [])


def test_a_state_is_fetched_though_it_is_not_its_turn():
    pair = Pair()
    parcel = pair.visit(0)
    wanted = (parcel.config_id, 1)
    other = pair.ranks[1]
    other._queue = type(other._queue)([], 0, 3)  # the rank may take no arena: nothing is posted
    assert not pair.ranks[0].cancel()
    for _ in range(2):  # it may be asked twice
        assert other.fetch(*wanted)
        assert len(other._incoming) == 1
    other.advance()
    here, _ = other.take_all()
    assert found(here) == {wanted}
    other.free(here[0])
    assert other.fetch(9, 9)  # nothing to do here for one that never comes: all is told


def test_a_copy_is_kept_until_another_rank_keeps_a_newer_one():
    pair = Pair(keeps=True)
    first = pair.visit(0)
    pair.visit(1)
    pair.turn()
    kept = [found(pair.ranks[rank].take_all(receives=False)[1]) for rank in range(2)]
    config_id = first.config_id
    assert kept[0] == {(config_id, 1)}
    assert pair.acks == []
    pair.ranks[0].let_go(config_id, 0)  # of an earlier visit
    assert found(pair.ranks[0].take_all(receives=False)[1]) == {(config_id, 1)}
    lent = len(pair.ranks[0].pool._lent)
    pair.ranks[0].let_go(config_id, 1)
    assert pair.ranks[0].take_all(receives=False)[1] == []
    assert len(pair.ranks[0].pool._lent) == lent - 1


def test_copies_do_not_pile_up():
    pair = Pair(keeps=True)
    for step in range(4):
        for rank in range(2):
            pair.visit(rank)
        pair.turn()
        for source, config_id, before in pair.acks:
            pair.ranks[source].let_go(config_id, before)
        pair.acks.clear()
        for carrier in pair.ranks:
            assert len(carrier._retained) <= 2
        if step == 3:
            for carrier in pair.ranks:
                assert not carrier._retained
                assert not carrier.pool._lent
                assert not carrier._came


def test_a_state_that_cannot_be_sent_stays(monkeypatch):
    pair = Pair(keeps=True)

    def fails(*given, **named):
        raise UnreachableError("MPI: the rank has died", 1)

    monkeypatch.setattr(carrying, "Outgoing", fails)
    with pytest.raises(UnreachableError):
        pair.visit(0)
    here, leaving = pair.ranks[0].take_all(receives=False)
    assert len(here) == 1
    assert {parcel.step for parcel in here} == {1}
    assert leaving == []
