"""Clocks of the ranks, compared with rank 0's."""

from __future__ import annotations

import time

import pytest
from hop_testing import all_well, in_threads

from mophpc.hop.clock import Clock, compare_clocks
from mophpc.hop.collectives import Group

SKEWS = (0.0, 5.0, -2.5, 1000.0)


def check(found: Clock, skew: float) -> None:
    assert found.error_s >= 0.0
    assert abs(found.offset_s + skew) <= found.error_s + 1e-6
    assert found.error_s < 0.05


def test_offsets_are_found_within_their_error():
    def body(transport):
        skew = SKEWS[transport.rank]
        return compare_clocks(transport, Group(transport), lambda: time.perf_counter() + skew)

    outcomes = in_threads(len(SKEWS), body)
    all_well(outcomes)
    assert outcomes[0] == Clock(0.0, 0.0)
    for found, skew in zip(outcomes[1:], SKEWS[1:], strict=True):
        check(found, skew)


def test_one_rank_has_nobody_to_ask():
    assert in_threads(1, lambda t: compare_clocks(t, Group(t), time.perf_counter)) == [
        Clock(0.0, 0.0)
    ]


def test_twice_in_a_row_and_between_other_collectives():
    def body(transport):
        group = Group(transport)
        for turn in range(3):
            compare_clocks(transport, group, time.perf_counter)
            assert group.share({"turn": turn} if group.rank == 0 else None) == {"turn": turn}

    all_well(in_threads(3, body))


@pytest.mark.mpi(min_size=2)
def test_over_mpi(comm):
    from mophpc.hop.mpi import MpiTransport

    transport = MpiTransport(comm)
    skew = 3.0 * transport.rank
    found = compare_clocks(transport, Group(transport), lambda: time.time() + skew)
    if transport.rank:  # all ranks of the tests are on one host, with one clock
        check(found, skew)
    transport.close()
