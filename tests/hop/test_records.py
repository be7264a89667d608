"""Records on their way to rank 0."""

from __future__ import annotations

import json

import pytest
from hop_testing import all_well, in_threads

from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.records import PIECE_BYTES, RecordReceiver, RecordSender
from mophpc.hop.transport import REPORTS, wait_until


def record_of_length(length: int, number: int = 0):
    empty = json.dumps({"n": number, "pad": ""}, separators=(",", ":"))
    return {"n": number, "pad": "x" * (length - len(empty))}


LENGTHS = [n * (PIECE_BYTES - 1) + d for n in (1, 2) for d in (-1, 0, 1)] + [50, 100_000]


class Contract:
    def test_records_of_any_length_arrive_in_order_from_every_rank(self, run):
        def body(transport):
            records = [record_of_length(n, i) for i, n in enumerate(LENGTHS * 2)]
            last = {"n": len(records), "text": "ü\0\n", "last": True}
            if transport.rank > 0:
                sender = RecordSender(transport, REPORTS)
                for record in [*records, last]:
                    sender.send(record | {"rank": transport.rank})
                wait_until(sender.test)
                return
            found: dict[int, list] = {rank: [] for rank in range(1, transport.size)}

            def handle(record):
                found[record.pop("rank")].append(record)

            receiver = RecordReceiver(transport, REPORTS, range(1, transport.size), handle)

            def all_here():
                receiver.test()
                return all(len(own) > len(records) for own in found.values())

            wait_until(all_here)
            assert all(own == [*records, last] for own in found.values())

        run(body)


class TestLocal(Contract):
    @pytest.fixture(params=[1, 2, 4])
    def run(self, request):
        return lambda body: all_well(in_threads(request.param, body))


@pytest.mark.mpi(min_size=2)
class TestMpi(Contract):
    @pytest.fixture
    def run(self, comm):
        from mophpc.hop.mpi import MpiTransport

        transport = MpiTransport(comm)
        return lambda body: body(transport)


def test_a_sender_does_not_wait_for_rank_0():
    sender = RecordSender(LocalTransport(LocalWorld(2), 1), REPORTS)
    sender.send({"a": 1})
    assert not sender.test()


def test_after_the_last_record_no_receive_is_left_open():
    world = LocalWorld(2)
    found: list[dict] = []
    receiver = RecordReceiver(LocalTransport(world, 0), REPORTS, [1], found.append)
    sender = RecordSender(LocalTransport(world, 1), REPORTS)
    sender.send({"last": True})
    sender.send({"late": True})
    receiver.test()
    receiver.test()
    assert found == [{"last": True}]
    assert not sender.test()
