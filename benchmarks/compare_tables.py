"""What `compare.py` makes of its measurements: figures, tables and targets. Pure functions."""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from common import spread
from seeds import MOST_POINTS, chance, noise

Record = dict[str, Any]
Sample = Sequence[Any]
"""When, processor seconds since the start, bytes of memory or None."""

MOP = "mop"
TASK_PARALLEL = ("celery", "ray", "dask")
"""They train as sequential SGD does, several configs at a time."""
QUARTERS = (0.25, 0.5, 0.75, 1.0)
LEAST_ROUNDS = 3
"""Of fewer, a median says little: whether a target is met is then left open."""


@dataclass(frozen=True)
class Outcome:
    """One system in one round."""

    data: str
    ranks: int
    round: int
    seed: int
    system: str
    lines: int
    configs: int = 0
    rows: int = 0
    """Of the training data."""
    epochs: int = 0
    malloc: str = "own"
    """What becomes of freed memory: `own`, as each system comes, or `kept`, with the same settings
    of the C library for all."""
    machine: str = ""
    """And versions and the date."""
    storage_bytes: int = 0
    """Of the training rows on disk, all workers together."""
    why: str = ""
    """What went wrong; empty where nothing did."""
    setup_s: float = 0.0
    """Until servers and workers are up, where a system has any."""
    makespan_s: float = 0.0
    """From the call that trains all configs to its return."""
    utilisation: float = 0.0
    """Processor time of all processes over that of the cores that the ranks can have."""
    network_bytes: int = 0
    peak_bytes: int = 0
    small_s: float = 0.0
    """The part of the makespan that went into configs with the small batch; 0 for task parallelism,
    where it cannot be told."""
    small_bytes: float = 0.0
    best_accuracy: float = 0.0
    mean_accuracy: float = 0.0
    """After the last epoch, as the best."""
    records: list[Record] = field(default_factory=list)
    """`config`, `epoch`, `accuracy`, and `at_s` in seconds since the beginning."""

    @property
    def whole_s(self) -> float:
        """Seconds of set-up and makespan."""
        return self.setup_s + self.makespan_s

    @property
    def best_epochs(self) -> float:
        """Mean over configs of the accuracy after a config's best epoch: it may overfit later."""
        best: dict[int, float] = {}
        for record in self.records:
            config = record["config"]
            best[config] = max(best.get(config, 0.0), record["accuracy"])
        return statistics.mean(best.values())


def count_lines(text: str) -> int:
    """Return the lines of code between the markers `# user: begin` and `# user: end`."""
    count, inside = 0, False
    for raw in text.splitlines():
        line = raw.strip()
        if line in ("# user: begin", "# user: end"):
            inside = line == "# user: begin"
        elif inside and line and not line.startswith("#"):
            count += 1
    return count


def count_functions(text: str, names: Sequence[str]) -> int:
    """Return the lines of code of some functions of a file, with their decorators."""
    lines, count = text.splitlines(), 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            own = [line.strip() for line in lines[first - 1 : node.end_lineno]]
            count += sum(bool(line) and not line.startswith("#") for line in own)
    return count


def figures(
    result: Mapping[str, Any], samples: Sequence[Sample], cores: int, small: Sequence[int]
) -> dict[str, Any]:
    """Return the measured fields of an Outcome.

    Args:
        result: what the system's driver wrote.
        samples: of its processor time and memory.
        cores: that the ranks can have.
        small: the config_ids with the small batch.
    """
    begin, end = result["begin"], result["end"]
    when, spent = [s[0] for s in samples], [s[1] for s in samples]
    used = float(np.interp(end, when, spent) - np.interp(begin, when, spent))
    memory = [s[2] for s in samples if s[2] is not None and s[0] <= end]
    records = [
        {"config": r["config"], "epoch": r["epoch"], "at_s": round(r["time"] - begin, 3)}
        | {"accuracy": round(r["accuracy"], 6)}
        for r in result["records"]
    ]
    last = {r["config"]: r["accuracy"] for r in sorted(records, key=lambda r: r["epoch"])}
    small_s, small_bytes = part_of(result["records"], small, result)
    return {
        "setup_s": begin - result["called"],
        "makespan_s": end - begin,
        "utilisation": used / (end - begin) / cores,
        "network_bytes": result["network"],
        "peak_bytes": max(memory, default=0),
        "small_s": small_s,
        "small_bytes": small_bytes,
        "best_accuracy": max(last.values()),
        "mean_accuracy": statistics.mean(last.values()),
        "records": records,
    }


def part_of(
    records: Sequence[Record], configs: Sequence[int], result: Mapping[str, Any]
) -> tuple[float, float]:
    """Return the seconds and the bytes that went into some of the configs.

    Where several configs are trained at a time (their records tell what each had of the ranks'
    time), makespan and bytes are divided in proportion. Where one follows another, a config has
    all from the record before; and what the first epoch of all took beyond that config's second,
    which is the start of processes, is divided in proportion too.
    """
    seconds, moved = result["end"] - result["begin"], result["network"]
    if records and "share_s" in records[0]:
        parts = []
        for key in ("share_s", "share_bytes"):
            total = sum(r[key] for r in records)
            own = sum(r[key] for r in records if r["config"] in configs)
            parts.append(own / total if total else 0.0)
        return seconds * parts[0], moved * parts[1]
    ordered = sorted(records, key=lambda r: r["time"])
    then, before = result["begin"] + _start_s(ordered, result["begin"]), result["network_before"]
    worked_s, found_s, found_bytes = 0.0, 0.0, 0.0
    for record in ordered:
        worked_s += record["time"] - then
        if record["config"] in configs:
            found_s += record["time"] - then
            found_bytes += record["network"] - before
        then, before = record["time"], record["network"]
    return seconds * found_s / worked_s if worked_s else 0.0, found_bytes


def _start_s(ordered: Sequence[Record], begin: float) -> float:
    """Return by how much the first epoch of all took longer than the next one of its config."""
    if len(ordered) < 2 or ordered[0]["config"] != ordered[1]["config"]:
        return 0.0
    first, second = ordered[0]["time"], ordered[1]["time"]
    return float(max(0.0, (first - begin) - (second - first)))


def after_epochs(outcome: Outcome, epochs: int) -> list[tuple[float, float]]:
    """Return the best and the mean accuracy of all configs after each epoch."""
    found = []
    for epoch in range(epochs):
        own = [r["accuracy"] for r in outcome.records if r["epoch"] == epoch]
        found.append((max(own), statistics.mean(own)))
    return found


def after_seconds(
    outcome: Outcome, seconds: float, num_configs: int, chance: float
) -> tuple[float, float]:
    """Return the best accuracy so far, and the mean of what configs have last; chance at first."""
    best, newest = chance, [chance] * num_configs
    for record in sorted(outcome.records, key=lambda r: r["at_s"]):
        if record["at_s"] <= seconds:
            best = max(best, record["accuracy"])
            newest[record["config"]] = record["accuracy"]
    return best, statistics.mean(newest)


def by_system(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes of each system in which nothing went wrong, by round."""
    found: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if not outcome.why:
            found[outcome.system].append(outcome)
    return found


def ratios(own: Sequence[Outcome], other: Sequence[Outcome], what: str) -> list[float]:
    """Return a figure over another system's, in each round that both have."""
    theirs = {o.round: getattr(o, what) for o in other}
    return [getattr(o, what) / theirs[o.round] for o in own if theirs.get(o.round)]


def said(values: Sequence[float], digits: int = 2) -> str:
    """Return median, lowest and highest; or that there are none."""
    if not values:
        return "-"
    low, middle, high = (
        f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def main_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table of all measured figures: medians over the rounds."""
    good = by_system(outcomes)
    table = [
        "| system | makespan s | / MOP's | set-up s | processors used | training rows on disk MB "
        "| network MB | peak memory MB | best accuracy | mean accuracy | mean of best epochs "
        "| lines |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for system in dict.fromkeys(o.system for o in outcomes):
        own = good.get(system, [])
        if own:
            middle = {
                name: statistics.median(getattr(o, name) for o in own)
                for name in Outcome.__dataclass_fields__
                if isinstance(getattr(own[0], name), int | float)
            }
            cells = [
                system,
                said([o.makespan_s for o in own], 1),
                said(ratios(own, good.get(MOP, []), "makespan_s")),
                f"{middle['setup_s']:.1f}",
                f"{middle['utilisation']:.0%}",
                f"{middle['storage_bytes'] / 1e6:.1f}",
                f"{middle['network_bytes'] / 1e6:.1f}",
                f"{middle['peak_bytes'] / 1e6:.0f}",
                f"{middle['best_accuracy']:.4f}",
                f"{middle['mean_accuracy']:.4f}",
                f"{statistics.median(o.best_epochs for o in own):.4f}",
                f"{own[0].lines}",
            ]
            table.append(f"| {' | '.join(cells)} |")
        table += [
            f"| {system}, round {o.round} | failed: {o.why.replace('|', '/')} |"
            for o in outcomes
            if o.system == system and o.why
        ]
    return table


def epochs_table(outcomes: Sequence[Outcome], epochs: int) -> list[str]:
    """Return the table of best / mean accuracy after each epoch: medians over the rounds."""
    heads = [f"epoch {epoch + 1}" for epoch in range(epochs)]
    rows = {
        system: [after_epochs(o, epochs) for o in own]
        for system, own in by_system(outcomes).items()
    }
    return _pairs("best / mean accuracy after", heads, rows)


def time_table(outcomes: Sequence[Outcome], num_configs: int, chance: float) -> list[str]:
    """Return the table of best / mean accuracy at quarters of MOP's makespan in that round."""
    good = by_system(outcomes)
    spans = {o.round: o.makespan_s for o in good.get(MOP, [])}
    rows = {}
    for system, own in good.items():
        rows[system] = [
            [after_seconds(o, q * spans[o.round], num_configs, chance) for q in QUARTERS]
            for o in own
            if o.round in spans
        ]
    heads = [f"{q:.0%} of MOP's makespan" for q in QUARTERS]
    return _pairs("best / mean accuracy at", heads, rows)


def _pairs(
    first: str, heads: Sequence[str], rows: Mapping[str, Sequence[Sequence[tuple[float, float]]]]
) -> list[str]:
    table = [f"| {first} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for system, rounds in rows.items():
        if rounds:
            cells = [
                " / ".join(f"{statistics.median(v):.4f}" for v in zip(*pairs, strict=True))
                for pairs in zip(*rounds, strict=True)
            ]
            table.append(f"| {system} | {' | '.join(cells)} |")
    return table


def goals(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str, bool | None]]:
    """Return the targets: what, target, measured, whether it is met; None: it has none."""
    good = by_system(outcomes)
    mop, ddp, averaging = (good.get(name, []) for name in (MOP, "ddp", "averaging"))
    tasks = [good[name] for name in TASK_PARALLEL if name in good]
    found = []

    def goal(what: str, target: str, measured: str, met: bool | None) -> None:
        found.append((what, target, measured, met))

    if mop and tasks:
        best = min(tasks, key=lambda own: statistics.median(o.makespan_s for o in own))
        values = ratios(mop, best, "makespan_s")
        what = f"makespan: MOP / best task-parallel ({best[0].system})"
        goal(what, "1.00 or less", said(values, 3), verdict(values, lambda ratio: ratio <= 1))
        goal("the same, set-up included", "-", said(ratios(mop, best, "whole_s"), 3), None)
        part = mop[0].storage_bytes / best[0].storage_bytes
        what = "training rows on disk: MOP / the same"
        goal(what, f"{1 / mop[0].ranks:.2f} or less", f"{part:.3f}", part <= 1 / mop[0].ranks)
        if ddp:  # its parts hold each row once, as MOP's store does, which is compressed
            part = ddp[0].storage_bytes / best[0].storage_bytes
            goal("the same, were MOP's not compressed", "-", f"{part:.3f}", None)
    if mop and ddp:
        values = ratios(ddp, mop, "small_s")
        what = "seconds of configs with the small batch: DDP / MOP"
        goal(what, "3 or more", said(values), verdict(values, lambda ratio: ratio >= 3))
        values = ratios(ddp, mop, "small_bytes")
        met = verdict(values, lambda ratio: ratio >= 100)
        goal("network bytes of the same: DDP / MOP", "100 or more", said(values, 0), met)
    if mop and averaging:
        values = ratios(mop, averaging, "makespan_s")
        met = verdict(values, lambda ratio: ratio <= 1)
        goal("makespan: MOP / model averaging", "1.00 or less", said(values, 3), met)
        for what, value in (
            ("mean accuracy", "mean_accuracy"),
            ("mean accuracy of configs' best epochs", "best_epochs"),
        ):
            theirs = {o.round: getattr(o, value) for o in averaging}
            gains = [getattr(o, value) - theirs[o.round] for o in mop if o.round in theirs]
            met = verdict(gains, lambda gain: gain > 0)
            goal(f"{what}: MOP - model averaging", "above 0", spread(gains or [0.0]), met)
    if mop and tasks:
        goal(*sequential(mop, tasks[0]))
    return found


def verdict(values: Sequence[float], is_met: Callable[[float], bool]) -> bool | None:
    """Return whether the median of a round's values meets a target; None: of too few rounds."""
    return is_met(statistics.median(values)) if len(values) >= LEAST_ROUNDS else None


def sequential(mop: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[str, str, str, bool]:
    """Return the target of equal accuracy: each config's mean over the seeds that both have."""
    common = sorted({o.seed for o in mop} & {o.seed for o in other})
    what = f"accuracy: MOP - sequential SGD ({other[0].system}), each config, points"
    target = f"{MOST_POINTS} or less either way"
    if len(common) < LEAST_ROUNDS:
        return what, target, f"only {len(common)} seeds; {LEAST_ROUNDS} are needed", False
    ours, theirs = last_accuracies(mop, common), last_accuracies(other, common)
    gaps = {c: 100 * (statistics.mean(ours[c]) - statistics.mean(theirs[c])) for c in ours}
    worst = max(gaps, key=lambda c: abs(gaps[c]))
    inside = sum(abs(gap) <= MOST_POINTS for gap in gaps.values())
    sigma = noise(list(ours.values()), list(theirs.values()))
    text = (
        f"{inside} of {len(gaps)} configs, at most {gaps[worst]:+.2f} (config {worst}), mean "
        f"{statistics.mean(gaps.values()):+.2f}, {len(common)} seeds; seeds alone (sigma "
        f"{sigma:.2f}) would leave {len(gaps) * chance(sigma):.1f}"
    )
    return what, target, text, inside == len(gaps)


def last_accuracies(outcomes: Sequence[Outcome], seeds: Sequence[int]) -> dict[int, list[float]]:
    """Return each config's accuracies after its last epoch, in the order of seeds."""
    last: dict[tuple[int, int], float] = {}
    for outcome in outcomes:
        for r in sorted(outcome.records, key=lambda r: r["epoch"]):
            last[r["config"], outcome.seed] = r["accuracy"]
    configs = sorted({config for config, _ in last})
    return {c: [last[c, seed] for seed in seeds] for c in configs}
