"""Runs on two hosts of which one cannot be reached any more: how soon all have ended, and resume.

    python benchmarks/faults_hosts.py [--runs 10] [--seed 0]

Two hosts on this machine, each with a network and a name of its own, as in tests/whole/hosts.py; 2
ranks on each, 4 configs. At a random moment the cable between them loses what is sent, without a
word to who sends it; in every other run all processes of the second host die as well. Then the run
is resumed on one host, and every config is trained again sequentially. Needs root, ip and unshare.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import ROOT, Targets, machine, mophpc

sys.path.insert(0, str(ROOT / "tests" / "whole"))
sys.path.insert(0, str(ROOT / "tests"))
from hosts import TCP, Hosts, why_not
from mpi_launch import end, mpirun, started

from mophpc.run.faults.places import Whereabouts, born, read_places

WITHIN_S = 10.0
LIMIT_S = 90.0
TOML = """
build = "{root}/tests/whole/user_code.py:unhurried"
epochs = 12
seed = 1
[data]
store = "{store}"
[space]
width = [4, 8]
lr = [0.01, 0.05]
"""


@dataclass
class Cut:
    """A run in which a host could not be reached any more."""

    ranks_s: float
    """From the cut until all ranks had ended."""
    launcher_s: float
    """And mpirun."""
    is_named: bool
    is_equal: bool


def write_inputs(folder: Path) -> Path:
    """Make a store of 4 shards, and an experiment; return that."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 6)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    mophpc("prepare", str(folder / "rows.npz"), str(folder / "rows.zarr"), "--shards", "4")
    toml = folder / "tune.toml"
    toml.write_text(TOML.format(root=ROOT, store=folder / "rows.zarr"))
    return toml


def cut_run(folder: Path, toml: Path, number: int, rng: random.Random) -> Cut:
    """Make a run, cut its hosts apart, resume and verify it."""
    run, said = folder / f"run-{number}", folder / f"said-{number}"
    command = ["mophpc", "run", toml, "--out", run, "--progress", "off"]
    with Hosts(folder) as hosts, said.open("w") as out:
        process = started(hosts.command(2, *command), env=TCP, stdout=out, stderr=subprocess.STDOUT)
        try:
            places = wait_for_beats(process, run)
            time.sleep(rng.uniform(0.0, 2.0))
            hosts.cut()
            begin_s = time.monotonic()
            if number % 2:
                hosts.kill(1, but_session=process.pid)
            ranks_s = launcher_s = LIMIT_S
            while time.monotonic() < begin_s + LIMIT_S and LIMIT_S in (ranks_s, launcher_s):
                now_s = time.monotonic() - begin_s
                if ranks_s == LIMIT_S and not any(born(w.pid) == w.born for w in places):
                    ranks_s = now_s
                if launcher_s == LIMIT_S and process.poll() is not None:
                    launcher_s = now_s
                time.sleep(0.02)
        finally:
            end(process)
    text = said.read_text(errors="replace")
    is_named = "its host cannot be reached: for " in text and process.returncode != 0
    done = mpirun(2, *command, "--resume")
    is_equal = done.returncode == 0 and is_verified(run)
    if not (is_named and is_equal):
        print(f"  {number}: {process.returncode}: {text}{done.stderr}", file=sys.stderr)
    return Cut(ranks_s, launcher_s, is_named, is_equal)


def wait_for_beats(process: subprocess.Popen[str], run: Path) -> list[Whereabouts]:
    """Wait until hosts have heard of each other; return where the ranks are."""
    while True:
        places = read_places(run)
        if len(places) == 4 and min(places[0].sent, places[2].sent) >= 1:
            return places
        if process.poll() is not None:
            sys.exit("the run ended before its hosts had heard of each other")
        time.sleep(0.02)


def is_verified(run: Path) -> bool:
    """Return whether all configs of a run are equal to sequential training."""
    command = [sys.executable, "-m", "mophpc", "verify", str(run), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    verdicts = json.loads(done.stdout) if done.stdout else []
    return len(verdicts) == 4 and all(verdict["equal"] for verdict in verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"No hosts: {reason}.")
    print(machine(), flush=True)
    rng, targets, runs = random.Random(arguments.seed), Targets(), arguments.runs
    print("| what | target | measured | met |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="hosts") as scratch:
        folder = Path(scratch)
        toml = write_inputs(folder)
        cuts = [cut_run(folder, toml, number, rng) for number in range(runs)]
    times = [cut.ranks_s for cut in cuts]
    measured = f"{statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})"
    what = f"from the loss of a host to the end of the last rank, {runs} runs"
    targets.row(what, f"{WITHIN_S:.0f} s", measured, met=max(times) <= WITHIN_S)
    times = [cut.launcher_s for cut in cuts]
    measured = f"{statistics.median(times):.1f} s ({min(times):.1f} to {max(times):.1f})"
    targets.row("to the end of mpirun", "it ends", measured, met=max(times) < LIMIT_S)
    named, equal = sum(cut.is_named for cut in cuts), sum(cut.is_equal for cut in cuts)
    measured = f"{named} named, {equal} equal"
    met = named == equal == runs
    targets.row("named; resumed on one host, and equal", f"{runs}", measured, met=met)
    return int(targets.missed)


if __name__ == "__main__":
    sys.exit(main())
