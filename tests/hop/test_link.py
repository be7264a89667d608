"""What a hop costs, measured between threads and under MPI."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from hop_testing import all_well, in_threads, wait

from mophpc.errors import InterruptError
from mophpc.hop import link as link_module
from mophpc.hop.collectives import Group
from mophpc.hop.link import LEAST_BYTES, Link, measure_link
from mophpc.hop.local import LocalTransport, LocalWorld, PeerError
from mophpc.hop.transport import HOPS


class Recording:
    """A transport that notes what is sent."""

    def __init__(self, transport):
        self.rank, self.size, self._transport = transport.rank, transport.size, transport
        self.sent: list[int] = []
        self.posted: list[int] = []

    def isend(self, buffer, dest, tag, channel):
        if channel == HOPS:
            self.sent.append(len(buffer))
            assert len(self.posted) >= len(self.sent)
        return self._transport.isend(buffer, dest, tag, channel)

    def irecv(self, buffer, source, tag, channel):
        if channel == HOPS:
            self.posted.append(len(buffer))
        return self._transport.irecv(buffer, source, tag, channel)

    def abort(self, status):
        self._transport.abort(status)


def check_sane(link):
    assert 0 < link.latency_s < 5
    assert 0 < link.bandwidth_bytes_per_s < math.inf


class Contract:
    def test_all_ranks_have_the_same_link_and_can_measure_again(self, run):
        def body(transport):
            group = Group(transport)
            for nbytes in (0, 3 << 20):
                link = measure_link(transport, group, nbytes)
                check_sane(link)
                if transport.size > 1:
                    assert link == Link.from_json(group.share(link.to_json()))

        run(body)

    def test_waiting_for_a_rank_that_comes_late_is_not_counted(self, run):
        def body(transport):
            group = Group(transport)
            group.barrier()
            time.sleep(2.0 if transport.rank == transport.size - 1 else 0.0)
            link = measure_link(transport, group, LEAST_BYTES, rounds=1)  # no median helps
            assert link.hop_s(LEAST_BYTES) < 1.0

        run(body)

    def test_nothing_is_left_for_the_hops_that_follow(self, run):
        def body(transport):
            measure_link(transport, Group(transport), LEAST_BYTES, rounds=2)
            after, before = (transport.rank + 1) % transport.size, transport.rank - 1
            buffer = np.zeros(9, dtype=np.uint8)
            receive = transport.irecv(buffer, before % transport.size, link_module._TAG, HOPS)
            own = np.full(9, transport.rank + 40, dtype=np.uint8)
            wait(receive, transport.isend(own, after, link_module._TAG, HOPS))
            assert (buffer == before % transport.size + 40).all()

        run(body)

    @pytest.mark.parametrize(("nbytes", "size"), [(5, 1), (3 << 19, 3 << 19), (1 << 50, 2 << 20)])
    def test_states_are_neither_tiny_nor_huge(self, run, monkeypatch, nbytes, size):
        monkeypatch.setattr(link_module, "MOST_BYTES", 2 << 20)

        def body(transport):
            recording = Recording(transport)
            measure_link(recording, Group(transport), nbytes, rounds=2)
            assert max(recording.sent) == max(size, LEAST_BYTES)
            assert recording.sent.count(max(recording.sent)) == 3

        run(body)


class TestLocal(Contract):
    @pytest.fixture(params=[2, 3, 7])
    def run(self, request):
        return lambda body: all_well(in_threads(request.param, body))


@pytest.mark.mpi(min_size=2)
class TestMpi(Contract):
    @pytest.fixture
    def run(self, comm):
        from mophpc.hop.mpi import MpiTransport

        transport = MpiTransport(comm)
        return lambda body: body(transport)


def test_alone_every_hop_is_free():
    transport = LocalTransport(LocalWorld(1), 0)
    link = measure_link(transport, Group(transport), 1 << 30)
    assert link.latency_s == 0.0
    assert link.hop_s(1 << 30) < 0.01
    assert json.loads(json.dumps(link.to_json(), allow_nan=False)) == link.to_json()


def test_a_hop_takes_its_latency_and_the_bytes():
    link = Link(0.5, 100.0)
    assert link.hop_s(0) == 0.5
    assert link.hop_s(200) == 2.5
    assert Link.from_json(link.to_json()) == link


def test_noise_makes_no_link_infinitely_fast(monkeypatch):
    seconds = {link_module.TINY_BYTES: 0.2, LEAST_BYTES: 0.1}
    monkeypatch.setattr(link_module.Ring, "time", lambda self, nbytes, **_: seconds[nbytes])

    def body(transport):
        return measure_link(transport, Group(transport), LEAST_BYTES)

    found = in_threads(2, body)
    all_well(found)
    assert found == [Link(0.2, LEAST_BYTES / 0.05)] * 2


def test_the_slowest_rank_decides(monkeypatch):
    def time_of(ring, nbytes, **_):
        rank = ring._transport.rank
        return 0.1 + rank / 10 if nbytes == link_module.TINY_BYTES else 9.0 - rank

    monkeypatch.setattr(link_module.Ring, "time", time_of)
    found = in_threads(3, lambda transport: measure_link(transport, Group(transport), 9 << 20))
    all_well(found)
    latency_s = 0.1 + 2 / 10
    assert found == [Link(latency_s, (9 << 20) / (9.0 - latency_s))] * 3


def test_a_signal_ends_the_waiting():
    def check():
        raise InterruptError("interrupted by SIGINT")

    transport = LocalTransport(LocalWorld(2), 0)
    with pytest.raises(InterruptError):
        measure_link(transport, Group(transport, check), 0)


def test_a_rank_that_fails_ends_the_waiting_of_the_others():
    def body(transport):
        if transport.rank == 1:
            raise ValueError("gone")
        measure_link(transport, Group(transport), 0)

    outcomes = in_threads(3, body)
    assert [type(outcome) for outcome in outcomes] == [PeerError, ValueError, PeerError]
