"""Whether a solver finds better plans than the balanced policy's search in the same time.

    pip install ortools highspy      # not among the dependencies
    python benchmarks/solvers.py [--seeds 5]

One epoch of the scheduler study's costs (see `scheduler_study.py`), hops and evaluations free, so
that an epoch is an open shop. OR-Tools CP-SAT gets interval variables, no overlap per config and
per rank, costs scaled to integers, the lower bound, the rotation as a hint, and one thread; HiGHS
gets the disjunctive mixed-integer program of the smallest instances. Building the model is not
counted. What a solver found is timed again with the exact costs; where it found nothing in time,
the hint counts. Seconds are of the clock, for both sides.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
from common import machine
from scheduler_study import Cell, study_costs

from mophpc.schedule.balanced import epoch_bound, plan_epochs, rotation
from mophpc.schedule.stays import Progress, StayCosts, time_order

if TYPE_CHECKING:
    from mophpc.schedule.stays import Order

GRID = ((8, 8), (8, 16), (16, 16), (16, 64))
CASES = ("hetero_configs", "hetero_configs_and_gpus")
UNITS = 200_000
"""Integer units of time in the lower bound."""
LONG_S = 10.0


@dataclass(frozen=True, slots=True)
class Instance:
    """An open shop and the rotation through it."""

    costs: StayCosts
    bound_s: float
    hint: Order
    hint_starts_s: list[float]

    @classmethod
    def of(cls, cell: Cell, seed: int) -> Instance:
        costs = StayCosts.of(study_costs(cell, seed), tuple(range(cell.ranks)), cell.ranks)
        hint = rotation(np.argsort(-costs.epoch_s, kind="stable"), cell.ranks, 1)
        starts = time_order(hint, Progress.start(cell.configs, cell.ranks, 1), costs)
        return cls(costs, epoch_bound(costs), hint, starts)

    def ratio(self, order: Order) -> float:
        """Return makespan / lower bound of an order."""
        progress = Progress.start(*self.costs.stay_s.shape, 1)
        time_order(order, progress, self.costs)
        return float(progress.free_s.max()) / self.bound_s

    def by_start(self, starts: Sequence[tuple[float, int, int]]) -> float:
        """Return makespan / lower bound of stays given as (start, config, rank)."""
        return self.ratio([(config, rank) for _, config, rank in sorted(starts)])


def search(instance: Instance) -> tuple[float, float]:
    """Return makespan / lower bound of our plan, and the seconds that it took."""
    start = time.perf_counter()
    order, _ = plan_epochs(instance.costs, 1, 0)
    return instance.ratio(order), time.perf_counter() - start


def cp_sat(instance: Instance, limit_s: float) -> float:
    """Return makespan / lower bound of what CP-SAT finds."""
    from ortools.sat.python import cp_model

    configs, ranks = instance.costs.stay_s.shape
    unit_s = instance.bound_s / UNITS
    took = np.maximum(1, np.rint(instance.costs.stay_s / unit_s)).astype(int)
    horizon = int(2 * max(took.sum(axis=0).max(), took.sum(axis=1).max(), 1) + took.max())
    hint_ends = [
        start + instance.costs.stay_s[stay]
        for stay, start in zip(instance.hint, instance.hint_starts_s, strict=True)
    ]
    horizon = max(horizon, int(max(hint_ends) / unit_s * 1.01) + ranks * configs)
    model = cp_model.CpModel()
    begin = [[model.new_int_var(0, horizon, "") for _ in range(ranks)] for _ in range(configs)]
    boxes = [
        [model.new_fixed_size_interval_var(begin[c][r], int(took[c, r]), "") for r in range(ranks)]
        for c in range(configs)
    ]
    for own in [*boxes, *zip(*boxes, strict=True)]:
        model.add_no_overlap(own)
    least = int(max(took.sum(axis=0).max(), took.sum(axis=1).max()))
    makespan = model.new_int_var(least, horizon, "")
    for c in range(configs):
        for r in range(ranks):
            model.add(makespan >= begin[c][r] + int(took[c, r]))
    free, ready = [0] * ranks, [0] * configs  # the rotation in whole units, for a complete hint
    for c, r in instance.hint:
        at = max(free[r], ready[c])
        model.add_hint(begin[c][r], at)
        free[r] = ready[c] = at + int(took[c, r])
    model.add_hint(makespan, max(free))
    model.minimize(makespan)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return instance.ratio(instance.hint)
    return instance.by_start(
        [(solver.value(begin[c][r]), c, r) for c in range(configs) for r in range(ranks)]
    )


def highs(instance: Instance, limit_s: float) -> float:
    """Return makespan / lower bound of what HiGHS finds: one binary per pair that may overlap."""
    import highspy

    stay_s = instance.costs.stay_s
    configs, ranks = stay_s.shape
    solver = highspy.Highs()
    for name, value in (("output_flag", False), ("time_limit", limit_s), ("threads", 1)):
        solver.setOptionValue(name, value)
    latest = instance.ratio(instance.hint) * instance.bound_s
    begin = [[solver.addVariable(lb=0, ub=latest) for _ in range(ranks)] for _ in range(configs)]
    makespan = solver.addVariable(lb=instance.bound_s, ub=latest)
    stays = [(c, r) for c in range(configs) for r in range(ranks)]
    for c, r in stays:
        solver.addConstr(makespan >= begin[c][r] + float(stay_s[c, r]))
    for (c, r), (d, q) in combinations(stays, 2):
        if c != d and r != q:
            continue
        first: Any = solver.addBinary()
        one, other = float(stay_s[c, r]), float(stay_s[d, q])
        solver.addConstr(begin[c][r] + one <= begin[d][q] + (latest + one) * (1 - first))
        solver.addConstr(begin[d][q] + other <= begin[c][r] + (latest + other) * first)
    solver.minimize(makespan)
    if solver.getInfo().primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return instance.ratio(instance.hint)
    values = solver.getSolution().col_value
    return instance.by_start([(values[begin[c][r].index], c, r) for c, r in stays])


def apart(instance: Instance, limit_s: float) -> float:
    """Call `highs` in a process of its own: its library and that of OR-Tools exclude each other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(highs, instance, limit_s).result()


def row(cell: Cell, seeds: range) -> str:
    """Measure one line of the table."""
    found: list[list[float]] = []
    seconds = []
    for seed in seeds:
        instance = Instance.of(cell, seed)
        ours, took_s = search(instance)
        solved = [cp_sat(instance, max(took_s, 1e-3)), cp_sat(instance, LONG_S)]
        small = cell.ranks * cell.configs <= 64
        found.append([ours, *solved, apart(instance, LONG_S) if small else np.nan])
        seconds.append(took_s)
        print(cell, seed, took_s, found[-1], file=sys.stderr, flush=True)
    cells = [
        f"{np.mean(own):.4f} ({max(own):.4f})" if np.isfinite(own).all() else "-"
        for own in zip(*found, strict=True)
    ]
    return f"| {cell} | {np.mean(seconds):.2f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    missing = [name for name in ("ortools", "highspy") if find_spec(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} not found; install: pip install {' '.join(missing)}")
    print(f"{machine()}\n\nMakespan / lower bound, {arguments.seeds} seeds: mean (worst)\n")
    print(
        "| case | ranks x configs | search s | search | CP-SAT, the same s | CP-SAT, 10 s ", end=""
    )
    print("| HiGHS, 10 s |\n|---|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        for ranks, configs in GRID:
            print(row(Cell(case, ranks, configs), range(arguments.seeds)), flush=True)


if __name__ == "__main__":
    main()
