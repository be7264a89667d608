"""What denormal numbers cost on the CPU: epochs of the models of `compare.py`, with and without.

    python benchmarks/denormals.py [--rows 16000] [--epochs 3]

Adam keeps a mean of each weight's gradients. That of a weight without gradients, of a dead unit or
of a category that has become rare, is multiplied by 0.9 in each minibatch until it is a denormal
number, and processors are slow with those. `torch.set_flush_denormal(True)` has them taken for
zero. The loop is the one that users of the other systems write.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from common import ROOT, at_least, machine

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
import torch
from compare_data import criteo, fashion
from compare_model import ARCHITECTURES, SMALL_BATCH, build
from loop import Data, train_epoch

from mophpc.run.memory import keep_freed_memory

RATE = 0.003
FASHION = Path("/usr/share/datasets/fashion-mnist")
Epoch = tuple[float, float]
"""Seconds, and the share of the optimizer's mean gradients that are denormal afterwards."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=at_least(1), default=16_000)
    parser.add_argument("--epochs", type=at_least(2), default=3)
    parser.add_argument("--source", type=Path, default=FASHION)
    arguments = parser.parse_args()
    print(f"{machine()}\n")
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| model, minibatch | first epoch, s | last epoch, s | denormal | last, flushed, s |")
    print("|---|---|---|---|---|", flush=True)
    for data, architectures in ARCHITECTURES.items():
        rows = read(data, arguments.source, arguments.rows)
        for arch in architectures:
            first, *_, last = train(arch, rows, arguments.epochs, flush=False)
            *_, flushed = train(arch, rows, arguments.epochs, flush=True)
            print(
                f"| {arch}, {SMALL_BATCH} | {first[0]:.2f} | {last[0]:.2f} | {last[1]:.1%} "
                f"| {flushed[0]:.2f} |",
                flush=True,
            )


def read(data: str, source: Path, rows: int) -> Data:
    """Return training rows as the plain loop takes them."""
    found = criteo(rows, 0) if data == "criteo" else fashion(source, rows, 0)
    return {name: torch.tensor(found[name]) for name in ("train_x", "train_y")}


def train(arch: str, data: Data, epochs: int, *, flush: bool) -> list[Epoch]:
    """Train a config by a plain loop; return its epochs."""
    torch.manual_seed(1)
    config = {"arch": arch, "lr": RATE, "weight_decay": 0.0001, "batch_size": SMALL_BATCH}
    task = build(config)
    found = []
    for _ in range(epochs):
        torch.set_flush_denormal(flush)
        begin_s = time.perf_counter()
        train_epoch(task, data, SMALL_BATCH)
        took_s = time.perf_counter() - begin_s
        torch.set_flush_denormal(False)  # else who looks for them sees none
        found.append((took_s, share(task.optimizer)))
    return found


def share(optimizer: torch.optim.Optimizer) -> float:
    """Return which part of an Adam's mean gradients is denormal."""
    means = [state["exp_avg"] for state in optimizer.state.values()]
    sizes = [mean.abs() for mean in means]
    tiny = torch.finfo(torch.float32).tiny
    few = sum(int(((size > 0) & (size < tiny)).sum()) for size in sizes)
    return few / sum(mean.numel() for mean in means)


if __name__ == "__main__":
    main()
