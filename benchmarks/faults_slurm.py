"""Runs on a real Slurm that are put back into its queue, and go on.

    python benchmarks/faults_slurm.py [--runs 5] [--seed 0]

Each is a job of two of the four nodes that tests/slurm makes on this machine, of 4 configs and 5
epochs. At a random moment it is interrupted, in turns by `scontrol requeue`, which kills its ranks
without a word, and by `scancel --signal=USR1`, after which it puts itself back. When it has ended,
every config is trained again sequentially. Needs Slurm: launch/slurm.sh installs Debian's.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, Targets, machine, mophpc

sys.path.insert(0, str(ROOT / "tests" / "slurm"))
sys.path.insert(0, str(ROOT / "tests"))
from cluster import Cluster, start, why_not
from jobs import Submitted, submit_run, write_store
from mpi_launch import is_open_mpi

EPOCHS, CONFIGS = 5, 4
MOST_EPOCHS = 16
"""Of 20 that all configs make together: the interruption comes after so many, at the latest."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        sys.exit(f"No Slurm: {reason}; launch/slurm.sh installs it.")
    print(machine(), flush=True)
    rng, targets = random.Random(arguments.seed), Targets()
    print("| what | target | measured | met |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="slurm") as scratch:
        folder = Path(scratch)
        (folder / "cluster").mkdir()
        cluster = start(folder / "cluster")
        try:
            store, ended, equal = write_store(folder), 0, 0
            for number in range(arguments.runs):
                own = folder / f"run-{number}"
                own.mkdir()
                submitted = interrupted(cluster, store, own, rng, number)
                ended += has_gone_on(submitted)
                equal += is_equal(submitted)
        finally:
            cluster.stop()
    runs = arguments.runs
    name = f"requeue through Slurm, {runs} runs"
    measured = f"{ended} end after one restart, {equal} equal"
    targets.row(name, f"{runs} end, digests equal", measured, met=ended == equal == runs)
    return int(targets.missed)


def interrupted(
    cluster: Cluster, store: Path, folder: Path, rng: random.Random, number: int
) -> Submitted:
    """Submit a run, and interrupt it when so many epochs have been made."""
    mpi = "pmix" if is_open_mpi() else "pmi2"
    words = ["--nodes", "2", "--requeue", "--no-check", "--time", "10", "--mpi", mpi]
    submitted = submit_run(cluster, store, folder, *words, epochs=EPOCHS, slow_s=0.03)
    submitted.wait_for_epochs(rng.randint(1, MOST_EPOCHS))
    if number % 2:
        cluster.command("scancel", "--signal=USR1", submitted.job)
    else:
        cluster.command("scontrol", "requeue", submitted.job)
    return submitted


def has_gone_on(submitted: Submitted) -> bool:
    """Let it start again, and return whether all its configs are done at the end."""
    submitted.start_again()
    facts = submitted.wait_for("COMPLETED", "FAILED", restarts=1, timeout=300.0)
    done = facts["JobState"] == "COMPLETED"
    done = done and list(submitted.statuses().values()) == [("done", EPOCHS)] * CONFIGS
    if not done:
        print(submitted.log, file=sys.stderr, flush=True)
    return done


def is_equal(submitted: Submitted) -> bool:
    """Return whether all its configs are equal to sequential training."""
    try:
        mophpc("verify", str(submitted.run))
    except subprocess.CalledProcessError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
