"""What states on disk cost, to a fraction of a percent: every second one, within one run.

    python benchmarks/faults_halves.py [--runs 3] [--epochs 40]

Makespans of equal runs differ by 5% from one minute to the next on a machine that is shared, which
hides a cost of 1%. So here one run writes every second state of each config, in turns, and its own
stays are compared: the time from the end of the evaluation that ended an epoch to that of the next
visit on that rank, over the mean for the next visit's config, with and without a state written
meanwhile. All that a state can cost is in there: the copy, the thread that writes, and what its
writing does to training. Data and models are those of `faults.py --part cost`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import Targets, events, machine, makespan, mpirun
from faults import SHARDS, write_cost

RANKS = 2
Stay = tuple[int, float, bool]
"""The config that is visited next, seconds, whether a state was written."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(*arguments.inside)
    print(machine(), flush=True)
    shares, errors = [], []
    with tempfile.TemporaryDirectory() as scratch:
        toml = write_cost(Path(scratch), arguments.data, "epoch", arguments.epochs)
        for number in range(arguments.runs):
            run = Path(scratch) / f"run-{number}"
            mpirun(RANKS, sys.executable, __file__, "--inside", str(toml), str(run))
            share, error = cost(run)
            shares.append(share)
            errors.append(error)
            print(f"run {number}: {share:.4f} +- {error:.4f}", file=sys.stderr, flush=True)
    targets = Targets()
    print("| what | target | measured | met |\n|---|---|---|---|", flush=True)
    mean = statistics.mean(shares)
    error = math.sqrt(sum(e**2 for e in errors)) / len(errors)
    runs = f"{len(shares)} runs of {arguments.epochs} epochs"
    name = f"states each epoch, every second one in a run, {runs}"
    measured = f"{mean:.4f}, standard error {error:.4f}"
    targets.row(f"{name}: more of the makespan", "0.02", measured, met=mean <= 0.02)
    return int(targets.missed)


def inside(toml: str, run: str) -> None:
    """Be a rank that writes every second state of each config. Does not return."""
    from mophpc.cli import main as command_line
    from mophpc.run.rank.states import StateKeeper

    turns: dict[int, int] = defaultdict(int)
    is_due = StateKeeper.is_due

    def sometimes(self: StateKeeper, config_id: int, *, ends_epoch: bool) -> bool:
        due = is_due(self, config_id, ends_epoch=ends_epoch)
        turns[config_id] += due
        return due and (turns[config_id] + config_id) % 2 == 0

    StateKeeper.is_due = sometimes  # type: ignore[method-assign]
    command_line(["run", toml, "--out", run, "--progress", "off"])


def cost(run: Path) -> tuple[float, float]:
    """Return by how much states after all epochs make a run longer, and the standard error."""
    found = [stay for rank in events(run) for stay in stays(rank)]
    seconds: dict[int, list[float]] = defaultdict(list)
    for config, took_s, _ in found:
        seconds[config].append(took_s)
    means = {config: statistics.mean(own) for config, own in seconds.items()}
    sides: dict[bool, list[float]] = {True: [], False: []}
    for config, took_s, written in found:
        sides[written].append(took_s / means[config])
    with_s, without_s = sides[True], sides[False]
    usual_s = statistics.mean(means.values())
    more_s = (statistics.mean(with_s) - statistics.mean(without_s)) * usual_s
    variance = statistics.variance(with_s) / len(with_s)
    variance += statistics.variance(without_s) / len(without_s)
    # Half of them were written in the run, and none would be in one without.
    ranks_s = RANKS * makespan(run) - more_s * len(with_s)
    per_s = len(found) / ranks_s
    return more_s * per_s, math.sqrt(variance) * usual_s * per_s


def stays(rank: Sequence[dict[str, Any]]) -> list[Stay]:
    """Return the stays of a rank that follow the end of an epoch."""
    states = {(r["config"], r["step"]) for r in rank if r["kind"] == "checkpoint" and "step" in r}
    visits = sorted((r for r in rank if r["kind"] == "visit"), key=lambda r: r["start"])
    evaluations = {(r["config"], r["epoch"]): r for r in rank if r["kind"] == "eval"}

    def evaluation(visit: dict[str, Any]) -> dict[str, Any] | None:
        ends_epoch = (visit["step"] + 1) % SHARDS == 0
        return evaluations.get((visit["config"], visit["epoch"])) if ends_epoch else None

    found = []
    for visit, after in pairwise(visits):
        if (before := evaluation(visit)) is not None:
            next_one = evaluation(after)
            end_s = after["end"] if next_one is None else next_one["start"]
            written = (visit["config"], visit["step"] + 1) in states
            found.append((after["config"], end_s - before["end"], written))
    return found


if __name__ == "__main__":
    sys.exit(main())
