"""Which device each rank trains on: chosen before MPI starts, agreed on after."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mophpc import experiment as settings
from mophpc.errors import LaunchError
from mophpc.hop.aware import gpu_aware
from mophpc.hop.collectives import Group
from mophpc.hop.transport import CONTROL, Buffer, Transport, wait_until
from mophpc.launcher import launched_local_rank, launched_ranks
from mophpc.run.ports import View
from mophpc.train.batches import Placing
from mophpc.train.device import CPU, Device, Memory, be_deterministic, choose_device, pattern

ROWS_SHARE = 0.5
"""Of a device's free memory, for rows, where nobody says; training needs the rest."""

DIRECT_BYTES = 4 << 20
"""Sent to try whether they arrive: as much as a chunk of a hop."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The device of a rank, how many ranks use it, and how many share a core."""

    device: Device = CPU
    sharing: int = 1
    crowding: float = 1.0
    """Ranks of this host for each core that they may use."""

    def placing(self, budget_bytes: int | None) -> Placing:
        """Return what puts rows on the device."""
        if budget_bytes is None:
            memory = self.device.memory
            free = 0 if memory is None else memory.free_bytes
            budget_bytes = int(ROWS_SHARE * free / self.sharing)
        return Placing(self.device, budget_bytes)

    def sends_directly(
        self,
        transport: Transport,
        group: Group,
        view: View,
        probe: Callable[[int], str] = gpu_aware,
    ) -> bool:
        """Collective. Return whether the MPI sends from the devices' memory; say so on rank 0.

        Args:
            transport: with no hop under way.
            group: its ranks.
            view: of rank 0.
            probe: tries it with the GPU of this index in a process of its own, where a crash is
                only an answer; returns `yes`, or why not.
        """
        memory = self.device.memory
        answer = "no: training is on the CPU" if memory is None else "yes"
        if memory is not None and self.device.kind != "twin":
            answer = "no: its ranks are threads of one process"
            if transport.takes_devices:
                answer = probe(self.device.where.index or 0)
        answers = group.share(group.gather(answer))
        if memory is not None and all(other == "yes" for other in answers):
            # Between these ranks, over the links that the states will take.
            right = _arrives(transport, group, memory)
            answers = group.share(group.gather("yes" if right else "no: other bytes arrived"))
        failed = [(rank, other) for rank, other in enumerate(answers) if other != "yes"]
        if group.rank == 0 and failed:
            rank, why = failed[0]
            why = why.removeprefix("no: ")
            view.note(f"note: states are staged through the host, as on rank {rank}, {why}")
        elif group.rank == 0:
            view.note("states are sent from device memory, as tried")
        return not failed


def _arrives(transport: Transport, group: Group, memory: Memory) -> bool:
    """Collective. Send a pattern from device memory to the next rank; return whether it came."""
    if group.size == 1:
        return True
    source, expected = pattern(memory, DIRECT_BYTES)
    got: Buffer = np.zeros(DIRECT_BYTES, dtype=np.uint8)
    rank, size = group.rank, group.size
    received = transport.irecv(got, (rank - 1) % size, 0, CONTROL)
    sent = transport.isend(source, (rank + 1) % size, 0, CONTROL)
    for request in (received, sent):
        wait_until(request.test, group.check)
    return np.array_equal(got, expected)


Chosen = Callable[[], Device]


def bind_device(wanted: settings.Device, local_rank: int) -> Chosen:
    """Choose this process's device now, and return what tells it, or raises why there is none."""
    try:
        device = choose_device(wanted.use, wanted.indices, local_rank)
    except LaunchError as error:
        failure = error

        def fail() -> Device:
            raise failure

        return fail
    if device.kind == "cuda" and wanted.deterministic:
        be_deterministic()
    return lambda: device


def agree_on_devices(group: Group, chosen: Chosen, view: View) -> Bound:
    """Collective. Return this rank's device; rank 0 says what the ranks train on.

    Raises:
        LaunchError: a rank has none, or they differ in kind; on all ranks.
    """
    device = group.attempt(chosen)
    device.use()
    host = socket.gethostname()
    found = group.gather([host, device.kind, device.name, device.identity, _own_cores()])
    counts, crowding = group.from_root(
        lambda: [
            _told([row[:4] for row in found], view),
            _crowding([(row[0], row[4]) for row in found]),
        ]
    )
    return Bound(device, counts[group.rank], crowding[group.rank])


def _own_cores() -> str:
    """Return a mask of the cores that this process may use, in hexadecimal digits."""
    if hasattr(os, "sched_getaffinity"):
        return f"{sum(1 << core for core in sorted(os.sched_getaffinity(0))):x}"
    return f"{(1 << (os.cpu_count() or 1)) - 1:x}"


def _crowding(ranks: Sequence[tuple[str, str]]) -> list[float]:
    """Return for each rank how many ranks of its host there are for each of their cores.

    Args:
        ranks: the host of each, and its mask of cores; launchers may give each its own.
    """
    cores: dict[str, int] = {}
    for host, mask in ranks:
        cores[host] = cores.get(host, 0) | int(mask, 16)
    counts = Counter(host for host, _ in ranks)
    return [counts[host] / max(1, cores[host].bit_count()) for host, _ in ranks]


def _told(ranks: Sequence[Sequence[str]], view: View) -> list[int]:
    """Say on rank 0 what the ranks train on; return how many ranks use each rank's device."""
    kinds = _grouped([kind for _, kind, _, _ in ranks])
    if len(kinds) > 1:
        text = " and ".join(f"{kind} on {_ranks(who)}" for kind, who in kinds.items())
        raise LaunchError(
            f"the ranks would not train on the same kind of device: {text}; give each a GPU, or "
            f"say device.use = 'cpu'"
        )
    (kind,) = kinds
    if kind == "cpu":
        return [1] * len(ranks)
    devices = _grouped([f"{host} {identity}" for host, _, _, identity in ranks])
    models = _grouped([name for _, _, name, _ in ranks])
    of = "1 rank" if len(ranks) == 1 else f"{len(ranks)} ranks"
    view.note(f"training on {', '.join(models)}: {len(devices)} for {of}")
    counts = [1] * len(ranks)
    for who in devices.values():
        for rank in who:
            counts[rank] = 1 if kind == "twin" else len(who)
    crowded = [who for who in devices.values() if len(who) > 1 and kind != "twin"]
    if crowded:
        shown = "; ".join(_ranks(who) for who in crowded[:4])
        more = f"; and {len(crowded) - 4} more" if len(crowded) > 4 else ""
        view.note(f"note: ranks that share a GPU, and take turns on it: {shown}{more}")
    return counts


def _grouped(values: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        found.setdefault(value, []).append(rank)
    return found


def _ranks(who: Sequence[int]) -> str:
    return f"rank {who[0]}" if len(who) == 1 else f"ranks {', '.join(map(str, who))}"


def local_rank_of(environ: Mapping[str, str], ask: Callable[[], int]) -> int:
    """Return a process's number on its host, from its launcher, or where it says none, from MPI.

    Args:
        environ: of the process.
        ask: starts MPI and returns the number; called only where there are other ranks.
    """
    told = launched_local_rank(environ)
    if told is not None:
        return told
    launched = launched_ranks(environ)
    return 0 if launched is None or launched[0] == 1 else ask()
