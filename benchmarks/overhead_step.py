"""What a minibatch costs: a visit's loop against a plain PyTorch loop, taking turns in one process.

    python benchmarks/overhead_step.py [--rounds 15]

The models of `compare.py`. `visit` is a visit; `plain` is the loop that users of the other systems
write, on a model of its own; `plain, in an arena` is that loop on the model that the visits train,
whose tensors lie in one run of bytes: what it takes beyond `plain` is where the tensors lie, and
what a visit takes beyond it is mophpc's loop. There is one process and no hop.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=at_least(1), default=15)
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| model, minibatch | plain, ms | visit / plain | plain, in an arena / plain |")
    print("|---|---|---|---|", flush=True)
    for data, architectures in ARCHITECTURES.items():
        rows = InMemory(rows_of(data))
        for arch in architectures:
            for size in (SMALL_BATCH, LARGE_BATCH):
                config = {"arch": arch, "lr": 0.001, "weight_decay": 0.0001, "batch_size": size}
                print(
                    f"| {arch}, {size} | {compared(config, rows, arguments.rounds)} |", flush=True
                )


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


def compared(config: dict[str, Any], rows: InMemory, rounds: int) -> str:
    """Return the cells of a row: medians of ratios within a round, and their quartiles."""
    trainer = TorchTrainer(build, [("c000", config)], fields=("x", "y"), seed=1)
    trainer.adopt([trainer.probe(0, rows)])
    session = trainer.start(0, trainer.allocate(trainer.nbytes(0)))
    task, size = build(config), config["batch_size"]
    data = {f"train_{name}": field for name, field in rows.fields.items()}
    ways: dict[str, Callable[[], Any]] = {
        "plain": lambda: train_epoch(task, data, size),
        "visit": lambda: session.train(0, 0, rows, should_stop=lambda: False),
        "arena": lambda: train_epoch(session.task, data, size),
    }
    names, taken = list(ways), {name: [] for name in ways}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin_s = time.perf_counter()
            ways[name]()
            if number:  # in the first one memory is found
                taken[name].append(time.perf_counter() - begin_s)
    step_s = statistics.median(taken["plain"]) / -(-ROWS // size)
    return " | ".join([f"{1000 * step_s:.2f}", *(ratio(taken, n) for n in ("visit", "arena"))])


def ratio(taken: dict[str, list[float]], name: str) -> str:
    """Return the median of a way's ratios to the plain loop, and their quartiles."""
    found = [own / plain for own, plain in zip(taken[name], taken["plain"], strict=True)]
    low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
