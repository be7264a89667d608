"""Balanced plans as they are really executed: mpirun, 8 ranks, visits that sleep, mixed costs.

    python benchmarks/execution.py [--rounds 5]

16 and 64 configs, 4 epochs, costs drawn from the study in scheduler-study.json. The costs file is
exact, or wrong by 20% per config (lognormal); the plan is renewed as visits are measured. Printed
is the real makespan over the lower bound of the times that visits and evaluations really took.
A sleeping visit needs no core, so 8 ranks do not disturb each other much on 2 cores. Takes about
20 minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT, events, machine, makespan, run_experiment, spread

from mophpc.experiment import load_experiment
from mophpc.search.space import make_configs

RANKS, EPOCHS = 8, 4
MEAN_VISIT_S = {16: 0.6, 64: 0.2}
TARGETS = {"exact": 1.03, "wrong": 1.06}

TOML = """
build = "{root}/benchmarks/sleeping_model.py:build"
epochs = {epochs}
seed = {seed}
[data]
store = "{store}"
[schedule]
costs = "{costs}"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--configs", type=int, nargs="+", default=sorted(MEAN_VISIT_S))
    parser.add_argument("--keep", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return measure(folder, arguments.configs, arguments.rounds)


def measure(folder: Path, sizes: list[int], rounds: int) -> int:
    store = folder / "digits.zarr"
    if not store.exists():
        command = [sys.executable, "-m", "mophpc", "prepare", "digits", str(store)]
        subprocess.run([*command, "--shards", str(RANKS)], check=True, capture_output=True)
    missed = False
    for num_configs in sizes:
        found: dict[str, list[float]] = {kind: [] for kind in TARGETS}
        for number in range(rounds):
            for kind in TARGETS:
                run = folder / f"{num_configs}-{kind}-{number}"
                toml = write_inputs(folder, store, num_configs, kind, number)
                run_experiment(toml, run, RANKS)
                found[kind].append(makespan(run) / bound(run, num_configs))
                print(f"{run.name}: {found[kind][-1]:.4f}, {told(run)}", flush=True)
        for kind, target in TARGETS.items():
            ratio = statistics.median(found[kind])
            missed |= ratio > target
            print(
                f"{num_configs} configs, {kind} costs: makespan / lower bound "
                f"{spread(found[kind])} (target {target} or less)"
            )
    return int(missed)


def write_inputs(folder: Path, store: Path, num_configs: int, kind: str, seed: int) -> Path:
    """Write an experiment with drawn costs, and the costs file that it believes."""
    study = json.loads((ROOT / "benchmarks/scheduler-study.json").read_text())
    generator = np.random.default_rng(seed)
    cost = generator.choice(study["cnn_gflop_per_image"], num_configs)
    visit_s = cost / cost.mean() * MEAN_VISIT_S[num_configs]
    factor = np.exp(0.2 * generator.standard_normal(num_configs))
    believed = visit_s * (factor if kind == "wrong" else 1.0)
    rows = 1617 / RANKS
    costs = folder / f"costs-{num_configs}-{kind}-{seed}.json"
    toml = folder / f"{num_configs}-{kind}-{seed}.toml"
    lists = "".join(f"[[configs]]\nvisit_s = {s:.6f}\nrows = {rows:g}\n" for s in visit_s)
    head = TOML.format(root=ROOT, epochs=EPOCHS, seed=seed, store=store, costs=costs)
    toml.write_text(head + lists)
    names = [config.name for config in make_configs(load_experiment(toml))]
    known = {name: {"visit_s": float(s)} for name, s in zip(names, believed, strict=True)}
    costs.write_text(json.dumps({"format": 1, "configs": known}))
    return toml


def bound(run: Path, num_configs: int) -> float:
    """Return the lower bound of the times that visits and evaluations really took."""
    by_config, by_rank = np.zeros(num_configs), np.zeros(RANKS)
    for record in (r for own in events(run) for r in own if r["kind"] in ("visit", "eval")):
        took = record["end"] - record["start"]
        by_config[record["config"]] += took
        by_rank[record["rank"]] += took
    return float(max(by_config.max(), by_rank.max()))


def told(run: Path) -> str:
    """Return how often the plan was renewed, and how long ranks waited to be told."""
    waited = [r["end"] - r["start"] for own in events(run) for r in own if r["kind"] == "told"]
    renewals = len(json.loads((run / "plan.json").read_text())["renewals"])
    return f"{renewals} renewals, {sum(waited):.2f} s waited for orders on {RANKS} ranks"


if __name__ == "__main__":
    sys.exit(main())
