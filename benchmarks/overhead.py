"""What mophpc costs: time inside visits against plain PyTorch, and time outside visits.

    python benchmarks/overhead.py [--rounds 5]

Inside: one rank trains configs with visits of about a second; the same training is written as a
plain PyTorch loop over in-memory tensors, in a process of its own; both alternate, and the ratio
is taken within each round. Outside: two ranks on two cores, the share of the makespan that is
neither visit, nor evaluation, nor an idle slot of the plan.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT, events, machine, makespan, run_experiment, seconds, spread

ROWS, WIDTH = 48_000, 512
CONFIGS, SHARDS, EPOCHS = 4, 2, 2

TOML = """
build = "{root}/benchmarks/overhead_model.py:build"
epochs = {epochs}
seed = 1
[data]
store = "{store}"
[schedule]
costs = "equal"  # the rotation, which has no idle slots here
[space]
lr = {rates}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", type=Path, help="(used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.plain is not None:
        print(plain_loop(arguments.plain))
        return
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(scratch), arguments.rounds)


def measure(folder: Path, rounds: int) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, WIDTH), dtype=np.float32)
    y = generator.integers(0, 10, ROWS)
    np.savez(folder / "data.npz", x=x, y=y, x_valid=x[:1000], y_valid=y[:1000])
    store = folder / "store.zarr"
    command = [sys.executable, "-m", "mophpc", "prepare", str(folder / "data.npz"), str(store)]
    subprocess.run([*command, "--shards", str(SHARDS)], check=True, capture_output=True)
    inside, outside, visit_s = [], [], []
    for number in range(rounds):
        toml = write_toml(folder, store, CONFIGS)
        run = folder / f"inside-{number}"
        run_experiment(toml, run, ranks=1)
        ours = seconds(events(run)[0], "visit")
        plain = run_plain(store)
        inside.append(ours / plain)
        visit_s.append(ours / (CONFIGS * SHARDS * EPOCHS))
        run = folder / f"outside-{number}"
        run_experiment(write_toml(folder, store, 2 * CONFIGS), run, ranks=2)
        outside.append(outside_share(run))
        print(f"round {number}: inside / plain {inside[-1]:.4f}, outside {outside[-1]:.4f}")
    print(f"visits of {statistics.median(visit_s):.2f} s")
    print(f"time inside visits / plain PyTorch loop: {spread(inside)} (target 1.03 or less)")
    print(f"time outside visits / makespan, 2 ranks: {spread(outside)} (target 0.02 or less)")


def write_toml(folder: Path, store: Path, configs: int) -> Path:
    toml = folder / f"experiment-{configs}.toml"
    rates = [0.001 * (1 + i) for i in range(configs)]
    toml.write_text(TOML.format(root=ROOT, store=store, epochs=EPOCHS, rates=rates))
    return toml


def outside_share(run: Path) -> float:
    """Return the largest share of a rank's makespan that is neither visit nor evaluation."""
    span = makespan(run)
    busy = [seconds(rank, "visit") + seconds(rank, "eval") for rank in events(run)]
    return max(1.0 - own / span for own in busy)


def run_plain(store: Path) -> float:
    command = [sys.executable, __file__, "--plain", str(store)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(done.stdout)


def plain_loop(store: Path) -> float:
    """Return the seconds of training as anyone would write it, data loading aside."""
    import time

    import torch
    import zarr
    from overhead_model import build

    torch.set_num_threads(1)
    group = zarr.open_group(store, mode="r")
    x, y = (torch.from_numpy(np.asarray(group[f"train/{name}"][:])) for name in "xy")
    rows = len(x) // SHARDS
    shards = [(x[s * rows : (s + 1) * rows], y[s * rows : (s + 1) * rows]) for s in range(SHARDS)]
    start = time.perf_counter()
    for config in range(CONFIGS):
        task = build({"lr": 0.001 * (1 + config)})
        task.model.train()
        for _ in range(EPOCHS):
            for inputs, targets in shards:
                for index in torch.randperm(len(inputs)).split(task.batch_size):
                    task.optimizer.zero_grad()
                    # index_select is three times as fast as inputs[index]
                    outputs = task.model(inputs.index_select(0, index))
                    loss = task.loss(outputs, targets.index_select(0, index))
                    if not math.isfinite(loss.item()):
                        raise SystemExit("diverged")
                    loss.backward()
                    task.optimizer.step()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
