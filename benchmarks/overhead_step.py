"""What a minibatch costs: a visit's loop against a plain PyTorch loop, taking turns in a process.

    python benchmarks/overhead_step.py [--rounds 15] [--at-once 2]

The models of `compare.py`. `visit` is a visit; `plain` is the loop that users of the other systems
write, on a model of its own; `plain, in an arena` is that loop on the model that the visits train,
whose tensors lie in one run of bytes: what it takes beyond `plain` is where the tensors lie, and
what a visit takes beyond it is mophpc's loop. There is no hop. With --at-once, as many processes do
the same at the same time, as ranks do on the cores of a machine, and ratios are of all of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from common import ROOT, at_least, machine

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
import torch
from compare_data import criteo
from compare_model import ARCHITECTURES, LARGE_BATCH, SMALL_BATCH, build
from loop import train_epoch

from mophpc.run.memory import keep_freed_memory
from mophpc.train.batches import InMemory
from mophpc.train.trainer import TorchTrainer

ROWS = 4000
LIMIT_S = 120.0
"""A process that waits so long for the others has lost one of them."""

all_together: Any = None
"""The barrier of the processes that measure at the same time."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=at_least(1), default=15)
    parser.add_argument("--at-once", type=at_least(1), default=1, help="processes")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.at_once} at once\n")
    print("| model, minibatch | plain, ms | visit / plain | plain, in an arena / plain |")
    print("|---|---|---|---|", flush=True)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(arguments.at_once, timeout=LIMIT_S)
    count = arguments.at_once
    with ProcessPoolExecutor(count, context, initializer=start, initargs=(barrier,)) as pool:
        for data, architectures in ARCHITECTURES.items():
            for arch in architectures:
                for size in (SMALL_BATCH, LARGE_BATCH):
                    config = {"arch": arch, "lr": 0.001, "weight_decay": 0.0001, "batch_size": size}
                    work = [
                        pool.submit(timed, data, config, arguments.rounds) for _ in range(count)
                    ]
                    taken = [future.result() for future in work]
                    print(f"| {arch}, {size} | {row(taken, size)} |", flush=True)


def start(barrier: Any) -> None:
    """Begin a process that measures."""
    global all_together  # noqa: PLW0603  # a pool hands nothing else to its processes
    all_together = barrier
    torch.set_num_threads(1)
    keep_freed_memory()


def rows_of(data: str) -> dict[str, torch.Tensor]:
    """Return rows like those of a data set, x (rows, ...) and y (rows,) int64."""
    if data == "criteo":
        found = criteo(ROWS, 0)
        x, y = found["train_x"], found["train_y"]
    else:
        generator = np.random.default_rng(0)
        x = generator.integers(0, 256, (ROWS, 28, 28), dtype=np.uint8)
        y = generator.integers(0, 10, ROWS)
    return {"x": torch.from_numpy(x), "y": torch.from_numpy(y)}


def timed(data: str, config: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, in this process."""
    rows = InMemory(rows_of(data))
    trainer = TorchTrainer(build, [("c000", config)], fields=("x", "y"), seed=1)
    trainer.adopt([trainer.probe(0, rows)])
    session = trainer.start(0, trainer.allocate(trainer.nbytes(0)))
    task, size = build(config), config["batch_size"]
    fields = {f"train_{name}": field for name, field in rows.fields.items()}
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: train_epoch(task, fields, size),
        "visit": lambda: session.train(0, 0, rows, should_stop=lambda: False),
        "arena": lambda: train_epoch(session.task, fields, size),
    }
    names, taken = list(ways), {name: [] for name in ways}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            all_together.wait()
            begin_s = time.perf_counter()
            ways[name]()
            if number:  # in the first one memory is found
                taken[name].append(time.perf_counter() - begin_s)
    return taken


def row(taken: list[dict[str, list[float]]], size: int) -> str:
    """Return the cells of a row: medians of ratios within a round, and their quartiles.

    Args:
        taken: seconds of each way in each round, by process.
        size: of a minibatch, rows.
    """
    step_s = statistics.median(s for own in taken for s in own["plain"]) / -(-ROWS // size)
    return " | ".join([f"{1000 * step_s:.2f}", *(ratio(taken, n) for n in ("visit", "arena"))])


def ratio(taken: list[dict[str, list[float]]], name: str) -> str:
    """Return the median of a way's ratios to the plain loop, and their quartiles."""
    found = [
        sum(own[name][k] for own in taken) / sum(own["plain"][k] for own in taken)
        for k in range(len(taken[0]["plain"]))
    ]
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
