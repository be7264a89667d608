"""What a GPU adds: copies of states, whether they are hidden, and training against a plain loop.

    python benchmarks/gpu.py [--part copies|hidden|training] [--rounds 5] [--device cuda|twin]

copies    a state of 100 and of 400 MB to the GPU and back through a stage, against the bandwidth
          of plain copies from and to pinned memory in the same process
hidden    4 configs with states of 400 MB on one rank, visits of half a second: what of a visit
          waits for its state
training  a convolutional network on images that are on the GPU, visits of some seconds, against the
          same training as a plain PyTorch loop with the same settings in a process of its own

Without a GPU it says so and measures nothing; `--device twin` shows that the script runs, and
nothing about GPUs. Ratios are of medians, or of the same round. Exit status 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import ROOT, Targets, events, machine, run_experiment, spread
from gpu_model import CONFIGS, EPOCHS, IMAGES, SHARDS, plain_loop

from mophpc.train.arena import Layout, Slot
from mophpc.train.device import Device, Memory, choose_device
from mophpc.train.stage import Stage

SIZES_MB = (100, 400)
TOML = """
build = "{root}/benchmarks/gpu_model.py:{build}"
epochs = {epochs}
seed = 1
[data]
store = "{store}"
[schedule]
costs = "equal"
[device]
use = "{use}"
[space]
lr = {rates}
"""


class Bench(Targets):
    """Runs the parts."""

    def __init__(self, folder: Path, rounds: int, use: str) -> None:
        super().__init__()
        self.folder = folder
        self.rounds = rounds
        self.use = use

    def copies(self) -> None:
        """States to the device and back."""
        device = choose_device(self.use, [], 0)
        if device.memory is None:
            raise SystemExit("the CPU trains in the arenas themselves")
        for megabytes in SIZES_MB:
            plain, staged = [], []
            for number in range(self.rounds + 2):
                first = plain_copies(device, device.memory, megabytes * 10**6)
                second = staged_copies(device.memory, megabytes * 10**6)
                if number >= 2:
                    plain.append(first)
                    staged.append(second)
            for way, name in enumerate(("to the device", "back")):
                bare = statistics.median(seconds[way] for seconds in plain)
                found = bare / statistics.median(seconds[way] for seconds in staged)
                self.row(
                    f"{megabytes} MB {name}: bandwidth / pinned copy "
                    f"({megabytes / bare / 1e3:.1f} GB/s)",
                    "0.8 or more",
                    f"{found:.2f}",
                    met=found >= 0.8,
                )

    def store(self, rows: int, name: str) -> Path:
        """Make a store of random images."""
        path = self.folder / f"{name}.zarr"
        if not path.exists():
            generator = np.random.default_rng(0)
            x = generator.integers(0, 256, (rows, *IMAGES), dtype=np.uint8)
            y = generator.integers(0, 10, rows)
            np.savez(self.folder / "data.npz", x=x, y=y, x_valid=x[:512], y_valid=y[:512])
            command = [sys.executable, "-m", "mophpc", "prepare", str(self.folder / "data.npz")]
            subprocess.run(
                [*command, str(path), "--shards", str(SHARDS)], check=True, capture_output=True
            )
        return path

    def experiment(self, build: str, store: Path, epochs: int) -> Path:
        """Write an experiment."""
        toml = self.folder / f"{build}.toml"
        rates = [0.001 * (1 + i) for i in range(CONFIGS)]
        toml.write_text(
            TOML.format(
                root=ROOT, build=build, store=store, epochs=epochs, rates=rates, use=self.use
            )
        )
        return toml

    def hidden(self) -> None:
        """What of a visit waits for its state."""
        shares = []
        toml = self.experiment("build_heavy", self.store(4096, "small"), EPOCHS)
        for number in range(self.rounds):
            run = self.folder / f"hidden-{number}"
            run_experiment(toml, run, ranks=1)
            visits = [e for e in events(run)[0] if e["kind"] == "visit"][CONFIGS:]
            shares.append(
                sum(e["copy_s"] for e in visits) / sum(e["end"] - e["start"] for e in visits)
            )
        self.row(
            "400 MB of state: waiting for it / visit",
            "0.03 or less",
            spread(shares),
            met=statistics.median(shares) <= 0.03,
        )

    def training(self) -> None:
        """Training against a plain loop."""
        store = self.store(131072, "large")
        toml = self.experiment("build", store, EPOCHS)
        ratios = []
        for number in range(self.rounds):
            run = self.folder / f"training-{number}"
            run_experiment(toml, run, ranks=1)
            visits = [e for e in events(run)[0] if e["kind"] == "visit"]
            ours = sum(e["end"] - e["start"] for e in visits)
            command = [sys.executable, __file__, "--plain", str(store), "--device", self.use]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            ratios.append(ours / float(done.stdout))
            print(f"round {number}: visits of {ours / len(visits):.2f} s", flush=True)
        self.row(
            "time inside visits / plain loop",
            "1.03 or less",
            spread(ratios),
            met=statistics.median(ratios) <= 1.03,
        )


def plain_copies(device: Device, memory: Memory, nbytes: int) -> tuple[float, float]:
    """Return the seconds of a copy to the device and of one back, as torch makes them."""
    host, there = memory.pinned(nbytes), memory.empty(nbytes)
    host.fill_(1)
    found = []
    for target, source in ((there, host), (host, there)):
        wait(device)
        begin_s = time.perf_counter()
        target.copy_(source, non_blocking=True)
        wait(device)
        found.append(time.perf_counter() - begin_s)
    return found[0], found[1]


def staged_copies(memory: Memory, nbytes: int) -> tuple[float, float]:
    """Return the seconds until a state can be trained, and until it is in its arena again."""
    layout = Layout((Slot("weight", "uint8", (nbytes,), (1,), 0),), nbytes, nbytes)
    stage = Stage(memory)
    arena = memory.pinned(nbytes).numpy()
    arena[:] = 1
    stage.reserve(arena, layout)  # memory is there from the visits before
    begin_s = time.perf_counter()
    stage.fetch(arena, layout)
    stage.ready(arena)
    middle_s = time.perf_counter()
    held = stage.release(arena)
    held.wait()
    end_s = time.perf_counter()
    held.drop()
    return middle_s - begin_s, end_s - middle_s


def wait(device: Device) -> None:
    if device.where.type == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("copies", "hidden", "training")
    parser.add_argument("--part", choices=names, nargs="+", default=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "twin"), default="cuda")
    parser.add_argument("--plain", type=Path, help="(used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("nothing measured: this machine has no GPU")
        return 0
    if arguments.plain is not None:
        print(plain_loop(arguments.plain, choose_device(arguments.device, [], 0).where))
        return 0
    print(machine())
    if arguments.device == "cuda":
        print(torch.cuda.get_device_name())
    print("\n| what | target | measured | met |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), arguments.rounds, arguments.device)
        for name in arguments.part:
            part: Callable[[], None] = getattr(bench, name)
            part()
    return int(bench.missed)


if __name__ == "__main__":
    sys.exit(main())
