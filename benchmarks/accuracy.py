"""Whether hopping costs accuracy: MOP against sequential SGD over shuffled rows, config by config.

    python benchmarks/accuracy.py [--data fashion] [--seeds 3] [--epochs 8] [--ranks 2]

The 16 configs of `compare.py`. MOP shuffles the rows of a shard, and a config visits the shards one
after another; sequential SGD shuffles all rows. Each of both is as good as its seed, so the table
has the spread over seeds beside the difference of the means; what seeds alone would do to the
difference is said below it. Takes half an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, Targets, machine

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
import compare_data
import mop
import torch
from compare import ROWS
from compare_model import configs
from driver import Spec
from loop import train_config

MOST_POINTS = 0.3
Job = tuple[int, int, dict[str, Any], int, str]
"""Number of the config, seed, config, epochs, folder of the data."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=list(ROWS), default="fashion")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rows", type=int, help="training rows, by default all")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    tried = configs(arguments.data, False)
    rows, valid_rows = ROWS[arguments.data]
    rows = arguments.rows or rows
    hopped: list[list[float]] = [[] for _ in tried]
    sequential: list[list[float]] = [[] for _ in tried]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.data == "fashion":
            arrays = compare_data.fashion(arguments.source, rows, valid_rows)
        else:
            arrays = compare_data.criteo(rows, valid_rows)
        compare_data.write_source(folder, arrays)
        layout = compare_data.lay_out(folder, arguments.ranks)
        for seed in range(1, arguments.seeds + 1):
            own = folder / f"mop-{seed}"
            own.mkdir()
            spec = Spec(arguments.ranks, arguments.epochs, seed, tried, str(layout), str(own))
            add(hopped, last_of(mop.train(spec)))
            add(sequential, train_alone(tried, seed, arguments.epochs, folder / "source"))
            print(f"seed {seed} of {arguments.seeds}", file=sys.stderr, flush=True)
    title = f"{arguments.data}, {arguments.ranks} ranks, {arguments.epochs} epochs"
    return tell(title, tried, hopped, sequential)


def last_of(records: list[dict[str, Any]]) -> dict[int, float]:
    """Return each config's accuracy after its last epoch."""
    ordered = sorted(records, key=lambda record: record["epoch"])
    return {record["config"]: record["accuracy"] for record in ordered}


def add(found: list[list[float]], accuracies: dict[int, float]) -> None:
    for config_id, own in enumerate(found):
        own.append(accuracies[config_id])


def train_alone(
    tried: list[dict[str, Any]], seed: int, epochs: int, folder: Path
) -> dict[int, float]:
    """Train every config by itself in plain PyTorch, two at a time; return the accuracies."""
    jobs = [(index, seed, config, epochs, str(folder)) for index, config in enumerate(tried)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return dict(pool.map(train_one, jobs, chunksize=1))


def train_one(job: Job) -> tuple[int, float]:
    index, seed, config, epochs, folder = job
    torch.set_num_threads(1)
    *_, last = train_config(config, seed, epochs, folder)
    return index, last["accuracy"]


def tell(
    title: str,
    tried: list[dict[str, Any]],
    hopped: list[list[float]],
    sequential: list[list[float]],
) -> int:
    """Print the table of configs and the targets."""
    seeds = len(hopped[0])
    print(f"\n## {title}, {seeds} seeds\n")
    print("| config | sequential: mean (lowest to highest) | MOP | difference, points |")
    print("|---|---|---|---|")
    gaps, variances = [], []
    for config, ours, theirs in zip(tried, hopped, sequential, strict=True):
        gap = 100 * (statistics.mean(ours) - statistics.mean(theirs))
        gaps.append(gap)
        if seeds > 1:
            variances += [statistics.variance(ours), statistics.variance(theirs)]
        name = ", ".join(f"{key}={value}" for key, value in config.items())
        cells = [f"{statistics.mean(v):.4f} ({min(v):.4f} to {max(v):.4f})" for v in (theirs, ours)]
        print(f"| {name} | {' | '.join(cells)} | {gap:+.2f} |")
    targets = Targets()
    print("\n| what | target | measured | met |\n|---|---|---|---|")
    inside = sum(abs(gap) <= MOST_POINTS for gap in gaps)
    worst = max(gaps, key=abs)
    name = f"accuracy: MOP - sequential SGD, each config's mean over {seeds} seeds, points"
    measured = f"{inside} of {len(gaps)} configs, at most {worst:+.2f}"
    targets.row(name, f"{MOST_POINTS} or less either way", measured, met=inside == len(gaps))
    if variances:
        noise = 100 * math.sqrt(statistics.mean(variances) * 2 / seeds)
        mean = statistics.mean(gaps)
        error = noise / math.sqrt(len(gaps))
        measured = f"{mean:+.3f}, standard error {error:.3f}"
        met = abs(mean) <= MOST_POINTS
        targets.row("the same, mean of all configs", "0.3 or less", measured, met=met)
        print(f"\nSeeds alone make a config's difference one of {noise:.2f} points (one sigma).")
    return int(targets.missed)


if __name__ == "__main__":
    sys.exit(main())
