"""What a hop costs: against a raw MPI message, hidden behind compute, and with nothing to train.

    python benchmarks/hop.py [--part bandwidth|slow-link|waiting|large|empty] [--rounds 5]

bandwidth   the state of a transformer and its AdamW, from rank 0 to rank 1: our hop until a Task is
            bound to it, one raw `Send` of as many bytes, mpi4py's pickled `send`, and torch.save
            with torch.load
slow-link   2 ranks, 8 configs, over a link of 1 Gbit/s (a network namespace with tc's token
            bucket; needs root and Debian's iproute2; Open MPI); a hop takes about as long as a
            visit
waiting     2 configs on 4 ranks, 2 cores: what the ranks that wait take of a processor
large       a config of 3 GB, on 2 ranks
empty       64 configs of 1 MB on 8 ranks, whose visits train nothing

Ratios are of medians, within one run of the script. Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, SCRIPT, Targets, events, machine, makespan, mophpc, run_experiment, spread

SIZES_MB = (16, 100, 400)
SLOW_LINK = """
ip link set lo up
tc qdisc add dev lo root tbf rate 1gbit burst 256k latency 50ms
export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo
exec "$@"
"""
TOML = """
build = "{root}/benchmarks/hop_model.py:build"
epochs = {epochs}
[data]
store = "{store}"
[schedule]
costs = "{costs}"
"""
DIGITS_ROWS = 1617


class Bench(Targets):
    """Runs the parts."""

    def __init__(self, folder: Path, rounds: int) -> None:
        super().__init__()
        self.folder = folder
        self.rounds = rounds

    def experiment(
        self, name: str, ranks: int, configs: list[dict[str, float]], epochs: int, costs: str
    ) -> Path:
        """Write an experiment of `hop_model.py`, with a shard per rank."""
        store = self.folder / f"digits-{ranks}.zarr"
        if not store.exists():
            mophpc("prepare", "digits", str(store), "--shards", str(ranks))
        toml = self.folder / f"{name}.toml"
        text = TOML.format(root=ROOT, epochs=epochs, store=store, costs=costs)
        for config in configs:
            values = {"rows": DIGITS_ROWS / ranks, **config}
            text += "[[configs]]\n" + "".join(f"{k} = {v:g}\n" for k, v in values.items())
        toml.write_text(text)
        return toml

    def bandwidth(self) -> None:
        """A hop against other ways to bring the same state to the other rank."""
        rounds = str(3 * self.rounds)
        sizes = [str(size) for size in SIZES_MB]
        command = ["python", str(ROOT / "benchmarks/hop_ranks.py"), *sizes, "--rounds", rounds]
        for record in ranks_print(2, command):
            size = f"{record['nbytes'] / 1e6:.0f} MB"
            took = {way: statistics.median(s) for way, s in record["seconds"].items()}
            speed = record["nbytes"] / took["raw"] / 1e9
            for way in ("hop", "hop, bound", "hop, checked, bound", "hop, built and bound"):
                found = took["raw"] / took[way]
                wanted = way == "hop, bound"
                self.row(
                    f"{size}, {way}: bandwidth / raw Send ({speed:.1f} GB/s)",
                    "0.95 or more" if wanted else "",
                    f"{found:.2f}",
                    met=found >= 0.95 or not wanted,
                )
            for way in ("pickled", "file"):
                found = took[way] / took["hop, bound"]
                self.row(f"{size}, {way} / hop, bound", "8 or more", f"{found:.1f}", met=found >= 8)

    def slow_link(self) -> None:
        """Hops that take as long as visits, over a slow link."""
        exposed, predicted = [], []
        visit_s, state_mb = 0.18, 12.5  # 0.1 s on the wire, 0.2 s where both directions share it
        for number in range(self.rounds):
            configs = [{"visit_s": visit_s + 0.001 * i, "state_mb": state_mb} for i in range(8)]
            # Final checkpoints are no part of the plan; over 12 epochs they are a percent.
            toml = self.experiment("slow", 2, configs, 12, "measured")
            run = self.folder / f"slow-{number}"
            command = ["mophpc", "run", str(toml), "--out", str(run), "--progress", "off"]
            in_slow_network(2, command)
            hops = [e for own in events(run) for e in own if e.get("direction") == "receive"]
            exposed.append(sum(e["exposed_s"] for e in hops) / sum(e["transfer_s"] for e in hops))
            planned = next(e for own in events(run) for e in own if e["kind"] == "plan")
            predicted.append(makespan(run) / planned["makespan_s"] - 1)
            transfer = statistics.median(e["transfer_s"] for e in hops)
            print(f"slow link: a hop takes {transfer:.3f} s, a visit {visit_s} s", flush=True)
        share, off = statistics.median(exposed), abs(statistics.median(predicted))
        self.row(
            "1 Gbit/s: exposed / transfer time", "0.05 or less", spread(exposed), met=share <= 0.05
        )
        self.row(
            "1 Gbit/s: makespan / planned - 1",
            "0.03 either way",
            spread(predicted),
            met=off <= 0.03,
        )

    def waiting(self) -> None:
        """What a rank takes of a processor while it waits."""
        shares = []
        for number in range(self.rounds):
            configs = [{"visit_s": 1.0, "state_mb": 1.0}] * 2
            configs = [c | {"rows": DIGITS_ROWS / 4 + i} for i, c in enumerate(configs)]
            toml = self.experiment("waiting", 4, configs, 2, "equal")
            run = self.folder / f"waiting-{number}"
            run_experiment(toml, run, 4)
            for own in events(run):
                waits = [e for e in own if e["kind"] == "wait" and e["end"] - e["start"] > 0.1]
                waited = sum(e["end"] - e["start"] for e in waits)
                shares.append(sum(e["cpu_s"] for e in waits) / waited)
        self.row(
            "4 ranks on 2 cores: processor of a rank that waits, in cores, worst",
            "0.05 or less",
            f"{max(shares):.4f}",
            met=max(shares) <= 0.05,
        )

    def large(self) -> None:
        """A state of 3 GB hops, and is the same as without hops."""
        configs = [{"visit_s": 0.0, "state_mb": 3000.0}]
        toml = self.experiment("large", 2, configs, 1, "equal")
        run = self.folder / "large"
        run_experiment(toml, run, 2)
        hop = next(e for own in events(run) for e in own if e.get("direction") == "receive")
        verdict = json.loads(mophpc("verify", str(run), "--json"))
        equal = all(v["equal"] for v in verdict)
        speed = hop["nbytes"] / max(hop["transfer_s"], 1e-9) / 1e9
        self.row(
            "a state of 3 GB hops, verified",
            "yes",
            f"{hop['nbytes'] / 1e9:.2f} GB, {speed:.2f} GB/s",
            met=equal,
        )

    def empty(self) -> None:
        """Visits that train nothing."""
        medians, whole = [], []
        for number in range(self.rounds):
            configs = [{"visit_s": 0.0, "state_mb": 1.0, "lane": i} for i in range(64)]
            toml = self.experiment("empty", 8, configs, 4, "equal")
            run = self.folder / f"empty-{number}"
            run_experiment(toml, run, 8)
            visits = [e for own in events(run) for e in own if e["kind"] == "visit"]
            medians.append(1e3 * statistics.median(e["end"] - e["start"] for e in visits))
            whole.append(1e3 * makespan(run) * (os.cpu_count() or 1) / len(visits))
        median = statistics.median(medians)
        self.row(
            "empty visit, 1 MB, 8 ranks, 64 configs: ms",
            "2 or less",
            spread(medians),
            met=median <= 2,
        )
        print(
            f"the same with hop, evaluation and all else: {spread(whole)} ms of a core", flush=True
        )


def ranks_print(ranks: int, command: list[str]) -> list[dict[str, Any]]:
    """Run a program on some ranks; return the lines of JSON that it printed."""
    arguments = ["bash", "-c", SCRIPT, str(ROOT), "3600", str(ranks), *command]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def in_slow_network(ranks: int, command: list[str]) -> None:
    """Run a program on some ranks, in a network namespace whose loopback has 1 Gbit/s."""
    inner = ["bash", "-c", SCRIPT, str(ROOT), "3600", str(ranks), *command]
    arguments = ["unshare", "-n", "bash", "-c", SLOW_LINK, "slow-link", *inner]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("bandwidth", "slow-link", "waiting", "large", "empty")
    parser.add_argument("--part", choices=names, nargs="+", default=names)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(machine())
    print("\n| what | target | measured | met |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), arguments.rounds)
        for name in arguments.part:
            part: Callable[[], None] = getattr(bench, name.replace("-", "_"))
            part()
    return int(bench.missed)


if __name__ == "__main__":
    sys.exit(main())
