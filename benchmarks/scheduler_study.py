"""How good schedules are on the scheduler study of the Cerebro paper, all of it simulated.

    python benchmarks/scheduler_study.py [--quick] [--seeds 20] [--jobs 2] [--long] \\
        [--part wrong] [--grid 8x16 16x64]

Planned: makespan of a balanced plan over the lower bound, of one epoch and of four, and what the
planning takes. Wrong costs: makespan over the lower bound of what really happens, where each
config takes a lognormal factor (20%) longer or shorter than believed and each visit one of 3%,
for a balanced plan with and without renewal and for three other ways to schedule, over four epochs
(and ten with --long). That is measured in both directions: the study's costs are believed and the
factors are real, or the factors are believed and the study's costs are real.

Costs are those of `scheduler-study.json`, scaled so that a visit takes 10 s in the mean (a search
may take a share of that; 0.5 s with --quick), a shard per rank, hops and evaluations free.
Planning seconds are CPU seconds of one core. Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import machine

from mophpc.schedule.bounds import lower_bound
from mophpc.schedule.costs import Costs
from mophpc.schedule.execute import Reality
from mophpc.schedule.plan import Plan
from mophpc.schedule.policies import make_plan
from mophpc.schedule.whatif import SCHEDULES, Outcome, Row, compare, rows

STUDY = json.loads((Path(__file__).parent / "scheduler-study.json").read_text())
MEAN_VISIT_S = 10.0
QUICK_VISIT_S = 0.5
NOISE, JITTER = 0.2, 0.03
GREEDY, RENEWED = SCHEDULES.index("randomized greedy"), SCHEDULES.index("balanced, renewed")
FACTORS_REAL, FACTORS_BELIEVED = "factors are real", "factors are believed"
TITLES = {
    FACTORS_REAL: "the planner believes the study's costs, reality is these times the factors",
    FACTORS_BELIEVED: "the planner believes the study's costs times the factors, reality is the "
    "study's costs",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A case of the study and an entry of its grid."""

    case: str
    ranks: int
    configs: int
    mean_visit_s: float = MEAN_VISIT_S

    def __str__(self) -> str:
        return f"{self.case} | {self.ranks} x {self.configs}"


def study_costs(cell: Cell, seed: int) -> Costs:
    """Draw a cell's costs as the study describes them."""
    generator = np.random.default_rng(seed)
    if cell.case == "homogeneous":
        gflop = np.full(cell.configs, 4.0)
    else:
        gflop = generator.choice(STUDY["cnn_gflop_per_image"], cell.configs)
    speed = np.ones(cell.ranks)
    if cell.case == "hetero_configs_and_gpus":
        speed = generator.choice(STUDY["gpu_tflops"], cell.ranks)
    visit_s = gflop[:, None] / speed
    return Costs.of(visit_s * (cell.mean_visit_s / visit_s.mean()), cell.configs, cell.ranks)


def balanced_plan(cell: Cell, costs: Costs, epochs: int, seed: int) -> Plan:
    return make_plan(
        "balanced",
        num_configs=cell.configs,
        num_shards=cell.ranks,
        num_ranks=cell.ranks,
        num_epochs=epochs,
        seed=seed,
        costs=costs,
    )


# --- planned


@dataclass(frozen=True, slots=True)
class Planned:
    """How a plan came out."""

    ratio: float
    planning_s: float
    makespan_s: float

    @property
    def share(self) -> float:
        return self.planning_s / self.makespan_s


def planned(cell: Cell, epochs: int, seed: int) -> Planned:
    costs = study_costs(cell, seed)
    start = time.process_time()
    plan = balanced_plan(cell, costs, epochs, seed)
    planning_s = time.process_time() - start
    makespan_s = max(visit.predicted_end_s for visit in plan.visits())
    bound_s = lower_bound(costs.visit_s, plan.owners, epochs)
    return Planned(makespan_s / bound_s, planning_s, makespan_s)


def planned_part(cells: Sequence[Cell], options: Options, verdict: Verdict) -> None:
    tasks = [(cell, epochs, seed) for cell in cells for epochs in (1, 4) for seed in options.seeds]
    found: dict[tuple[Cell, int], list[Planned]] = defaultdict(list)
    for (cell, epochs, _), result in options.map(planned, tasks):
        found[cell, epochs].append(result)
    print(f"\n### Planned makespan / lower bound, {len(options.seeds)} seeds: mean (worst)\n")
    head = "| case | ranks x configs | 1 epoch | 4 epochs | planning s | / makespan |"
    print(f"{head}\n|---|---|---|---|---|---|")
    for cell in cells:
        one, four = found[cell, 1], found[cell, 4]
        print(
            f"| {cell} | {spread([p.ratio for p in one])} | {spread([p.ratio for p in four])} "
            f"| {spread([p.planning_s for p in one + four])} "
            f"| {spread([p.share for p in one + four], 5)} |"
        )
    for epochs in (1, 4):
        ratios = [p.ratio for cell in cells for p in found[cell, epochs]]
        verdict.most(f"planned / bound, {epochs} epochs, mean", float(np.mean(ratios)), 1.005)
        verdict.most(f"planned / bound, {epochs} epochs, worst", max(ratios), 1.03)
    every = [p for plans in found.values() for p in plans]
    verdict.most("planning s / predicted makespan, worst", max(p.share for p in every), 0.01)
    big = [p for (cell, _), plans in found.items() if cell.configs == 256 for p in plans]
    if big:
        verdict.most("planning 256 configs x 16 ranks, s, worst", max_s(big), 2.0)


def max_s(plans: Iterable[Planned]) -> float:
    return max(plan.planning_s for plan in plans)


def large_part(verdict: Verdict) -> None:
    cell = Cell("hetero_configs", 256, 1024)
    result = planned(cell, 1, 0)
    name = "1024 configs x 256 ranks, 1 epoch, hetero_configs, seed 0"
    print(f"\n{name}: planned / bound {result.ratio:.4f}, planning {result.planning_s:.1f} s")
    verdict.most("planning 1024 configs x 256 ranks, s", result.planning_s, 30.0)


# --- wrong costs


def wrong(cell: Cell, direction: str, epochs: int, seed: int) -> Outcome:
    costs = study_costs(cell, seed)
    if direction == FACTORS_REAL:
        believed = costs
        reality = Reality.draw(costs, epochs, noise=NOISE, jitter=JITTER, seed=seed)
    else:
        factors = Reality.draw(costs, 1, noise=NOISE, jitter=0.0, seed=seed)
        believed = Costs.of(factors.visit_s[0], cell.configs, cell.ranks)
        reality = Reality.draw(costs, epochs, noise=0.0, jitter=JITTER, seed=seed)
    plan = balanced_plan(cell, believed, epochs, seed)
    return compare(plan, believed, reality, seed=seed)


def wrong_part(
    cells: Sequence[Cell], direction: str, epochs: int, options: Options, verdict: Verdict
) -> None:
    tasks = [(cell, direction, epochs, seed) for cell in cells for seed in options.seeds]
    found: dict[Cell, list[Outcome]] = defaultdict(list)
    for (cell, *_), outcome in options.map(wrong, tasks):
        found[cell].append(outcome)
    print(
        f"\n### Costs wrong by {NOISE:.0%} per config, {JITTER:.0%} per visit, {epochs} epochs, "
        f"{len(options.seeds)} seeds: {TITLES[direction]}\n\n"
        f"Makespan / lower bound of reality: mean (worst).\n\n"
        f"| case | ranks x configs | {' | '.join(SCHEDULES)} | renewals |"
    )
    print("|---" * (len(SCHEDULES) + 3) + "|")
    table = {cell: rows(found[cell]) for cell in cells}
    for cell, own in table.items():
        ratios = " | ".join(f"{row.mean:.3f} ({row.worst:.3f})" for row in own)
        print(f"| {cell} | {ratios} | {own[RENEWED].renewals:.0f} |")
    means = [np.mean([own[place].mean for own in table.values()]) for place in range(RENEWED + 1)]
    print("| all | | " + " | ".join(f"{mean:.3f}" for mean in means) + " | |", flush=True)
    judge_wrong(f"{direction}, {epochs} epochs", table, verdict)


def judge_wrong(name: str, table: dict[Cell, tuple[Row, ...]], verdict: Verdict) -> None:
    renewed = {cell: own[RENEWED].mean for cell, own in table.items()}
    verdict.most(f"{name}: renewed, mean of all", float(np.mean(list(renewed.values()))), 1.02)
    worst = max(renewed, key=renewed.__getitem__)
    verdict.most(f"{name}: renewed, mean of the worst case ({at(worst)})", renewed[worst], 1.05)
    above = {cell: renewed[cell] - own[GREEDY].mean for cell, own in table.items()}
    worst = max(above, key=above.__getitem__)
    # 0.0005 is what three decimals cannot show.
    verdict.most(f"{name}: renewed - randomized greedy, most ({at(worst)})", above[worst], 5e-4)


def at(cell: Cell) -> str:
    return f"{cell.case} {cell.ranks} x {cell.configs}"


# --- common to the parts


@dataclass(slots=True)
class Verdict:
    """Targets, and what was measured."""

    lines: list[tuple[str, float, float]] = field(default_factory=list)

    def most(self, name: str, measured: float, target: float) -> None:
        self.lines.append((name, measured, target))

    def report(self) -> bool:
        """Print all; return whether every target was met."""
        print("\n### Targets\n\n| what | at most | measured | met |\n|---|---|---|---|")
        for name, measured, target in self.lines:
            met = "yes" if measured <= target else "**no**"
            print(f"| {name} | {target:g} | {measured:.4f} | {met} |")
        return all(measured <= target for _, measured, target in self.lines)


@dataclass(frozen=True, slots=True)
class Options:
    """Seeds and processes."""

    seeds: range
    jobs: int

    def map(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Call a function for every task; yield in the order of the tasks, whoever ends first."""
        if self.jobs == 1:
            yield from ((task, function(*task)) for task in tasks)
            return
        with ProcessPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(function, *task) for task in tasks]
            for done, (task, future) in enumerate(zip(tasks, futures, strict=True), 1):
                result = future.result()
                print(f"{done}/{len(tasks)} {task} {result}", file=sys.stderr, flush=True)
                yield task, result


def spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} ({max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="3 seeds, one grid entry, short visits"
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--long", action="store_true", help="wrong costs over 10 epochs too")
    parser.add_argument("--part", choices=("planned", "wrong"), help="only this one")
    parser.add_argument("--grid", nargs="+", metavar="RxC", help="only these, as 16x64")
    arguments = parser.parse_args()
    options = Options(range(3 if arguments.quick else arguments.seeds), arguments.jobs)
    grid = [(entry["ranks"], entry["configs"]) for entry in STUDY["grid"]]
    if arguments.quick:
        grid = [(8, 16)]
    elif arguments.grid:
        grid = [
            (ranks, configs) for ranks, configs in grid if f"{ranks}x{configs}" in arguments.grid
        ]
    mean_visit_s = QUICK_VISIT_S if arguments.quick else MEAN_VISIT_S
    cells = [
        Cell(case, ranks, configs, mean_visit_s)
        for case in STUDY["cases"]
        for ranks, configs in grid
    ]
    print(machine())
    verdict = Verdict()
    if arguments.part != "wrong":
        planned_part(cells, options, verdict)
        if not arguments.quick:
            large_part(verdict)
    if arguments.part != "planned":
        for epochs in (4, 10) if arguments.long else (4,):
            for direction in TITLES:
                wrong_part(cells, direction, epochs, options, verdict)
    if not verdict.report():
        sys.exit(1)


if __name__ == "__main__":
    main()
