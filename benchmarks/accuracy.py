"""Whether hopping costs accuracy: MOP against sequential SGD over shuffled rows, config by config.

    python benchmarks/accuracy.py [--data fashion] [--seeds 3] [--epochs 8] [--ranks 2]

The 16 configs of `compare.py`. MOP shuffles the rows of a shard, and a config visits the shards one
after another; sequential SGD shuffles all rows. Each of both is as good as its seed, so the table
has the spread over seeds beside the difference of the means; what seeds alone would do to the
difference is said below it. Takes 50 minutes on 2 cores; what is in --book is not trained again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from children import adopt, stop_all
from common import ROOT, Targets, append_line, at_least, check_output, origin, refuse
from seeds import MOST_POINTS, chance, noise, over_seeds

sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
import compare_data
import mop
import torch
from compare_model import configs
from driver import Record, Spec
from loop import train_config

ROWS = {"fashion": (60_000, 10_000), "criteo": (100_000, 20_000)}
SYSTEMS = MOP, SEQUENTIAL = ("mop", "sequential")
Job = tuple[int, int, dict[str, Any], int, str]
"""Number of the config, seed, config, epochs, folder of the data."""


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse  # type: ignore[method-assign]  # one sentence, without all options
    parser.add_argument("--data", choices=list(ROWS), default="fashion")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--seeds", type=at_least(1), default=3)
    parser.add_argument("--epochs", type=at_least(1), default=8)
    parser.add_argument("--ranks", type=at_least(1), default=2)
    parser.add_argument("--book", type=Path, help="keep and find accuracies here, a .jsonl file")
    parser.add_argument("--rows", type=at_least(1), help="training rows, by default all")
    arguments = parser.parse_args(words)
    arguments.rows = arguments.rows or ROWS[arguments.data][0]
    if arguments.rows < arguments.ranks:
        refuse(
            f"--rows {arguments.rows}: each of {arguments.ranks} ranks needs one; name "
            f"{arguments.ranks} or more, or less --ranks"
        )
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    tried = configs(arguments.data, False)
    comparison = [arguments.data, arguments.ranks, arguments.epochs, arguments.rows]
    book = Book(arguments.book, comparison, len(tried))
    seeds = range(1, arguments.seeds + 1)
    due = [seed for seed in seeds if not all(book.has(system, seed) for system in SYSTEMS)]
    if due and shutil.which("mpirun") is None:
        refuse("there is no mpirun on PATH; source launch/env.sh first")
    if due:
        adopt()
        train(arguments, tried, due, book)
    for found in book.machines:
        print(f"- {found}")
    title = f"{arguments.data}, {arguments.ranks} ranks, {arguments.epochs} epochs"
    return tell(title, tried, *(book.of(system, seeds) for system in SYSTEMS))


def train(
    arguments: argparse.Namespace, tried: list[dict[str, Any]], due: Iterable[int], book: Book
) -> None:
    """Train what the book lacks, and put it there."""
    rows, valid_rows = arguments.rows, ROWS[arguments.data][1]
    # A rank that has just been killed may still be writing there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        try:
            compare_data.make(arguments.data, arguments.source, rows, valid_rows, folder)
        except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
            refuse(f"--source {arguments.source}: a file there is damaged ({error}); get it anew")
        layout = compare_data.lay_out(folder, arguments.ranks)
        for seed in due:
            if not book.has(MOP, seed):
                own = folder / f"mop-{seed}"
                own.mkdir()
                spec = Spec(arguments.ranks, arguments.epochs, seed, tried, str(layout), str(own))
                book.add(MOP, seed, last_of(train_hopping(spec)))
            if not book.has(SEQUENTIAL, seed):
                found = train_alone(tried, seed, arguments.epochs, folder / "source")
                book.add(SEQUENTIAL, seed, found)
            print(f"seed {seed} of {arguments.seeds}", file=sys.stderr, flush=True)


def train_hopping(spec: Spec) -> list[Record]:
    """Train all configs with MOP; however that ends, no rank of it stays behind."""
    try:
        return mop.train(spec)
    except BaseException:
        stop_all()
        raise


class Book:
    """Accuracies, in a file where there is one: what is in it is not trained again.

    Args:
        path: a file that exists, or will; None: nothing is kept.
        comparison: what is equal among accuracies that can be compared.
        configs: how many accuracies a line of that comparison has.
    """

    def __init__(self, path: Path | None, comparison: list[Any], configs: int) -> None:
        self._path, self._comparison, self._configs = path, comparison, configs
        self._found: dict[tuple[str, int], list[float]] = {}
        self.machines: dict[str, None] = {}
        """On which it was measured, each once."""
        if path is None:
            return
        check_output("--book", path)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            refuse(f"--book {path}: it may not be written; name another file")
        for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
            if line.strip() and (why := self._take(line)):
                refuse(f"{path}:{number} {why}; delete that line, or name another --book")

    def _take(self, line: bytes) -> str:
        """Take the accuracies of a line, if they can be compared; return what is wrong with it."""
        try:
            facts = json.loads(line)
        except ValueError:
            return "is no JSON"
        if not isinstance(facts, dict):
            return "is no line of this benchmark"
        for name in ("comparison", "system", "seed", "accuracies"):
            if name not in facts:
                return f"lacks '{name}'"
        system, seed, values = facts["system"], facts["seed"], facts["accuracies"]
        if system not in SYSTEMS:
            return f"has the system {json.dumps(system)}; allowed: {', '.join(SYSTEMS)}"
        if type(seed) is not int:
            return f"has the seed {json.dumps(seed)}; allowed: whole numbers"
        if not isinstance(values, list) or not all(
            isinstance(value, int | float) and 0 <= value <= 1 for value in values
        ):
            return "has accuracies that are no numbers from 0 to 1"
        if facts["comparison"] == self._comparison:
            if len(values) != self._configs:
                return f"has {len(values)} accuracies; allowed: {self._configs}, one per config"
            self._found[system, seed] = values
            self.machines[str(facts.get("machine", "a machine that was not written down"))] = None
        return ""

    def has(self, system: str, seed: int) -> bool:
        return (system, seed) in self._found

    def add(self, system: str, seed: int, accuracies: dict[int, float]) -> None:
        """Keep the accuracies of all configs."""
        values = [round(accuracies[config_id], 6) for config_id in sorted(accuracies)]
        self._found[system, seed] = values
        self.machines[here := origin()] = None
        if self._path is not None:
            facts = {"comparison": self._comparison, "system": system, "seed": seed}
            more = {"accuracies": values, "machine": here}
            append_line(self._path, json.dumps(facts | more))

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
    gaps = []
    for config, ours, theirs in zip(tried, hopped, sequential, strict=True):
        gap = 100 * (statistics.mean(ours) - statistics.mean(theirs))
        gaps.append(gap)
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
    if seeds > 1:
        sigma = noise(hopped, sequential)
        expected = len(gaps) * chance(sigma)
        mean, error = over_seeds(hopped, sequential)
        measured = f"{mean:+.3f}, standard error over seeds {error:.3f}"
        met = abs(mean) <= MOST_POINTS
        targets.row("the same, mean of all configs", "0.3 or less", measured, met=met)
        print(
            f"\nSeeds alone make a config's difference one of {sigma:.2f} points (one sigma), and "
            f"would leave {expected:.1f} of {len(gaps)} within {MOST_POINTS}."
        )
    return int(targets.missed)


if __name__ == "__main__":
    sys.exit(main())
