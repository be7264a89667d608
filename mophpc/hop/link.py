"""What a hop costs here: measured with hops between all ranks before the first visit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from mophpc.hop.collectives import Group
from mophpc.hop.parcel import Incoming, Outgoing, Parcel
from mophpc.hop.transport import Buffer, Transport, wait_until

TINY_BYTES = 64
"""State of the hops that measure latency."""
LEAST_BYTES, MOST_BYTES = 1 << 20, 64 << 20
"""State of the hops that measure bandwidth: one message, and not all of it latency."""
FREE_BYTES_PER_S = 1e12
"""Bandwidth where no hop leaves a rank: no state takes a while then, and JSON has no infinity."""

_TAG = 0  # no other hop is under way: visits begin later


@dataclass(frozen=True, slots=True)
class Link:
    """What a hop between two ranks costs while all ranks hop."""

    latency_s: float
    """Seconds of a hop of hardly any state, the polite waiting for it included."""
    bandwidth_bytes_per_s: float
    """Bytes of state that follow in a second."""

    def hop_s(self, nbytes: int) -> float:
        """Return the seconds of a hop of `nbytes` of state."""
        return self.latency_s + nbytes / self.bandwidth_bytes_per_s

    def to_json(self) -> dict[str, float]:
        """Return plain values, to be shared with all ranks."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Link:
        """Read what `to_json` gave."""
        return cls(**value)


def measure_link(transport: Transport, group: Group, nbytes: int, *, rounds: int = 3) -> Link:
    """Collective. Send a state around the ring of ranks; return what its slowest hop costs.

    In every round each rank sends to the next one and receives from the one before, so that ranks
    that share a link measure their share of it. Each rank takes its median over the rounds. The
    large states are sent `rounds` + 1 times.

    Args:
        transport: that of the visits, with no hop under way.
        group: its ranks.
        nbytes: bytes of a typical state; held within `LEAST_BYTES` and `MOST_BYTES`.
        rounds: how often each hop is timed.

    Raises:
        HopError: a message was lost or mixed up.
    """
    if group.size == 1:
        return Link(0.0, FREE_BYTES_PER_S)
    size = min(max(nbytes, LEAST_BYTES), MOST_BYTES)
    ring = Ring(transport, group, size)
    # A rank that comes late delays those after it, each once and one round after the other; so
    # after a round for each rank, all go on together.
    tiny_s = ring.time(TINY_BYTES, warm_up=group.size, rounds=rounds)
    large_s = ring.time(size, warm_up=1, rounds=rounds)
    found = group.gather([tiny_s, large_s])
    slowest = [max(column) for column in zip(*found, strict=True)] if found else None
    latency_s, large_s = group.share(slowest)
    # Where a hop is nearly all latency, noise could make the rest of it nothing, or less.
    return Link(latency_s, size / max(large_s - latency_s, large_s / 2))


class Ring:
    """Hops of all ranks at once, each to the next rank.

    Args:
        transport: that of the visits, with no hop under way.
        group: its ranks, of which there are two at least.
        most_bytes: the largest state.
    """

    def __init__(self, transport: Transport, group: Group, most_bytes: int) -> None:
        self._transport = transport
        self._group = group
        # Both are written to: memory is only there once it has been touched.
        self._own: Buffer = np.full(most_bytes, 1, dtype=np.uint8)
        self._arena: Buffer = np.full(most_bytes, 2, dtype=np.uint8)
        self._step = 0

    def time(self, nbytes: int, *, warm_up: int, rounds: int) -> float:
        """Collective. Return the median seconds of `rounds` hops, after some that do not count."""
        return median([self._round(nbytes) for _ in range(warm_up + rounds)][warm_up:])

    def exposed(self, nbytes: int, compute: Callable[[Callable[[], bool]], None]) -> float:
        """Collective. Compute while a hop is under way; return the seconds that it took longer.

        Args:
            nbytes: of state.
            compute: is given a function that lets the hop progress and tells whether bytes flow.
        """
        self._group.barrier()
        outgoing, incoming = self._begin(nbytes)

        def step() -> bool:
            outgoing.test()
            incoming.test()
            return outgoing.flows or incoming.flows

        compute(step)
        begin_s = time.perf_counter()
        self._end(outgoing, incoming)
        return time.perf_counter() - begin_s

    def _round(self, nbytes: int) -> float:
        begin_s = time.perf_counter()
        outgoing, incoming = self._begin(nbytes)
        self._end(outgoing, incoming)
        return time.perf_counter() - begin_s

    def _begin(self, nbytes: int) -> tuple[Outgoing, Incoming]:
        rank, size = self._transport.rank, self._transport.size
        incoming = Incoming(self._transport, self._arena[:nbytes], (rank - 1) % size, _TAG)
        parcel = Parcel(0, self._step, self._own[:nbytes])
        return Outgoing(self._transport, parcel, (rank + 1) % size, _TAG), incoming

    def _end(self, outgoing: Outgoing, incoming: Incoming) -> None:
        def done() -> bool:
            sent, received = outgoing.test(), incoming.test()  # both, so that both progress
            return sent and received

        wait_until(done, self._group.check, lambda: outgoing.flows or incoming.flows)
        incoming.parcel(0, self._step)  # the ranks are in step
        self._step += 1
