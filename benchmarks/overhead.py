"""What mophpc costs: time inside visits against plain PyTorch, and time outside visits.

    python benchmarks/overhead.py [--part inside outside small] [--rounds 5]

Inside: one rank trains configs with visits of about a second; the same training is written as a
plain PyTorch loop over in-memory tensors, in a process of its own; both alternate, and the ratio
is taken within each round. Outside: two ranks on two cores, the share of the makespan that is
neither visit, nor evaluation, nor an idle slot of the plan. Small: two ranks train the models of
`compare.py` that have the shortest minibatches and the largest ones, against two processes with
plain loops; beside that, how it is where only the training lets messages progress, and where freed
memory is left to the C library.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    ROOT,
    events,
    machine,
    makespan,
    mophpc,
    plain_loops,
    run_experiment,
    seconds,
    spread,
)

ROWS, WIDTH = 48_000, 512
CONFIGS, SHARDS, EPOCHS = 4, 2, 2
PARTS = ("inside", "outside", "small")

IMAGES = 30_000
SMALL: dict[str, dict[str, Any]] = {
    "mlp, batches of 32": {"arch": "mlp", "batch_size": 32},
    "cnn, batches of 32": {"arch": "cnn", "batch_size": 32},
    "cnn, batches of 256": {"arch": "cnn", "batch_size": 256},
}
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    # settings of the experiment, and of the environment
    "as it is": ("", {}),
    'progress = "between"': ('[hop]\nprogress = "between"\n', {}),
    # Any tunable of malloc says that somebody has set it up; this one changes nothing.
    "memory left to glibc": ("", {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}),
}

TOML = """
build = "{root}/benchmarks/{build}.py:build"
epochs = {epochs}
seed = 1
[data]
store = "{store}"
[schedule]
costs = "equal"  # the rotation, which has no idle slots here
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "inside" in arguments.part or "outside" in arguments.part:
            long_visits(folder, arguments.rounds, arguments.part)
        if "small" in arguments.part:
            small_batches(folder, arguments.rounds)


def long_visits(folder: Path, rounds: int, parts: Sequence[str]) -> None:
    """Measure what is inside and outside of visits of about a second."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, WIDTH), dtype=np.float32)
    store = write_store(folder / "long", x, generator.integers(0, 10, ROWS))
    rates = [{"lr": 0.001 * (1 + i)} for i in range(2 * CONFIGS)]
    inside, outside, busiest, visit_s = [], [], [], []
    for number in range(rounds):
        if "inside" in parts:
            run = folder / f"inside-{number}"
            toml = write_toml(folder, store, "overhead_model", rates[:CONFIGS])
            run_experiment(toml, run, ranks=1)
            ours = seconds(events(run)[0], "visit")
            inside.append(ours / plain(folder, store, "overhead_model", [rates[:CONFIGS]]))
            visit_s.append(ours / (CONFIGS * SHARDS * EPOCHS))
            print(f"round {number}: inside / plain {inside[-1]:.4f}", flush=True)
        if "outside" in parts:
            run = folder / f"outside-{number}"
            run_experiment(write_toml(folder, store, "overhead_model", rates), run, ranks=2)
            least, most = outside_shares(run)
            outside.append(most)
            busiest.append(least)
            print(f"round {number}: outside {most:.4f}, {least:.4f}", flush=True)
    if inside:
        print(f"visits of {statistics.median(visit_s):.2f} s")
        print(f"time inside visits / plain PyTorch loop: {spread(inside)} (target 1.03 or less)")
    if outside:
        print(f"time outside visits / makespan, 2 ranks: {spread(outside)} (target 0.02 or less)")
        print(f"the same of the rank that is the slower one: {spread(busiest)}")


def small_batches(folder: Path, rounds: int) -> None:
    """Measure visits of small minibatches, in several ways."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
    store = write_store(folder / "small", x, generator.integers(0, 10, IMAGES))
    print("\n| 2 ranks | a minibatch, plain loop | time inside visits / plain loop |")
    print("|---|---|---|", flush=True)
    for name, model in SMALL.items():
        tried = [{**model, "lr": lr, "weight_decay": 0.0001} for lr in (0.001, 0.003)]
        steps = len(tried) * EPOCHS * SHARDS * -(-(IMAGES // SHARDS) // model["batch_size"])
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        batch_s = []
        for number in range(rounds):
            plain_s = plain(folder, store, "compare_model", [[config] for config in tried])
            batch_s.append(plain_s / steps)
            for way, (more, environment) in WAYS.items():
                run = folder / f"{name}-{number}-{len(more)}-{len(environment)}"
                toml = write_toml(folder, store, "compare_model", tried, more)
                run_experiment(toml, run, ranks=2, environment=environment)
                found[way].append(sum(seconds(own, "visit") for own in events(run)) / plain_s)
        for way, values in found.items():
            batch = f"{1000 * statistics.median(batch_s):.2f} ms"
            print(f"| {name}, {way} | {batch} | {spread(values)} |", flush=True)


def write_store(folder: Path, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Path:
    """Make a store of rows in a new folder; return it."""
    folder.mkdir()
    np.savez(folder / "data.npz", x=x, y=y, x_valid=x[:1000], y_valid=y[:1000])
    store = folder / "store.zarr"
    mophpc("prepare", str(folder / "data.npz"), str(store), "--shards", str(SHARDS))
    return store


def write_toml(
    folder: Path, store: Path, build: str, configs: Sequence[Mapping[str, Any]], more: str = ""
) -> Path:
    """Write an experiment that tries these configs; return its file."""
    text = TOML.format(root=ROOT, build=build, store=store, epochs=EPOCHS) + more
    for config in configs:
        text += "[[configs]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in config.items())
    toml = folder / "experiment.toml"
    toml.write_text(text)
    return toml


def outside_shares(run: Path) -> tuple[float, float]:
    """Return the smallest and largest share of a makespan that a rank neither visits nor evaluates.

    The difference is what ranks wait since one is slower than the other.
    """
    span = makespan(run)
    busy = [seconds(rank, "visit") + seconds(rank, "eval") for rank in events(run)]
    return 1.0 - max(busy) / span, 1.0 - min(busy) / span


def plain(
    folder: Path, store: Path, build: str, parts: Sequence[Sequence[Mapping[str, Any]]]
) -> float:
    """Return the seconds of plain loops, a process for each part of the configs, all at once."""
    same = {"build": build, "store": str(store), "epochs": EPOCHS, "shards": SHARDS}
    return plain_loops(folder, [{**same, "configs": configs} for configs in parts])


if __name__ == "__main__":
    main()
