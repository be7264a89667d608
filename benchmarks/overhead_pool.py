"""A run against a pool of processes that do nothing but train: what mophpc adds, start to end.

    python benchmarks/overhead_pool.py [--data criteo] [--rounds 5] [--epochs 2]

Configs, models and loop of `compare.py`. The pool is Python's own, of as many processes as there
are ranks; each takes the next config when it is done with one, and trains it on a copy of all rows.
It needs no broker, keeps nothing on disk, and is started for the work and ended after it, as ranks
are: both pay for the import of PyTorch, which the workers of a server have behind them. They take
turns, and ratios are within a round. Training is visits and evaluations, of all ranks together, and
what the pool's processes take for the same; what both take beyond it is start, set-up and end.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from children import adopt, stop_all
from common import ROOT, at_least, machine

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
import compare_data
import mop
import torch
from compare import ROWS
from compare_model import build, configs
from compare_tables import said
from driver import Spec
from loop import evaluate, load, train_epoch

from mophpc.run.memory import keep_freed_memory


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of a run."""

    makespan: float
    training: float
    """Of all processes."""
    processors: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=list(ROWS), default="criteo")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--ranks", type=at_least(1), default=2)
    parser.add_argument("--epochs", type=at_least(1), default=2)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    arguments = parser.parse_args()
    print(f"{machine()}\n", flush=True)
    adopt()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            rounds = measure(arguments, Path(scratch))
    except BaseException:
        stop_all()
        raise
    rows = ROWS[arguments.data][0]
    print(f"{arguments.data}, {arguments.ranks} ranks, {rows} rows, {arguments.epochs} epochs\n")
    print(f"| of {len(rounds)} rounds | pool, s | mophpc, s | mophpc / pool |\n|---|---|---|---|")
    for name in ("makespan", "training", "processors"):
        pool, own = ([getattr(one[way], name) for one in rounds] for way in ("pool", "mophpc"))
        ratios = [b / a for a, b in zip(pool, own, strict=True)]
        middles = " | ".join(f"{statistics.median(values):.1f}" for values in (pool, own))
        print(f"| {name} | {middles} | {said(ratios, 3)} |")


def measure(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Taken]]:
    """Return what each way took in each round."""
    compare_data.make(arguments.data, arguments.source, *ROWS[arguments.data], scratch / "data")
    data = str(compare_data.lay_out(scratch / "data", arguments.ranks))
    ways: dict[str, Callable[[Spec], float]] = {"pool": pooled, "mophpc": hopping}
    rounds = []
    for number in range(arguments.rounds):
        taken = {}
        for way in sorted(ways, reverse=number % 2 == 0):
            folder = scratch / f"{way}-{number}"
            folder.mkdir()
            tried = configs(arguments.data, smoke=False)
            spec = Spec(arguments.ranks, arguments.epochs, number + 1, tried, data, str(folder))
            before_s, begin_s = processor_s(), time.perf_counter()
            training_s = ways[way](spec)
            makespan_s = time.perf_counter() - begin_s
            taken[way] = Taken(makespan_s, training_s, processor_s() - before_s)
            print(f"round {number}, {way}: {taken[way]}", file=sys.stderr, flush=True)
        rounds.append(taken)
    return rounds


def processor_s() -> float:
    """Return the processor seconds of all processes that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def hopping(spec: Spec) -> float:
    """Run mophpc; return the seconds of visits and evaluations."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)  # its table of results is not this command's
    try:
        return sum(float(record["share_s"]) for record in mop.train(spec))
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def pooled(spec: Spec) -> float:
    """Train in a pool; return the seconds of training and evaluation."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(spec.ranks, context, initializer=start) as pool:
        work = [pool.submit(train, spec, config_id) for config_id in range(len(spec.configs))]
        return sum(future.result() for future in work)


def start() -> None:
    """Begin a process of the pool."""
    torch.set_num_threads(1)
    keep_freed_memory()
    importlib.import_module("torch._dynamo")  # else the first optimizer would, while it is timed


def train(spec: Spec, config_id: int) -> float:
    """Train a config; return what that took."""
    torch.manual_seed(spec.seed)
    task, data = build(spec.configs[config_id]), load(spec.worker(0))
    begin_s = time.perf_counter()
    for _ in range(spec.epochs):
        train_epoch(task, data, task.batch_size)
        if task.lr_scheduler is not None:
            task.lr_scheduler.step()
        evaluate(task, data)
    return time.perf_counter() - begin_s


if __name__ == "__main__":
    main()
