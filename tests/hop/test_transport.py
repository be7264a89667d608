"""What every transport must do: one suite, run in threads and under MPI."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hop_testing import all_well, data, in_threads, noise, wait

from mophpc.errors import HopError, UnreachableError
from mophpc.hop.local import LocalTransport, LocalWorld, PeerError
from mophpc.hop.transport import CONTROL, HOPS, NUM_CHANNELS, REPORTS, wait_until


class Contract:
    """Each rank sends to the next one and receives from the one before."""

    @pytest.mark.parametrize("size", [0, 1, 4095, 1 << 20])
    def test_bytes_arrive_as_they_were_sent(self, run, size):
        def body(transport):
            after, before = _neighbours(transport)
            buffer = np.full(size, 0xEE, dtype=np.uint8)
            receive = transport.irecv(buffer, before, 3, HOPS)
            wait(receive, transport.isend(noise(transport.rank, size), after, 3, HOPS))
            assert (buffer == noise(before, size)).all()
            assert receive.test()  # once done, always done

        run(body)

    def test_messages_of_one_kind_keep_their_order(self, run):
        def body(transport):
            after, before = _neighbours(transport)
            buffers = [data(0, 0) for _ in range(20)]
            receives = [transport.irecv(b, before, 5, HOPS) for b in buffers[:10]]
            sends = [transport.isend(data(n, before), after, 5, HOPS) for n in range(20)]
            receives += [transport.irecv(b, before, 5, HOPS) for b in buffers[10:]]
            wait(*receives, *sends)
            assert [int(b[0]) for b in buffers] == list(range(20))

        run(body)

    def test_tags_and_channels_are_kept_apart(self, run):
        def body(transport):
            after, before = _neighbours(transport)
            kinds = [(tag, channel) for tag in (0, 1, 32767) for channel in range(NUM_CHANNELS)]
            buffers = {kind: data(99) for kind in kinds}
            receives = [transport.irecv(buffers[kind], before, *kind) for kind in reversed(kinds)]
            sends = [transport.isend(data(i), after, *kind) for i, kind in enumerate(kinds)]
            wait(*receives, *sends)
            assert [int(buffers[kind][0]) for kind in kinds] == list(range(len(kinds)))

        run(body)

    def test_a_shorter_message_fills_the_front(self, run):
        def body(transport):
            after, before = _neighbours(transport)
            buffer = data(9, 9, 9, 9)
            receive = transport.irecv(buffer, before, 0, REPORTS)
            wait(receive, transport.isend(data(1, 2), after, 0, REPORTS))
            assert buffer.tolist() == [1, 2, 9, 9]

        run(body)

    def test_sources_are_kept_apart(self, run):
        def body(transport):
            if transport.rank > 0:
                wait(transport.isend(data(transport.rank), 0, 1, CONTROL))
                return
            sources = range(transport.size - 1, 0, -1)
            buffers = {source: data(0) for source in sources}
            wait(*[transport.irecv(buffers[source], source, 1, CONTROL) for source in sources])
            assert all(int(buffer[0]) == source for source, buffer in buffers.items())

        run(body)

    def test_one_of_many_that_is_done_is_found(self, run):
        def body(transport):
            if transport.rank > 0:
                wait(transport.irecv(data(0), 0, 6, CONTROL))  # until rank 0 has looked
                wait(transport.isend(data(transport.rank), 0, 7, CONTROL))
                return
            sources = list(range(1, transport.size))
            buffers = [data(0) for _ in sources]
            receives = [
                transport.irecv(buffer, source, 7, CONTROL)
                for source, buffer in zip(sources, buffers, strict=True)
            ]
            assert transport.test_any(receives) is None
            wait(*[transport.isend(data(1), source, 6, CONTROL) for source in sources])
            found = []
            while receives:
                index = transport.test_any(receives)
                if index is not None:
                    del receives[index]
                    found.append(int(buffers.pop(index)[0]))
            assert sorted(found) == sources

        run(body)

    def test_a_part_of_a_larger_buffer_may_be_sent_and_received(self, run):
        def body(transport):
            after, before = _neighbours(transport)
            whole, target = noise(1, 300), np.zeros(300, dtype=np.uint8)
            receive = transport.irecv(target[100:200], before, 2, HOPS)
            wait(receive, transport.isend(whole[100:200], after, 2, HOPS))
            assert (target[100:200] == whole[100:200]).all()
            assert not target[:100].any()
            assert not target[200:].any()

        run(body)


def _neighbours(transport):
    return (transport.rank + 1) % transport.size, (transport.rank - 1) % transport.size


class TestLocal(Contract):
    @pytest.fixture(params=[2, 3])
    def run(self, request):
        return lambda body: all_well(in_threads(request.param, body))


@pytest.mark.mpi(min_size=2)
class TestMpi(Contract):
    @pytest.fixture
    def run(self, comm):
        from mophpc.hop.mpi import MpiTransport

        transport = MpiTransport(comm)
        assert (transport.rank, transport.size) == (comm.rank, comm.size)
        return lambda body: body(transport)

    def test_messages_of_the_user_s_program_are_never_matched(self, comm):
        from mophpc.hop.mpi import MpiTransport

        transport = MpiTransport(comm)
        after, before = _neighbours(transport)
        foreign = comm.Isend([data(7), 1, _byte()], after, 3)
        buffer = data(0)
        receive = transport.irecv(buffer, before, 3, HOPS)
        wait(transport.isend(data(5), after, 3, HOPS), receive)
        assert int(buffer[0]) == 5
        comm.Recv([buffer, 1, _byte()], before, 3)
        foreign.Wait()
        assert int(buffer[0]) == 7
        transport.close()

    def test_a_message_that_is_too_long_is_an_error(self, comm):
        from mophpc.hop.mpi import MpiTransport

        transport = MpiTransport(comm)
        if transport.rank == 0:
            receive = transport.irecv(data(0), 1, 4, HOPS)
            with pytest.raises(HopError, match="MPI: "):
                wait(receive)
        elif transport.rank == 1:
            wait(transport.isend(data(1, 2, 3), 0, 4, HOPS))

    def test_an_error_in_one_of_many_names_its_rank(self, comm):
        from mophpc.hop.mpi import MpiTransport

        transport = MpiTransport(comm)
        last = transport.size - 1
        if transport.rank == 0:
            open_ones = [transport.irecv(data(0), last, tag, HOPS) for tag in (4, 5, 6)]

            def look():
                return transport.test_any(open_ones) is not None

            with pytest.raises(UnreachableError, match=f"MPI: .*rank {last}") as caught:
                wait_until(look)
            assert caught.value.peer == last
            wait(transport.isend(data(1), last, 8, HOPS))
            wait(open_ones[0], open_ones[2])
        elif transport.rank == last:
            wait(transport.isend(data(1, 2, 3), 0, 5, HOPS))
            wait(transport.irecv(data(0), 0, 8, HOPS))
            wait(*[transport.isend(data(1), 0, tag, HOPS) for tag in (4, 6)])


def _byte():
    from mpi4py import MPI

    return MPI.BYTE


def _pair():
    world = LocalWorld(2)
    return LocalTransport(world, 0), LocalTransport(world, 1)


def test_a_local_send_is_done_only_when_its_receive_is_posted():
    source, dest = _pair()
    sends = [source.isend(data(n), 1, 0, HOPS) for n in (4, 5)]
    assert not any(send.test() for send in sends)
    buffer = data(0)
    receive = dest.irecv(buffer, 0, 0, HOPS)
    assert receive.test()
    assert [send.test() for send in sends] == [True, False]
    assert int(buffer[0]) == 4


def test_a_local_message_that_is_too_long_is_an_error():
    source, dest = _pair()
    dest.irecv(data(0), 0, 0, HOPS)
    with pytest.raises(HopError, match="a message of 3 bytes came where 1 were expected"):
        source.isend(data(1, 2, 3), 1, 0, HOPS)


def test_after_an_abort_every_rank_s_next_test_raises():
    source, dest = _pair()
    receive = dest.irecv(data(0), 0, 0, HOPS)
    assert not receive.test()
    source.abort(1)
    with pytest.raises(PeerError):
        receive.test()


def test_waiting_takes_little_of_a_processor():
    begin_s, used_s = time.perf_counter(), time.thread_time()
    wait_until(lambda: time.perf_counter() - begin_s > 0.3)
    assert time.thread_time() - used_s < 0.1


def test_waiting_ends_when_the_check_raises():
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_until(lambda: False, check)
    wait_until(lambda: True, check)  # what is done needs no check
