"""Many hops leave nothing behind."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from mophpc.hop.parcel import Incoming, Outgoing, Parcel
from mophpc.hop.transport import wait_until

HOPS, WARM_UP = 10_000, 1000
NBYTES = 3000
MOST_GROWTH_BYTES = 4 << 20
"""A request of 400 bytes that is kept at every hop would be seen."""


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.mpi(min_size=2)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_ten_thousand_hops_take_no_memory(comm):
    from mophpc.hop.mpi import MpiTransport

    transport = MpiTransport(comm)
    if transport.rank > 1:
        return
    other = 1 - transport.rank
    arena = np.zeros(NBYTES, dtype=np.uint8)
    before = 0
    for step in range(HOPS):
        if step == WARM_UP:
            before = rss_bytes()
        checked = step % 4 == 0
        if step % 2 == transport.rank:
            arena[:] = step % 251
            rest = bytes(5000 if step % 100 < 2 else 10)
            end = Outgoing(transport, Parcel(7, step, arena, rest), other, 7, checked=checked)
            wait_until(end.test, flows=lambda end=end: end.flows)
        else:
            incoming = Incoming(transport, arena, other, 7)
            wait_until(incoming.test, flows=lambda incoming=incoming: incoming.flows)
            incoming.parcel(7, step)
            assert (arena == step % 251).all()
    assert rss_bytes() - before < MOST_GROWTH_BYTES
