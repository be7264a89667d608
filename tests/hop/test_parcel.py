"""A config's state on its way from rank 0 to rank 1."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hop_testing import all_well, in_threads, noise

from mophpc.errors import HopError
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.parcel import HEADER_BYTES, Incoming, Parcel, post_send
from mophpc.hop.transport import HOPS, wait_until

CHUNK = 64
FIXED = struct.calcsize("<4sHHIQQQ")
INLINE = HEADER_BYTES - FIXED
"""Longest rest that fits into the header."""


def hop(parcel: Parcel, run) -> None:
    """Send a parcel to rank 1, which expects it, and compare all that both ends know."""
    arena = parcel.arena.copy()

    def body(transport):
        if transport.rank == 0:
            sent = post_send(transport, parcel, 1, 7, CHUNK)
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

    separate = 0 if parcel.diverged or len(parcel.rest) <= INLINE else len(parcel.rest)
    inline = 0 if parcel.diverged or separate else len(parcel.rest)
    nbytes = (0 if parcel.diverged else len(arena)) + separate
    for counted in run(body):
        assert counted in ((nbytes, FIXED + inline), None)
    assert FIXED + inline <= HEADER_BYTES


class Contract:
    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 1])
    def test_an_arena_of_any_size_arrives_whole(self, run, size):
        hop(Parcel(3, 5, noise(size, size), b"rest"), run)

    @pytest.mark.parametrize("size", [0, 1, INLINE - 1, INLINE, INLINE + 1, 5000, 100_000])
    def test_a_rest_of_any_size_arrives_whole(self, run, size):
        hop(Parcel(3, 5, noise(1, 200), noise(2, size).tobytes()), run)

    @pytest.mark.parametrize("rest", [0, 10_000])
    def test_of_a_diverged_config_only_the_header_travels(self, run, rest):
        hop(Parcel(3, 5, noise(1, 200), bytes(rest), diverged=True), run)

    def test_large_numbers_fit_the_header(self, run):
        hop(Parcel(2**32 - 1, 2**64 - 1, noise(1, 10)), run)


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
    sent = [post_send(source, parcels[n], 1, n, CHUNK) for n in (2, 0, 3, 1)]
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
    sent = post_send(source, Parcel(0, 1, noise(0, 100)), 1, 0, CHUNK)
    assert not sent.test()
    incoming = Incoming(dest, np.zeros(100, np.uint8), 0, 0, CHUNK)
    assert sent.test()
    assert incoming.test()


def test_a_separate_rest_is_waited_for():
    source, dest = ends()
    incoming = Incoming(dest, np.zeros(10, np.uint8), 0, 0, CHUNK)
    sent = post_send(source, Parcel(0, 1, noise(0, 10), bytes(INLINE + 1)), 1, 0, CHUNK)
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
    post_send(source, Parcel(3, 5, noise(0, 10)), 1, 0, CHUNK)
    assert incoming.test()
    with pytest.raises(HopError, match=message):
        incoming.parcel(config, step)


@pytest.mark.parametrize("sent", [9, CHUNK, 3 * CHUNK - 1])
def test_a_state_of_another_size_is_refused_and_not_waited_for(sent):
    source, dest = ends()
    expected = 3 * CHUNK
    incoming = Incoming(dest, np.zeros(expected, np.uint8), 0, 0, CHUNK)
    post_send(source, Parcel(3, 5, noise(0, sent)), 1, 0, CHUNK)
    message = f"rank 0 sent {sent} bytes of config 3, whose arena has {expected}"
    with pytest.raises(HopError, match=message):
        _receive(incoming)


def _receive(incoming: Incoming) -> None:
    for _ in range(3):
        if incoming.test():
            incoming.parcel(3, 5)
            return


@pytest.mark.parametrize("head", [b"HTTP", b"MOPH\x02\x00", b""])
def test_what_is_no_hop_of_this_version_is_refused(head):
    source, dest = ends()
    incoming = Incoming(dest, np.zeros(0, np.uint8), 0, 0, CHUNK)
    source.isend(np.frombuffer(head.ljust(FIXED, b"\0"), np.uint8), 1, 0, HOPS)
    with pytest.raises(HopError, match="rank 0 sent something that is no hop of this version"):
        _receive(incoming)
