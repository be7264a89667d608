"""What the two ranks of `hop.py` do: the same state from rank 0 to rank 1 in several ways.

    mpirun -n 2 python benchmarks/hop_ranks.py MB [MB ...] [--rounds 15]

Rank 0 prints a line of JSON per size: {"nbytes": ..., "seconds": {way: [one per round]}}. Seconds
go from the moment in which rank 0 begins to send to the one in which rank 1 has what it needs;
both are of one host, whose monotonic clock they share.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from mophpc import Task
from mophpc.hop.mpi import start_mpi
from mophpc.hop.parcel import Incoming, Outgoing, Parcel
from mophpc.hop.progress import Progress
from mophpc.hop.transport import wait_until
from mophpc.train.arena import allocate
from mophpc.train.bind import Arena, Draft, layout_of, settle

TAG = 7
SHAPES = {16: (192, 3), 100: (512, 3), 400: (768, 5)}
"""Width and layers of a transformer, by the megabytes of its state with AdamW."""


def build(width: int, layers: int) -> Task:
    layer = nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True)
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4),
        loss=nn.MSELoss(),
        batch_size=1,
    )


class Bench:
    """One size: a state on rank 0, and memory for it on rank 1."""

    def __init__(self, megabytes: int) -> None:
        self.comm = MPI.COMM_WORLD
        self.rank = self.comm.Get_rank()
        self.transport = start_mpi()
        self.shape = SHAPES[megabytes]
        torch.manual_seed(0)
        self.task = build(*self.shape)
        x = torch.zeros(1, 2, self.shape[0])
        self.task.loss(self.task.model(x), x + 1).backward()
        self.task.optimizer.step()
        self.task.optimizer.zero_grad(set_to_none=True)
        self.layout = layout_of(self.task)
        self.arena: Arena = allocate(self.layout.nbytes)
        self.arena[:] = 0
        self.rest = settle(self.task, self.layout, self.arena)
        self.step = 0
        if self.rank == 1:
            self.expected = self.arena.copy()

    def timed(self, send: Callable[[], Any], receive: Callable[[], Any]) -> float:
        """Return the seconds of one transfer, on both ranks."""
        self.comm.Barrier()
        begin_s = time.perf_counter()
        if self.rank == 0:
            send()
        else:
            receive()
        end_s = time.perf_counter()
        begin_s = self.comm.bcast(begin_s, 0)
        return float(self.comm.bcast(end_s, 1)) - begin_s

    def raw(self) -> float:
        """One `Send` of as many bytes from one buffer."""
        return self.timed(
            lambda: self.comm.Send([self.arena, MPI.BYTE], 1, TAG),
            lambda: self.comm.Recv([self.arena, MPI.BYTE], 0, TAG),
        )

    def hop(self, *, built: str | None, checked: bool = False) -> float:
        """Our hop, to the last byte, or until a Task is bound to the state.

        Args:
            built: when the Task is built: `before`, as a rank does that waits for a state which
                another still trains; `meanwhile`; or not at all.
            checked: with a checksum.
        """
        self.step += 1
        if self.rank == 1:
            self.arena[:: 1 << 20] = 0
        incoming = Incoming(self.transport, self.arena, 0, TAG) if self.rank == 1 else None
        before = self.draft(incoming) if incoming is not None and built == "before" else None

        def send() -> None:
            parcel = Parcel(0, self.step, self.arena, self.rest)
            outgoing = Outgoing(self.transport, parcel, 1, TAG, checked=checked)
            wait_until(outgoing.test, flows=lambda: outgoing.flows)

        def receive() -> None:
            assert incoming is not None
            draft = self.draft(incoming) if built == "meanwhile" else before
            wait_until(incoming.test, flows=lambda: incoming.flows)
            if draft is not None:
                draft.finish(incoming.parcel(0, self.step).rest)

        seconds = self.timed(send, receive)
        if self.rank == 1:
            assert np.array_equal(self.arena, self.expected)
        return seconds

    def draft(self, incoming: Incoming) -> Draft:
        """Build while the state is on its way, as a rank does that waits."""

        def step() -> bool:
            incoming.test()
            return incoming.flows

        progress = Progress(step, threaded=self.transport.threaded)
        try:
            with progress:
                return Draft(lambda: build(*self.shape), self.layout, self.arena, lean=True)
        finally:
            progress.end()

    def pickled(self) -> float:
        """mpi4py's `send` of the state_dicts, which pickles, until a Task has them."""
        return self.timed(
            lambda: self.comm.send(self.states(), 1, TAG),
            lambda: self.load(self.comm.recv(source=0, tag=TAG)),
        )

    def filed(self, path: Path) -> float:
        """torch.save and torch.load through a file, until a Task has them."""

        def send() -> None:
            torch.save(self.states(), path)
            self.comm.send(None, 1, TAG)

        def receive() -> None:
            self.comm.recv(source=0, tag=TAG)
            self.load(torch.load(path, weights_only=True))

        return self.timed(send, receive)

    def states(self) -> list[dict[str, Any]]:
        return [self.task.model.state_dict(), self.task.optimizer.state_dict()]

    def load(self, states: list[dict[str, Any]]) -> None:
        with torch.device("meta"):
            task = build(*self.shape)
        task.model.load_state_dict(states[0], assign=True)
        task.optimizer.load_state_dict(states[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("megabytes", type=int, nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for megabytes in arguments.megabytes:
        bench = Bench(megabytes)
        found = compare(bench, arguments.rounds)
        if bench.rank == 0:
            record = {"megabytes": megabytes, "nbytes": bench.layout.nbytes, "seconds": found}
            print(json.dumps(record), flush=True)


def compare(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way, in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(bench.comm.bcast(scratch, 0)) / "state.pt"
        ways: dict[str, Callable[[], float]] = {
            "raw": bench.raw,
            "hop": lambda: bench.hop(built=None),
            "hop, bound": lambda: bench.hop(built="before"),
            "hop, checked, bound": lambda: bench.hop(built="before", checked=True),
            "hop, built and bound": lambda: bench.hop(built="meanwhile"),
            "pickled": bench.pickled,
            "file": lambda: bench.filed(path),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 2):
            for way, measure in ways.items():
                seconds = measure()
                if number >= 2:  # the first ones touch memory and caches
                    found[way].append(seconds)
        return found


if __name__ == "__main__":
    main()
