"""How mophpc scales: real training, sleeping visits with real hops, and the simulator.

    python benchmarks/scaling.py --smoke
    python benchmarks/scaling.py --csv scaling.csv --plot scaling.png [--rounds 3]

strong   the same configs and data on 1 to 64 ranks
weak     configs and data that both grow with the ranks, so that a rank's work grows, too

Up to as many ranks as there are cores, a model is really trained. Beyond them, visits sleep
instead, so that ranks without a core of their own make real hops, and what the runtime itself
costs can be seen. The simulator goes on from there. What it knows are the runs on the fewest ranks
of each part and kind: seconds per row, per visit and per evaluation, and how far visits differ.
With that it predicts every other point; on the fewest ranks it only repeats what it was told.
Cores of one machine share its memory and more, so that each is slower when all are busy, and its
speed may wander. What the machine gives, plain PyTorch loops say, as many at once as there are
ranks, right before each run that trains and after it: the simulator is told by how much they are
slower than beside the run on the fewest ranks. Printed are all points, a fit (cost per visit,
serial share) and the targets.

--csv is also where to go on: rounds that are in it are not run again. On a cluster:
slurm/scaling.sbatch. Takes about 70 minutes with 3 rounds on 2 cores.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from children import adopt, stop_all
from common import (
    ROOT,
    at_least,
    check_output,
    events,
    mophpc,
    origin,
    plain_loops,
    refuse,
    run_experiment,
)
from pictures import check_picture
from scaling_points import (
    SLEEPING,
    STRONG,
    TRAINING,
    WEAK,
    Book,
    Case,
    Point,
    measured,
)
from scaling_tables import report, summarize

RANKS = (1, 2, 4, 8, 16, 32, 64)
SIMULATED_RANKS = (128, 256)
PACE_TIMES = 3
"""Plain loops train so many times the rows of strong scaling, each."""

TOML = """
build = "{root}/benchmarks/{build}"
epochs = {epochs}
seed = {seed}
[data]
store = "{store}"
[space]
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the experiments are."""

    training_rows: int
    """Of strong scaling; a rank's, in weak scaling, is a quarter of it."""
    training_configs: int
    """Of strong scaling, at least; four per rank in weak scaling."""
    training_epochs: int
    sleeping_rows: int
    """Of a shard on the most ranks."""
    sleep_s: float
    """A visit on the most ranks."""

    def visit_s(self, case: Case) -> float | None:
        """Return what a visit of a case sleeps; None where it does not."""
        if case.kind != SLEEPING:
            return None
        return self.sleep_s / self.sleeping_rows * case.rows / case.ranks


FULL = Sizes(48_000, 8, 2, 40, 0.25)
SMOKE = Sizes(4_000, 4, 1, 20, 0.1)


def make_case(part: str, kind: str, ranks: int, most: int, sizes: Sizes) -> Case:
    """Return the experiment of a part on some ranks.

    Args:
        part: strong or weak.
        kind: training or sleeping.
        ranks: how many.
        most: the most ranks of this kind, for which strong scaling has two configs each.
        sizes: how large experiments are.
    """
    if kind == TRAINING:
        rows, epochs = sizes.training_rows, sizes.training_epochs
        if part == STRONG:
            return Case(part, kind, ranks, max(sizes.training_configs, 2 * most), epochs, rows)
        return Case(part, kind, ranks, 4 * ranks, epochs, rows // 4 * ranks)
    if part == STRONG:
        return Case(part, kind, ranks, 2 * most, 1, sizes.sleeping_rows * most)
    return Case(part, kind, ranks, 2 * ranks, 1, sizes.sleeping_rows * ranks)


def cases(part: str, ranks: Sequence[int], cores: int, sizes: Sizes) -> list[Case]:
    """Return all experiments of a part: training up to the cores, sleeping beyond them."""
    found = []
    for kind in (TRAINING, SLEEPING):
        own = [n for n in sorted(set(ranks)) if (n <= cores) == (kind == TRAINING)]
        found += [make_case(part, kind, n, max(own), sizes) for n in own]
    return found


# --- runs


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how experiments run."""

    folder: Path
    sizes: Sizes
    launcher: str | None
    machine: str
    """And versions, and the date."""

    def run(self, case: Case, number: int) -> Point:
        """Run a round of a case."""
        store = self._store(case)
        name = f"{case.part}-{case.kind}-{case.ranks}-{number}"
        toml, out = self.folder / f"{name}.toml", self.folder / name
        build = "overhead_model.py:build" if case.kind == TRAINING else "sleeping_model.py:build"
        head = TOML.format(root=ROOT, build=build, epochs=case.epochs, seed=number, store=store)
        toml.write_text(head + self._space(case))
        paces = [self._pace(case, store)]
        again = 0
        while out.exists():  # left by a run that was cut off
            again += 1
            out = self.folder / f"{name}-again-{again}"
        self._start(toml, out, case.ranks)
        kinds = ("visit", "eval")
        records = [r for rank in events(out) for r in rank if r["kind"] in kinds]
        paces.append(self._pace(case, store))
        return Point(case, number, measured(records), statistics.mean(paces), self.machine)

    def _pace(self, case: Case, store: Path) -> float:
        """Return seconds per row of plain loops, as many at once as ranks."""
        if case.kind != TRAINING or self.launcher is not None:
            return 1.0  # with a launcher, each rank is taken to have a machine of its own
        epochs = PACE_TIMES * self.sizes.training_rows * case.ranks // case.rows
        spec = {"build": "overhead_model", "configs": [{"lr": 0.001}], "epochs": epochs}
        spec |= {"store": str(store), "shards": case.ranks}
        at_once = [{**spec, "only": rank} for rank in range(case.ranks)]
        return plain_loops(self.folder, at_once) / (epochs * case.rows)

    def _start(self, toml: Path, out: Path, ranks: int) -> None:
        if self.launcher is None:
            run_experiment(toml, out, ranks)
            return
        words = shlex.split(self.launcher.format(ranks=ranks))
        words += ["mophpc", "run", str(toml), "--out", str(out), "--progress", "off"]
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            sys.exit(f"{shlex.join(words)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")

    def _space(self, case: Case) -> str:
        if case.kind == TRAINING:
            rates = [0.001 * (1 + index / case.configs) for index in range(case.configs)]
            return f"lr = {rates}\n"
        # The names of configs must differ; visits do so by nothing that can be seen.
        per_row_s = self.sizes.sleep_s / self.sizes.sleeping_rows
        seconds = [per_row_s * case.rows * (1 + 1e-9 * index) for index in range(case.configs)]
        return f"visit_s = {seconds}\nrows = [{case.rows}]\n"

    def _store(self, case: Case) -> Path:
        store = self.folder / f"{case.kind}-{case.rows}-{case.ranks}.zarr"
        if store.exists():
            return store
        generator = np.random.default_rng(0)
        shape = (512,) if case.kind == TRAINING else (8, 8)
        x = generator.standard_normal((case.rows, *shape), dtype=np.float32)
        y = generator.integers(0, 10, case.rows)
        data = self.folder / "data.npz"
        np.savez(data, x=x, y=y, x_valid=x[:20], y_valid=y[:20])
        mophpc("prepare", str(data), str(store), "--shards", str(case.ranks))
        data.unlink()
        return store


def measure(bench: Bench, due: Sequence[tuple[Case, int]], book: Book) -> None:
    """Run what is due and keep its points; however that ends, no rank stays behind."""
    adopt()
    try:
        for case, number in due:
            book.add(point := bench.run(case, number))
            print(f"{case}, round {number}: {point.measured}", file=sys.stderr, flush=True)
    except BaseException:
        stop_all()
        raise


# --- the command


def duration(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is given; allowed: seconds above 0")
    return found


def launcher(text: str) -> str:
    try:
        words = shlex.split(text.format(ranks=1))
    except (ValueError, LookupError, AttributeError, TypeError):
        words = []
    if not words:
        raise argparse.ArgumentTypeError(
            f"'{text}' is given; allowed: a command as in 'srun --mpi=pmix -n {{ranks}}', with "
            "{ranks} as the only word in braces"
        )
    # A path is looked up from where the command will run.
    if shutil.which(str(ROOT / words[0]) if os.sep in words[0] else words[0]) is None:
        raise argparse.ArgumentTypeError(
            f"'{words[0]}' is given, and there is no such command; load the module that has it, "
            "or name another one"
        )
    return text


def check_files(arguments: argparse.Namespace) -> None:
    """Refuse, before hours of runs, files that could not be written after them."""
    for option, path in (("--csv", arguments.csv), ("--plot", arguments.plot)):
        check_output(option, path)
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            refuse(f"{option} {path}: it may not be written; name another file")
    if arguments.plot is not None:
        check_picture("--plot", arguments.plot)
        if arguments.csv is not None and arguments.csv.resolve() == arguments.plot.resolve():
            refuse(f"--plot {arguments.plot}: --csv is the same file; name another one")


def make_folder(path: Path) -> Path:
    """Make the folder of --keep where it is missing; return it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"--keep {path}: it is no folder and cannot be made one ({error.strerror})")
    return path.resolve()


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse  # type: ignore[method-assign]  # one sentence, without all options
    add: Callable[..., Any] = parser.add_argument
    add("--part", nargs="+", choices=(STRONG, WEAK), default=[STRONG, WEAK])
    add("--ranks", nargs="+", type=at_least(1), help="1 to 64 by default")
    add("--simulate", nargs="+", type=at_least(1), help="further ranks; 128 and 256 by default")
    add("--rounds", type=at_least(1), default=1)
    add("--cores", type=at_least(1), default=len(os.sched_getaffinity(0)), help="for real training")
    add("--sleep", type=duration, help="seconds of a sleeping visit on the most ranks")
    sample = "srun --mpi=pmix -n {ranks}"
    add("--launcher", type=launcher, help=f"instead of mpirun, as in '{sample}'")
    add("--keep", type=Path, help="keep stores and runs here; on a cluster, a shared folder")
    add("--csv", type=Path, help="all points; rounds that are there are not run again")
    add("--plot", type=Path, help="a .png or .svg file")
    add("--smoke", action="store_true", help="small, on 1 to 4 ranks: does it work at all")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    sizes = SMOKE if arguments.smoke else FULL
    if arguments.sleep is not None:
        sizes = replace(sizes, sleep_s=arguments.sleep)
    ranks = arguments.ranks or ((1, 2, 4) if arguments.smoke else RANKS)
    further = arguments.simulate or ((8, 16) if arguments.smoke else SIMULATED_RANKS)
    check_files(arguments)
    book = Book(arguments.csv)
    # All are looked for before the first is run, so that a file of other sizes is refused at once.
    due = [
        (case, number)
        for number in range(arguments.rounds)
        for part in dict.fromkeys(arguments.part)
        for case in cases(part, ranks, arguments.cores, sizes)
        if not book.has(case, number, sizes.visit_s(case))
    ]
    kept = arguments.keep and make_folder(arguments.keep)
    here = origin()
    # A rank that has just been killed may still be writing there.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        bench = Bench(kept or Path(scratch).resolve(), sizes, arguments.launcher, here)
        if due:
            measure(bench, due, book)
    wanted = [point for point in book.points if point.case.part in arguments.part]
    rows = summarize(wanted, further)
    book.write(rows if len(wanted) == len(book.points) else summarize(book.points, further))
    return int(report(rows, arguments.plot))


if __name__ == "__main__":
    sys.exit(main())
