"""Runs that are killed, stopped by signals, and resumed; and what states on disk cost.

    python benchmarks/faults.py [--part killed signals cost] [--runs 50] [--seed 0]

killed   all processes of a job are killed at a random moment; it is resumed on 2, 3 or 4 ranks, and
         every config is trained again sequentially.
signals  one rank gets a signal at a random moment; how long the job takes to end, its exit status,
         and the same as above after it was resumed.
cost     makespans with states after each epoch and without, in turns; and what the states took by
         themselves: the time that ranks waited for them, and that of the thread that writes them.

8 configs and 4 epochs each. Moments are drawn from the time that an undisturbed job takes, from
when it has its run folder: before that Python starts, and there is no run. The data of `cost` are
Debian's package dataset-fashion-mnist. Takes an hour and more on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from common import (
    ROOT,
    SCRIPT,
    Targets,
    events,
    machine,
    makespan,
    mophpc,
    results,
    run_experiment,
    spread,
)

CONFIGS, EPOCHS, SHARDS = 8, 4, 4
STOPPED = 75
"""Exit status of a run that a signal has stopped, and that can be resumed."""
LIMIT_S = 60.0
"""Within so long a run ends after a signal."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
HANGS_S = 300.0

TOML = """
build = "{root}/benchmarks/{build}"
epochs = {epochs}
seed = 1
[data]
store = "{store}"
[objective]
metric = "accuracy"
mode = "max"
[space]
{space}
"""


@dataclass(slots=True)
class Setting:
    """What the parts have in common."""

    folder: Path
    targets: Targets
    rng: random.Random
    runs: int
    rounds: int
    data: Path
    whole_s: dict[int, float] = field(default_factory=dict)
    """Of an undisturbed job from when it has its folder, by ranks."""


@dataclass(slots=True)
class Tally:
    """How many runs came to what they should."""

    ended: int = 0
    equal: int = 0
    """Those in which all configs are equal to sequential training."""
    troubles: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts: dict[str, Callable[[Setting], None]] = {
        "killed": killed,
        "signals": signals,
        "cost": cost,
    }
    parser.add_argument("--part", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--runs", type=int, default=50, help="of killed; signals makes 3 for 5")
    parser.add_argument("--rounds", type=int, default=5, help="of cost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    arguments = parser.parse_args()
    print(machine(), flush=True)
    targets = Targets()
    print("| what | target | measured | met |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rng = random.Random(arguments.seed)
        given = (arguments.runs, arguments.rounds, arguments.data)
        setting = Setting(Path(scratch), targets, rng, *given)
        for part in arguments.part:
            parts[part](setting)
    return int(targets.missed)


def digits(folder: Path) -> Path:
    """Return the experiment that is cut off."""
    store, toml = folder / "digits.zarr", folder / "digits.toml"
    if not store.exists():
        mophpc("prepare", "digits", str(store), "--shards", str(SHARDS))
        rates = [0.001 * (1 + number) for number in range(CONFIGS)]
        build = "faults_model.py:build"
        text = TOML.format(
            root=ROOT, build=build, epochs=EPOCHS, store=store, space=f"lr = {rates}"
        )
        toml.write_text(text)
    return toml


class Job:
    """A run under mpirun, with --resume.

    Args:
        toml: the experiment.
        run: its folder.
        ranks: how many.
    """

    def __init__(self, toml: Path, run: Path, ranks: int) -> None:
        command = ["mophpc", "run", str(toml), "--out", str(run), "--resume", "--progress", "off"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the job
        self._process = subprocess.Popen(
            ["bash", "-c", SCRIPT, str(ROOT), "600", str(ranks), *command],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
        self._experiment = run / "experiment.toml"

    def begin(self) -> float:
        """Wait until it has its run folder; return when that was."""
        while not self._experiment.exists() and self.wait(0.0) is None:
            time.sleep(0.01)
        return time.monotonic()

    def wait(self, seconds: float = HANGS_S) -> int | None:
        """Return the exit status, or None if there is none after so long."""
        try:
            return self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def family(self) -> list[psutil.Process]:
        """Return all its processes."""
        try:
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ranks(self) -> list[psutil.Process]:
        """Return the processes that are ranks."""
        found = []
        for process in self.family():
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if "python" in Path(words[0] if words else "").name and "--resume" in words:
                found.append(process)
        return found

    def kill(self) -> None:
        """Kill all processes at once: none sees another die."""
        for sign in (signal.SIGSTOP, signal.SIGKILL):
            for process in self.family():
                try:
                    os.kill(process.pid, sign)
                except ProcessLookupError:
                    continue
            family = self.family()
            if sign == signal.SIGKILL:
                for process in family:
                    try:
                        process.kill()
                    except psutil.NoSuchProcess:
                        continue
        self._process.wait(30)

    def said(self) -> str:
        """Return the end of what it printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-600:].strip()


def whole_s(setting: Setting, ranks: int) -> float:
    """Return the seconds of an undisturbed job from when it has its folder."""
    if ranks not in setting.whole_s:
        toml = digits(setting.folder)
        run = setting.folder / f"whole-{ranks}"
        job = Job(toml, run, ranks)
        begin_s = job.begin()
        if job.wait() != 0:
            sys.exit(f"the undisturbed run failed:\n{job.said()}")
        setting.whole_s[ranks] = time.monotonic() - begin_s
    return setting.whole_s[ranks]


def finish(tally: Tally, toml: Path, run: Path, ranks: int, what: str) -> None:
    """Resume a run, and look at what came of it."""
    job = Job(toml, run, ranks)
    status = job.wait()
    if status != 0:
        job.kill()
        tally.troubles.append(f"{what}, resumed on {ranks}: exit status {status}: {job.said()}")
        return
    rows = results(run)
    if len(rows) == CONFIGS and all(row["status"] == "done" for row in rows):
        tally.ended += 1
    else:
        tally.troubles.append(f"{what}, resumed on {ranks}: not all configs are done")
    command = [sys.executable, "-m", "mophpc", "verify", str(run), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    verdicts = json.loads(done.stdout) if done.stdout else []
    if len(verdicts) == CONFIGS and all(verdict["equal"] for verdict in verdicts):
        tally.equal += 1
    else:
        tally.troubles.append(f"{what}, resumed on {ranks}: {done.stdout}{done.stderr[-600:]}")


def tell(tally: Tally) -> None:
    for text in tally.troubles:
        print(f"  {text}", file=sys.stderr, flush=True)


def killed(setting: Setting) -> None:
    """Kill whole jobs."""
    toml, tally, begun = digits(setting.folder), Tally(), 0
    for number in range(setting.runs):
        ranks, then = setting.rng.choice((2, 3, 4)), setting.rng.choice((2, 3, 4))
        at_s = setting.rng.uniform(0.0, whole_s(setting, ranks))
        run = setting.folder / f"killed-{number}"
        job = Job(toml, run, ranks)
        job.begin()
        if job.wait(at_s) is None:
            job.kill()
        begun += (run / "states").is_dir()
        finish(tally, toml, run, then, f"run {number}, {ranks} ranks, killed after {at_s:.2f} s")
    tell(tally)
    name = f"SIGKILL of the whole job, {setting.runs} runs, resumed on 2, 3 or 4 ranks"
    measured = f"{tally.ended} end ({begun} had written states), {tally.equal} equal"
    met = tally.ended == tally.equal == setting.runs
    setting.targets.row(name, f"{setting.runs} end, all digests equal", measured, met=met)


def signals(setting: Setting) -> None:
    """Send a signal to one rank of each job."""
    toml, tally, runs = digits(setting.folder), Tally(), max(1, setting.runs * 3 // 5)
    stopped, took = 0, []
    for number in range(runs):
        ranks, then = setting.rng.choice((2, 3, 4)), setting.rng.choice((2, 3, 4))
        sign = setting.rng.choice(SIGNALS)
        at_s = setting.rng.uniform(0.0, whole_s(setting, ranks))
        run = setting.folder / f"signal-{number}"
        what = f"run {number}, {ranks} ranks, {sign.name} after {at_s:.2f} s"
        job = Job(toml, run, ranks)
        job.begin()
        job.wait(at_s)
        begin_s = time.monotonic()
        family = sorted(job.ranks(), key=lambda process: process.pid)
        if family:
            setting.rng.choice(family).send_signal(sign)
        status = job.wait()
        took.append(time.monotonic() - begin_s)
        is_over = status == 0 and (run / "results.json").exists()
        if status is None:
            job.kill()
        if (status == STOPPED or is_over) and took[-1] <= LIMIT_S:
            stopped += 1
        else:
            done = "with" if (run / "results.json").exists() else "without"
            text = f"{what}: exit status {status} after {took[-1]:.1f} s, {done} results"
            tally.troubles.append(f"{text}: {job.said()}")
        finish(tally, toml, run, then, what)
    tell(tally)
    measured = (
        f"{stopped} end with status {STOPPED} or had ended, in {statistics.median(took):.1f} s (at "
        f"most {max(took):.1f}); after resume {tally.ended} end, {tally.equal} equal"
    )
    met = stopped == tally.ended == tally.equal == runs
    target = f"{runs} end in {LIMIT_S:.0f} s, resumable, digests equal"
    setting.targets.row(f"signals at random moments, {runs} runs", target, measured, met=met)


def cost(setting: Setting) -> None:
    """Compare makespans with and without states."""
    ranks = 2
    ratios, shares = [], []
    for number in range(setting.rounds):
        took, spent = {}, {}
        order = ("epoch", "off") if number % 2 else ("off", "epoch")
        for states in order:
            toml = write_cost(setting.folder, setting.data, states, EPOCHS)
            run = setting.folder / f"cost-{states}-{number}"
            run_experiment(toml, run, ranks)
            took[states] = makespan(run)
            spent[states] = checkpoint_s(run) / ranks
        ratios.append(took["epoch"] / took["off"] - 1)
        shares.append((spent["epoch"] - spent["off"]) / took["off"])
        line = f"round {number}: {took['epoch']:.2f} s, {took['off']:.2f} s without"
        line += f"; of it for files {spent['epoch']:.3f} s, {spent['off']:.3f} s without, a rank"
        print(line, file=sys.stderr, flush=True)
    for what, found in {"more of the makespan": ratios, "their own time": shares}.items():
        name = f"states each epoch: {what}, {setting.rounds} rounds"
        met = statistics.median(found) <= 0.02
        setting.targets.row(name, "0.02", spread(found), met=met)


def write_cost(folder: Path, data: Path, states: str, epochs: int) -> Path:
    """Return an experiment on Fashion-MNIST that writes states, or does not."""
    store = folder / "fashion.zarr"
    if not store.exists():
        mophpc("prepare", str(data), str(store), "--shards", str(SHARDS))
    space = "width = [128, 256]\nlr = [3e-4, 1e-3, 3e-3, 1e-2]\nbatch_size = [128]"
    build = "search_model.py:build"
    text = TOML.format(root=ROOT, build=build, epochs=epochs, store=store, space=space)
    # Equal costs: the same plan for both.
    head, space_head, rest = text.partition("[space]")
    more = f'[schedule]\ncosts = "equal"\n[checkpoints]\nstates = "{states}"\n'
    toml = folder / f"cost-{states}.toml"
    toml.write_text(head + more + space_head + rest)
    return toml


def checkpoint_s(run: Path) -> float:
    """Return the seconds, of all ranks, waited for files or used by the threads that write them."""
    records = [record for rank in events(run) for record in rank]
    waited_s = sum(r["spent"]["checkpoint_s"] for r in records if r["kind"] == "end")
    used_s: float = sum(r["cpu_s"] for r in records if r["kind"] == "checkpoint")
    return waited_s + used_s


if __name__ == "__main__":
    sys.exit(main())
