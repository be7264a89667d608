"""Ranks that go on without one that died: whether they do, how soon, and what it costs.

    python benchmarks/faults_survive.py [--runs 50] [--rounds 5]

Needs Open MPI, started with `--with-ft ulfm`. 4 ranks, 8 configs, 4 epochs, visits of 50 ms. In
each run one rank is killed (SIGKILL), drawn at random, at a moment drawn between the launch and the
end; `verify` then trains every config again in one process. After a death before all ranks have
met, which MPI does not survive, all have to end, and the run is begun again. What the copies cost
that are kept is the ratio of makespans with and without --survive, in turns, with a model of 6 MB
of state. Takes an hour.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import ROOT, Targets, events, machine, makespan, mophpc

RANKS, CONFIGS, EPOCHS = 4, 8, 4
EARLY = 8
"""So many deaths in set-up come on as many as there are epochs of configs."""
LIMIT_S = 60.0
MPIRUN = ("mpirun", "--oversubscribe", "--bind-to", "none", "--with-ft", "ulfm")

TOML = """
build = "{root}/benchmarks/{build}"
epochs = {epochs}
seed = 1
[data]
store = "{store}"
[schedule]
costs = "equal"
[space]
{space}
"""


@dataclass
class Death:
    """A run in which a rank was killed."""

    rank: int
    after_s: float
    """Since the launch."""
    status: int | None
    """Of mpirun; None: it did not end."""
    run: Path
    said: str
    killed_s: float
    """The time of the death, since 1970; 0: the run had ended."""
    has_met: bool
    """Whether all ranks had met before."""
    took_s: float
    set_up_s: float
    """From the launch to the first visit."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    print(machine())
    targets = Targets()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        store = folder / "digits.zarr"
        if not store.exists():
            mophpc("prepare", "digits", str(store), "--shards", str(RANKS))
        if arguments.runs:
            die(folder, store, arguments.runs, random.Random(arguments.seed), targets)
        if arguments.rounds:
            compare(folder, arguments.rounds, targets)
    return int(targets.missed)


def die(folder: Path, store: Path, runs: int, rng: random.Random, targets: Targets) -> None:
    """Kill one rank of each of so many runs."""
    toml = folder / "deaths.toml"
    rows = 1437 // RANKS
    space = f"visit_s = {[0.05 + i / 1000 for i in range(CONFIGS)]}\nrows = [{rows}]"
    build = "sleeping_model.py:build"
    toml.write_text(TOML.format(root=ROOT, build=build, epochs=EPOCHS, store=store, space=space))
    whole = launch(toml, folder / "whole", None)
    print(
        f"undisturbed: {whole.took_s:.1f} s, first visit after {whole.set_up_s:.1f} s", flush=True
    )
    bad, early, late, recovered, lost, equal = [], 0, 0, [], [], 0
    for number in range(runs):
        run = folder / f"death-{number:03d}"
        lines = rng.randrange(-EARLY, CONFIGS * EPOCHS)
        after_s = rng.uniform(0.1, 1.0) * whole.set_up_s if lines < 0 else rng.uniform(0.0, 0.4)
        death = launch(toml, run, (rng.randrange(RANKS), lines, after_s))
        verdict = "ended" if death.status == 0 else f"status {death.status}"
        status = death.status
        if death.killed_s and not death.has_met and status is not None:
            early += 1
            verdict = f"too early: {verdict}, after {death.took_s - death.after_s:.1f} s"
            status = launch(toml, run, None).status
        if status != 0 or not all_equal(run):
            bad.append(number)
            verdict = f"WRONG: {verdict}\n{death.said[-3000:]}"
        else:
            equal += 1
            late += not death.killed_s
            if death.killed_s and death.has_met:
                seconds, visits = recovery(run, death)
                recovered += [seconds] if seconds is not None else []
                lost.append(visits)
                verdict = f"{verdict}, next visit after {seconds or 0:.2f} s, {visits} visits again"
        print(f"{number}: rank {death.rank} after {death.after_s:.2f} s: {verdict}", flush=True)
    targets.row(
        f"SIGKILL of one of {RANKS} ranks at a random moment, {CONFIGS} configs, {EPOCHS} epochs, "
        f"{runs} runs ({early} before all had met, and begun again; {late} after the end): "
        "all equal",
        f"{runs} of {runs}",
        f"{equal} of {runs}",
        met=not bad,
    )
    if recovered:
        targets.row(
            "from the death to the next visit on the survivors",
            "5 s or less",
            f"{statistics.median(recovered):.2f} s ({min(recovered):.2f} to {max(recovered):.2f})",
            met=max(recovered) <= 5.0,
        )
        targets.row(
            "visits made again, of the configs that the lost rank had",
            f"one per config: {CONFIGS} at most",
            f"{statistics.mean(lost):.1f} (0 to {max(lost)})",
            met=max(lost) <= CONFIGS,
        )


def launch(
    toml: Path, run: Path, death: tuple[int, int, float] | None, *, survive: bool = True
) -> Death:
    """Run; kill a rank after so many ends of epochs and seconds more, if it is still there."""
    command = [*MPIRUN, "-n", str(RANKS), sys.executable, "-m", "mophpc", "run", str(toml)]
    command += ["--out", str(run), "--progress", "off", "--resume"] + ["--survive"] * survive
    start_s = time.time()
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env
    )
    rank, lines, after_s = death or (-1, 0, 0.0)
    killed_s, has_met = 0.0, False
    if death is not None:
        while count_lines(run / "metrics.jsonl") < lines and process.poll() is None:
            time.sleep(0.01)
        time.sleep(after_s)
        ranks = pids(process.pid)
        if process.poll() is None and rank in ranks:
            has_met = len(list((run / "places").glob("rank-*"))) == RANKS
            os.kill(ranks[rank], signal.SIGKILL)
            killed_s = time.time()
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        for pid in pids(process.pid).values():
            os.kill(pid, signal.SIGKILL)
        process.kill()
        said, status = process.communicate()[0], None
    if death is None and status != 0:
        sys.exit(f"{' '.join(command)} failed:\n{said[-4000:]}")
    end_s = time.time()
    set_up_s = 0.0
    if status == 0:
        visits = [e["start"] for own in events(run) for e in own if e["kind"] == "visit"]
        set_up_s = begun(run) + min(visits) - start_s
    at_s = killed_s - start_s if killed_s else end_s - start_s
    return Death(rank, at_s, status, run, said, killed_s, has_met, end_s - start_s, set_up_s)


def count_lines(path: Path) -> int:
    """Return how many lines a file has; 0 where there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def begun(run: Path) -> float:
    """Return the time, since 1970, from which a run's seconds are counted."""
    lines = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    return float(next(line["time"] for line in lines if line["kind"] == "part"))


def pids(launcher: int) -> dict[int, int]:
    """Return the process of each rank that lives, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            raw = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(stat[1]) != launcher or stat[0] in "ZX":
            continue
        values = dict(item.split(b"=", 1) for item in raw if b"=" in item)
        if b"OMPI_COMM_WORLD_RANK" in values:
            found[int(values[b"OMPI_COMM_WORLD_RANK"])] = int(folder.name)
    return found


def all_equal(run: Path) -> bool:
    """Train every config again; return whether all are done, and equal."""
    command = [sys.executable, "-m", "mophpc", "verify", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode != 0:
        return False
    verdicts = json.loads(done.stdout)
    return len(verdicts) == CONFIGS and all(verdict["equal"] is True for verdict in verdicts)


def recovery(run: Path, death: Death) -> tuple[float | None, int]:
    """Return the seconds from the death to the next visit in the next part, and visits again."""
    visits = [e for own in events(run) for e in own if e["kind"] == "visit"]
    again: dict[tuple[int, int], int] = {}
    for visit in visits:
        key = (visit["config"], visit["step"])
        again[key] = again.get(key, 0) + 1
    at_s = death.killed_s - begun(run)
    loads = [e["start"] for own in events(run) for e in own if e["kind"] == "load"]
    anew_s = min((start for start in loads if start > at_s), default=math.inf)
    seconds = min((v["start"] for v in visits if v["start"] > anew_s), default=math.inf) - at_s
    return None if math.isinf(seconds) else seconds, sum(count - 1 for count in again.values())


def compare(folder: Path, rounds: int, targets: Targets) -> None:
    """Measure what the copies cost that are kept until the next visit is made."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((12_000, 512), dtype=np.float32)
    y = generator.integers(0, 10, len(x))
    np.savez(folder / "data.npz", x=x, y=y, x_valid=x[:500], y_valid=y[:500])
    store = folder / "store.zarr"
    if not store.exists():
        mophpc("prepare", str(folder / "data.npz"), str(store), "--shards", str(RANKS))
    toml, ratios = folder / "copies.toml", []
    space = f"lr = {[0.001 * (1 + i) for i in range(CONFIGS)]}"
    build = "overhead_model.py:build"
    toml.write_text(TOML.format(root=ROOT, build=build, epochs=2, store=store, space=space))
    for number in range(rounds):
        spans: dict[bool, float] = {}
        for survive in (True, False) if number % 2 else (False, True):
            run = folder / f"copies-{number}-{survive}"
            launch(toml, run, None, survive=survive)
            spans[survive] = makespan(run)
        ratios.append(spans[True] / spans[False] - 1.0)
        print(f"round {number}: {spans[True]:.2f} s, {spans[False]:.2f} s without", flush=True)
    median = statistics.median(ratios)
    targets.row(
        f"copies that are kept: makespan with / without --survive, {rounds} rounds",
        "1% or less",
        f"{100 * median:.1f}% ({100 * min(ratios):.1f} to {100 * max(ratios):.1f}%)",
        met=median <= 0.01,
    )


if __name__ == "__main__":
    sys.exit(main())
