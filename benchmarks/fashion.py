"""Fashion-MNIST, 16 configs on 2 and on 4 ranks: proof, equality, accuracy and bytes moved.

    python benchmarks/fashion.py --data /usr/share/datasets/fashion-mnist

The data are Debian's package dataset-fashion-mnist. Takes about 20 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import events, machine, makespan, results, run_experiment, write_fashion

RANKS = (2, 4)
HEADER_BYTES = 4096


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--keep", type=Path, help="keep the store and the runs here")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return measure(arguments.data, folder)


def measure(data: Path, folder: Path) -> int:
    # Routes that do not depend on times.
    toml = write_fashion(folder, data, 4, '\n[schedule]\ncosts = "equal"\n')
    failed = False
    for ranks in RANKS:
        run = folder / f"ranks-{ranks}"
        took = run_experiment(toml, run, ranks)
        rows = results(run)
        best = max(row["best"] for row in rows)
        print(f"{ranks} ranks: {took:.0f} s in all, makespan {makespan(run):.0f} s")
        print(f"{ranks} ranks: best accuracy {best:.4f} (target 0.90 or more)")
        failed |= best < 0.90 or not check_bytes(run, ranks, len(rows))
    failed |= not compare(*(results(folder / f"ranks-{ranks}") for ranks in RANKS))
    for ranks in RANKS:
        failed |= not verify(folder / f"ranks-{ranks}")
    return int(failed)


def check_bytes(run: Path, ranks: int, configs: int) -> bool:
    """Compare the bytes of state that were sent with the formula of the design."""
    hops = [
        r for rank in events(run) for r in rank if r["kind"] == "hop" and r["direction"] == "send"
    ]
    state = {r["config"]: r["nbytes"] for r in hops}
    epochs = 1 + max(r["epoch"] for rank in events(run) for r in rank if r["kind"] == "visit")
    moved = sum(r["nbytes"] for r in hops)
    due = epochs * (ranks - 1) * sum(state.values())
    header = max(r["header_nbytes"] for r in hops)
    print(
        f"{ranks} ranks: {moved} bytes moved in {epochs} epochs, (ranks - 1) x state bytes x "
        f"configs = {due}; headers of at most {header} bytes a hop"
    )
    return moved == due and header <= HEADER_BYTES and len(state) == configs


def compare(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    """Compare the states of configs that took equal routes on different numbers of ranks."""

    def shards(row: dict[str, Any]) -> list[int]:
        return [visit["shard"] for visit in row["route"]]

    pairs = [(a, b) for a, b in zip(first, second, strict=True) if shards(a) == shards(b)]
    equal = sum(a["state_sha256"] == b["state_sha256"] for a, b in pairs)
    print(f"{len(pairs)} configs had equal routes on 2 and 4 ranks; {equal} ended equal")
    return bool(pairs) and equal == len(pairs)


def verify(run: Path) -> bool:
    """Verify all configs of a run, two at a time."""

    def one(config_id: int) -> tuple[int, str]:
        command = [sys.executable, "-m", "mophpc", "verify", str(run), "--config", str(config_id)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(one, range(len(results(run)))))
    equal = sum(status == 0 for status, _ in verdicts)
    print(f"{run.name}: {equal} of {len(verdicts)} configs equal to sequential training")
    for status, text in verdicts:
        if status != 0:
            print(text)
    return equal == len(verdicts)


if __name__ == "__main__":
    sys.exit(main())
