"""Whether hopping costs accuracy: MOP against sequential SGD over shuffled rows, config by config.

    python benchmarks/accuracy.py [--data fashion] [--seeds 3] [--epochs 8] [--ranks 2]

The 16 configs of `compare.py`. MOP shuffles the rows of a shard, and a config visits the shards one
after another; sequential SGD shuffles all rows. Each of both is as good as its seed, so the table
has the spread over seeds beside the difference of the means; what seeds alone would do to the
difference is said below it. Takes 50 minutes on 2 cores; what is in --book is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import ROOT, Targets, machine

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
import compare_data
import mop
import torch
from compare_model import configs
from driver import Spec
from loop import train_config

ROWS = {"fashion": (60_000, 10_000), "criteo": (100_000, 20_000)}
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
    parser.add_argument("--book", type=Path, help="keep and find accuracies here, a .jsonl file")
    parser.add_argument("--rows", type=int, help="training rows, by default all")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    tried = configs(arguments.data, False)
    rows, valid_rows = ROWS[arguments.data]
    rows = arguments.rows or rows
    comparison = [arguments.data, arguments.ranks, arguments.epochs, rows]
    book = Book(arguments.book, comparison)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        compare_data.make(arguments.data, arguments.source, rows, valid_rows, folder)
        layout = compare_data.lay_out(folder, arguments.ranks)
        for seed in range(1, arguments.seeds + 1):
            if not book.has("mop", seed):
                own = folder / f"mop-{seed}"
                own.mkdir()
                spec = Spec(arguments.ranks, arguments.epochs, seed, tried, str(layout), str(own))
                book.add("mop", seed, last_of(mop.train(spec)))
            if not book.has("sequential", seed):
                found = train_alone(tried, seed, arguments.epochs, folder / "source")
                book.add("sequential", seed, found)
            print(f"seed {seed} of {arguments.seeds}", file=sys.stderr, flush=True)
    title = f"{arguments.data}, {arguments.ranks} ranks, {arguments.epochs} epochs"
    seeds = range(1, arguments.seeds + 1)
    return tell(title, tried, *(book.of(system, seeds) for system in ("mop", "sequential")))


class Book:
    """Accuracies, in a file where there is one: what is in it is not trained again.

    Args:
        path: a file that exists, or will; None: nothing is kept.
        comparison: what is equal among accuracies that can be compared.
    """

    def __init__(self, path: Path | None, comparison: list[Any]) -> None:
        self._path, self._comparison = path, comparison
        self._found: dict[tuple[str, int], list[float]] = {}
        if path is not None and path.exists():
            for line in map(json.loads, path.read_text().splitlines()):
                if line["comparison"] == comparison:
                    self._found[line["system"], line["seed"]] = line["accuracies"]

    def has(self, system: str, seed: int) -> bool:
        return (system, seed) in self._found

    def add(self, system: str, seed: int, accuracies: dict[int, float]) -> None:
        """Keep the accuracies of all configs."""
        values = [round(accuracies[config_id], 6) for config_id in sorted(accuracies)]
        self._found[system, seed] = values
        if self._path is not None:
            facts = {"comparison": self._comparison, "system": system, "seed": seed}
            with self._path.open("a") as file:
                file.write(json.dumps(facts | {"accuracies": values}) + "\n")

    def of(self, system: str, seeds: Iterable[int]) -> list[list[float]]:
        """Return the accuracies of some seeds, by config_id."""
        rows = [self._found[system, seed] for seed in seeds]
        return [list(own) for own in zip(*rows, strict=True)]


def last_of(records: list[dict[str, Any]]) -> dict[int, float]:
    """Return each config's accuracy after its last epoch."""
    ordered = sorted(records, key=lambda record: record["epoch"])
    return {record["config"]: record["accuracy"] for record in ordered}


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
