"""A config's state on its way from rank 0 to rank 1."""

from __future__ import annotations

import numpy as np
import pytest
from hop_testing import all_well, in_threads, noise

from mophpc.errors import HopError
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.parcel import FIXED_BYTES, HEADER_BYTES, INLINE_BYTES, Incoming, Outgoing, Parcel
from mophpc.hop.transport import AGAIN, HOPS, RESTS, wait_until

CHUNK = 64


def hop(parcel: Parcel, run, *, checked: bool = False) -> None:
    """Send a parcel to rank 1, which expects it, and compare all that both ends know."""
    arena = parcel.arena.copy()

    def body(transport):
        if transport.rank == 0:
            sent = Outgoing(transport, parcel, 1, 7, checked=checked, chunk_bytes=CHUNK)
            wait_until(sent.test)
            assert (parcel.arena == arena).all()
            return sent.nbytes, sent.header_nbytes
        if transport.rank > 1:
            return None
        target = np.full(len(arena), 0xEE, dtype=np.uint8)
        incoming = Incoming(transport, target, 0, 7, CHUNK)
        wait_until(incoming.test)
        got = incoming.parcel(parcel.config_id, parcel.step)
        assert (got.config_id, got.step) == (parcel.config_id, parcel.step)
        assert got.diverged == parcel.diverged
        assert got.rest == (b"" if parcel.diverged else parcel.rest)
        assert got.arena is target
        expected = np.full(len(arena), 0xEE, dtype=np.uint8) if parcel.diverged else arena
        assert (target == expected).all()
        return incoming.nbytes, incoming.header_nbytes

    separate = 0 if parcel.diverged or len(parcel.rest) <= INLINE_BYTES else len(parcel.rest)
    inline = 0 if parcel.diverged or separate else len(parcel.rest)
    nbytes = (0 if parcel.diverged else len(arena)) + separate
    for counted in run(body):
        assert counted in ((nbytes, FIXED_BYTES + inline), None)
    assert FIXED_BYTES + inline <= HEADER_BYTES


class Contract:
    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 1])
    def test_an_arena_of_any_size_arrives_whole(self, run, size):
        hop(Parcel(3, 5, noise(size, size), b"rest"), run)

    @pytest.mark.parametrize(
        "size", [0, 1, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 5000, 100_000]
    )
    def test_a_rest_of_any_size_arrives_whole(self, run, size):
        hop(Parcel(3, 5, noise(1, 200), noise(2, size).tobytes()), run)

    @pytest.mark.parametrize("rest", [0, 10_000])
    def test_of_a_diverged_config_only_the_header_travels(self, run, rest):
        hop(Parcel(3, 5, noise(1, 200), bytes(rest), diverged=True), run)

    def test_large_numbers_fit_the_header(self, run):
        hop(Parcel(2**32 - 1, 2**64 - 1, noise(1, 10)), run)

    @pytest.mark.parametrize("size", [0, 1, CHUNK, 5 * CHUNK + 1])
    @pytest.mark.parametrize("rest", [0, INLINE_BYTES, INLINE_BYTES + 1])
    def test_a_checked_state_arrives_whole(self, run, size, rest):
        hop(Parcel(3, 5, noise(size, size), noise(2, rest).tobytes()), run, checked=True)

    def test_a_diverged_config_may_be_checked(self, run):
        hop(Parcel(3, 5, noise(1, 200), bytes(5000), diverged=True), run, checked=True)

    @pytest.mark.parametrize("rest", [10, INLINE_BYTES + 1])
    @pytest.mark.parametrize("part", ["first chunk", "last chunk", "rest"])
    def test_a_damaged_state_is_asked_for_once_more(self, run, part, rest):
        whole = Parcel(3, 5, noise(1, 3 * CHUNK + 1), noise(2, rest).tobytes())

        def body(transport):
            if transport.rank == 0:
                damaging = Damaging(transport, part, times=1)
                sent = Outgoing(damaging, whole, 1, 7, checked=True, chunk_bytes=CHUNK)
                wait_until(sent.test)
                assert damaging.times == 0
            elif transport.rank == 1:
                target = np.zeros(len(whole.arena), np.uint8)
                incoming = Incoming(transport, target, 0, 7, CHUNK)
                wait_until(incoming.test)
                got = incoming.parcel(3, 5)
                assert (got.arena == whole.arena).all()
                assert got.rest == whole.rest

        run(body)

    def test_many_small_hops_of_one_config(self, run):
        def body(transport):
            if transport.rank > 1:
                return
            arena = np.zeros(100, np.uint8)
            for step in range(200):
                if step % 2 == transport.rank:
                    arena[:] = step
                    parcel = Parcel(0, step, arena, bytes([step]))
                    end = Outgoing(transport, parcel, 1 - transport.rank, 7, checked=step % 3 == 0)
                    wait_until(end.test)
                else:
                    incoming = Incoming(transport, arena, 1 - transport.rank, 7)
                    wait_until(incoming.test)
                    assert incoming.parcel(0, step).rest == bytes([step])
                    assert (arena == step).all()

        run(body)


class Damaging:
    """A transport that flips a bit of some message, a number of times."""

    def __init__(self, transport, part: str, times: int) -> None:
        self.rank, self.size, self.times = transport.rank, transport.size, times
        self.irecv = transport.irecv
        self._transport = transport
        self._part = part
        self._chunks = 0

    def isend(self, buffer, dest, tag, channel):
        header = bytes(buffer[:4]) == b"MOPH"
        self._chunks += channel in (HOPS, AGAIN) and not header
        meant = {
            "header": header,
            "first chunk": not header and self._chunks == 1,
            "last chunk": not header and len(buffer) == 1,
            "rest": channel == RESTS or (header and len(buffer) > FIXED_BYTES),
            "all": not header,
        }[self._part]
        if meant and self.times > 0 and len(buffer):
            self.times -= 1
            buffer = buffer.copy()
            buffer[8 if self._part == "header" else -1] ^= 1
        return self._transport.isend(buffer, dest, tag, channel)


class TestLocal(Contract):
    @pytest.fixture
    def run(self):
        def run(body):
            outcomes = in_threads(2, body)
            all_well(outcomes)
            return outcomes

        return run


@pytest.mark.mpi(min_size=2)
class TestMpi(Contract):
    @pytest.fixture
    def run(self, comm):
        from mophpc.hop.mpi import MpiTransport

        transport = MpiTransport(comm)
        return lambda body: [body(transport)]


def ends():
    world = LocalWorld(2)
    return LocalTransport(world, 0), LocalTransport(world, 1)


def test_receives_posted_ahead_are_told_apart_by_their_tags():
    source, dest = ends()
    parcels = [Parcel(n, n, noise(n, 100 + n), bytes([n]) * 6000 * (n % 2)) for n in range(4)]
    incoming = [Incoming(dest, np.zeros(100 + n, np.uint8), 0, n, CHUNK) for n in range(4)]
    sent = [Outgoing(source, parcels[n], 1, n, chunk_bytes=CHUNK) for n in (2, 0, 3, 1)]
    for _ in range(3):
        for end in (*incoming, *sent):
            end.test()
    assert all(end.test() for end in (*incoming, *sent))
    for n, end in enumerate(incoming):
        got = end.parcel(n, n)
        assert (got.arena == parcels[n].arena).all()
        assert got.rest == parcels[n].rest


def test_a_parcel_is_on_its_way_until_the_receiver_has_posted():
    source, dest = ends()
    sent = Outgoing(source, Parcel(0, 1, noise(0, 100)), 1, 0, chunk_bytes=CHUNK)
    assert not sent.test()
    incoming = Incoming(dest, np.zeros(100, np.uint8), 0, 0, CHUNK)
    assert sent.test()
    assert incoming.test()


def test_a_separate_rest_is_waited_for():
    source, dest = ends()
    incoming = Incoming(dest, np.zeros(10, np.uint8), 0, 0, CHUNK)
    sent = Outgoing(
        source, Parcel(0, 1, noise(0, 10), bytes(INLINE_BYTES + 1)), 1, 0, chunk_bytes=CHUNK
    )
    assert not sent.test()  # the receive of the rest is posted when its length is known
    assert incoming.test()
    assert sent.test()


@pytest.mark.parametrize(
    ("config", "step", "message"),
    [
        (4, 5, "rank 0 sent config 3 before step 5; the plan says config 4 before step 5"),
        (3, 6, "rank 0 sent config 3 before step 5; the plan says config 3 before step 6"),
    ],
)
def test_another_config_s_or_step_s_state_is_refused(config, step, message):
    source, dest = ends()
    incoming = Incoming(dest, np.zeros(10, np.uint8), 0, 0, CHUNK)
    Outgoing(source, Parcel(3, 5, noise(0, 10)), 1, 0, chunk_bytes=CHUNK)
    assert incoming.test()
    with pytest.raises(HopError, match=message):
        incoming.parcel(config, step)


@pytest.mark.parametrize("sent", [9, CHUNK, 3 * CHUNK - 1])
def test_a_state_of_another_size_is_refused_and_not_waited_for(sent):
    source, dest = ends()
    expected = 3 * CHUNK
    incoming = Incoming(dest, np.zeros(expected, np.uint8), 0, 0, CHUNK)
    Outgoing(source, Parcel(3, 5, noise(0, sent)), 1, 0, chunk_bytes=CHUNK)
    message = f"rank 0 sent {sent} bytes of config 3, whose arena has {expected}"
    with pytest.raises(HopError, match=message):
        _receive(incoming)


def _receive(incoming: Incoming) -> None:
    for _ in range(3):
        if incoming.test():
            incoming.parcel(3, 5)
            return


@pytest.mark.parametrize("head", [b"HTTP", b"MOPH\x01\x00", b""])
def test_what_is_no_hop_of_this_version_is_refused(head):
    source, dest = ends()
    incoming = Incoming(dest, np.zeros(0, np.uint8), 0, 0, CHUNK)
    source.isend(np.frombuffer(head.ljust(FIXED_BYTES, b"\0"), np.uint8), 1, 0, HOPS)
    with pytest.raises(HopError, match="rank 0 sent something that is no hop of this version"):
        _receive(incoming)


def test_a_state_that_is_damaged_twice_is_an_error_that_says_where():
    source, dest = ends()
    incoming = Incoming(dest, np.zeros(10, np.uint8), 0, 0, CHUNK)
    damaging = Damaging(source, "all", times=100)
    sent = Outgoing(damaging, Parcel(3, 5, noise(0, 10)), 1, 0, checked=True, chunk_bytes=CHUNK)
    assert not incoming.test()
    message = "config 3 before step 5 was damaged on its way from rank 0 to rank 1, twice"
    assert sent.test()
    with pytest.raises(HopError, match=message):
        incoming.test()


def test_a_damage_that_nobody_asked_to_find_stays():
    source, dest = ends()
    arena = np.zeros(10, np.uint8)
    incoming = Incoming(dest, arena, 0, 0, CHUNK)
    sent = Outgoing(Damaging(source, "all", 1), Parcel(3, 5, arena + 1), 1, 0)
    assert incoming.test()
    assert sent.test()
    assert arena.tolist() == [1] * 9 + [0]


@pytest.mark.parametrize("checked", [False, True])
def test_a_damaged_header_is_refused_and_not_waited_for(checked):
    source, dest = ends()
    incoming = Incoming(dest, np.zeros(10, np.uint8), 0, 0, CHUNK)
    parcel = Parcel(3, 5, noise(0, 10), bytes(INLINE_BYTES + 1))
    Outgoing(Damaging(source, "header", 1), parcel, 1, 0, checked=checked, chunk_bytes=CHUNK)
    with pytest.raises(HopError, match="header of a hop was damaged on its way from rank 0"):
        incoming.test()


def test_a_receiver_that_comes_late_is_waited_for():
    source, dest = ends()
    parcel = Parcel(3, 5, noise(0, 3 * CHUNK), bytes(INLINE_BYTES + 1))
    sent = Outgoing(source, parcel, 1, 0, checked=True, chunk_bytes=CHUNK)
    for _ in range(100):
        assert not sent.test()
    incoming = Incoming(dest, np.zeros(3 * CHUNK, np.uint8), 0, 0, CHUNK)
    assert not sent.test()  # the answer is missing
    assert incoming.test()
    assert sent.test()
