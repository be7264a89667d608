"""Model selection: what halving saves, how full the ranks stay, copies, rungs, the report.

    python benchmarks/search.py [--part fashion idle asha rung population report]

fashion     27 configs on Fashion-MNIST for 9 epochs: the whole grid, successive halving over it,
            and Hyperband, on 2 and on 4 ranks; accuracy and rank-hours against the grid's.
idle        Hyperband on 8 ranks with visits that sleep: makespan against the lower bound
            max(work / ranks, longest config) of the visits that were really made.
asha        The same with ASHA.
rung        64 configs on 8 ranks, successive halving: from the end of a rung's last visit or
            evaluation to the start of the first visit of the next.
population  8 configs on 4 ranks: every state, copied ones too, against sequential training.
report      the report of a made-up run of 256 configs, 50 epochs, 16 ranks: size and seconds.

The data are Debian's package dataset-fashion-mnist. Takes about 25 minutes on 2 cores, most of them
for the grids.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import ROOT, Targets, events, machine, makespan, mophpc, results, run_experiment

sys.path.insert(0, str(ROOT / "tests" / "report"))

GRID = """
width = [32, 128, 512]
lr = [3e-4, 3e-3, 3e-2]
batch_size = [64, 128, 256]
"""
SEARCHES = {
    "grid": 'method = "grid"',
    "halving": 'method = "halving"\nsampler = "grid"',
    "hyperband": 'method = "hyperband"',
}
PARTS = 20
"""Of a makespan, for which idle ranks are told one by one."""


class Rounds:
    """How often parts with sleeping visits are repeated; how long those of idle and asha are."""

    count = 3
    visit_s = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parts: dict[str, Callable[[Path, Targets, Path], None]] = {
        "fashion": fashion,
        "idle": idle,
        "asha": asha,
        "rung": rung,
        "population": population,
        "report": report,
    }
    parser.add_argument("--part", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--rounds", type=int, default=Rounds.count, help="of idle, asha and rung")
    parser.add_argument(
        "--visit-s", type=float, default=Rounds.visit_s, help="of idle and asha, in the mean"
    )
    parser.add_argument("--keep", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    targets = Targets()
    Rounds.count, Rounds.visit_s = arguments.rounds, arguments.visit_s
    print("| what | target | measured | met |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for part in arguments.part:
            parts[part](folder, targets, arguments.data)
    return int(targets.missed)


def write_toml(folder: Path, name: str, build: str, store: Path, search: str, **more: Any) -> Path:
    space = more.pop("space")
    lines = [f'build = "{ROOT}/benchmarks/{build}"', *(f"{k} = {v}" for k, v in more.items())]
    text = "\n".join(lines) + f'\n[data]\nstore = "{store}"\n'
    if "search_model" in build:
        text += '[objective]\nmetric = "accuracy"\nmode = "max"\n'
    path = folder / f"{name}.toml"
    path.write_text(f"{text}[search]\n{search}\n[space]\n{space}\n")
    return path


def fashion(folder: Path, targets: Targets, data: Path) -> None:
    store = folder / "fashion-search.zarr"
    if not store.exists():
        mophpc("prepare", str(data), str(store), "--shards", "4")
    for ranks in (2, 4):
        best, hours = {}, {}
        for name, search in SEARCHES.items():
            run = folder / f"{name}-{ranks}"
            toml = write_toml(
                folder, name, "search_model.py:build", store, search, epochs=9, seed=1, space=GRID
            )
            run_experiment(toml, run, ranks)
            best[name] = max(row["best"] for row in results(run) if row["best"] is not None)
            hours[name] = ranks * makespan(run) / 3600
        for name in ("halving", "hyperband"):
            short, share = best["grid"] - best[name], hours[name] / hours["grid"]
            what = f"{name}, {ranks} ranks"
            text = f"{100 * short:.2f} ({best[name]:.4f} of {best['grid']:.4f})"
            targets.row(f"{what}: points below the grid's best", "0.5", text, met=short <= 0.005)
            text = f"{share:.0%} ({hours[name]:.4f} of {hours['grid']:.4f} h)"
            targets.row(f"{what}: rank-hours of the grid's", "40%", text, met=share <= 0.4)


def sleeping_store(folder: Path) -> tuple[Path, int]:
    store = folder / "digits.zarr"
    if not store.exists():
        mophpc("prepare", "digits", str(store), "--shards", "8")
    return store, max(json.loads(mophpc("inspect", str(store), "--json"))["rows per shard"])


def idle(folder: Path, targets: Targets, _: Path) -> None:
    mean = Rounds.visit_s
    equal = f"{{ uniform = [{mean}, {mean + 1e-6}] }}"
    searches = {
        "Hyperband, 27 epochs": ('method = "hyperband"', 27, mixed_visits()),
        "Hyperband, equal visits": ('method = "hyperband"', 27, equal),
    }
    idle_under(searches, folder, targets)


def asha(folder: Path, targets: Targets, _: Path) -> None:
    search = 'method = "asha"\nconfigs = 256'
    idle_under({"ASHA, 256 configs, 9 epochs": (search, 9, mixed_visits())}, folder, targets)


def mixed_visits() -> str:
    """Return for what visits take that some are three times as long as others."""
    return f"{{ uniform = [{Rounds.visit_s / 2}, {Rounds.visit_s * 3 / 2}] }}"


def idle_under(
    searches: Mapping[str, tuple[str, int, str]], folder: Path, targets: Targets
) -> None:
    """Measure idle ranks under searches: what each is, its epochs, and its visits' seconds."""
    store, rows = sleeping_store(folder)
    for name, (search, epochs, visit_s) in searches.items():
        found = []
        for number in range(Rounds.count):
            space = f"visit_s = {visit_s}\nrows = [{rows}]"
            toml = write_toml(
                folder,
                name,
                "sleeping_model.py:build",
                store,
                search,
                epochs=epochs,
                seed=number,
                space=space,
            )
            run = folder / f"{name.replace(', ', '-').replace(' ', '-')}-{number}"
            run_experiment(toml, run, 8)
            found.append(1 - lower_bound(run, 8) / makespan(run))
            shares = " ".join(f"{share:.0%}" for share in idle_shares(run, 8))
            print(f"{name}: {found[-1]:.1%}; idle by twentieths: {shares}", file=sys.stderr)
        text = f"{statistics.median(found):.1%} ({min(found):.1%} to {max(found):.1%})"
        met = statistics.median(found) <= 0.1
        targets.row(
            f"{name}, 8 ranks, {Rounds.visit_s:g} s: idle beyond the bound", "10%", text, met=met
        )


def idle_shares(run: Path, ranks: int) -> list[float]:
    """Return for each part of the makespan which share of the ranks' time is no visit."""
    spans = [(r["start"], r["end"]) for rank in events(run) for r in rank if is_work(r)]
    begin = min(start for start, _ in spans)
    length = (max(end for _, end in spans) - begin) / PARTS
    edges = [begin + length * number for number in range(PARTS)]
    return [
        1 - sum(max(0.0, min(e, edge + length) - max(s, edge)) for s, e in spans) / length / ranks
        for edge in edges
    ]


def is_work(record: dict[str, Any]) -> bool:
    return record["kind"] in ("visit", "eval")


def lower_bound(run: Path, ranks: int) -> float:
    """Return the seconds below which nobody could have made the same visits."""
    by_config: dict[int, float] = defaultdict(float)
    for rank in events(run):
        for record in rank:
            if is_work(record):
                by_config[record["config"]] += record["end"] - record["start"]
    return max(sum(by_config.values()) / ranks, *by_config.values())


def rung(folder: Path, targets: Targets, _: Path) -> None:
    store, rows = sleeping_store(folder)
    space = f"visit_s = {{ uniform = [0.01, 0.03] }}\nrows = [{rows}]"
    search = 'method = "halving"\nconfigs = 64\nreduction = 2'
    gaps = []
    for number in range(Rounds.count):
        toml = write_toml(
            folder,
            "rung",
            "sleeping_model.py:build",
            store,
            search,
            epochs=8,
            seed=number,
            space=space,
        )
        run = folder / f"rung-{number}"
        run_experiment(toml, run, 8)
        gaps += rung_gaps(run, (1, 2, 4))
    text = f"{1e3 * statistics.median(gaps):.0f} ms (at most {1e3 * max(gaps):.0f})"
    targets.row("between rungs, 64 configs, 8 ranks", "50 ms", text, met=max(gaps) <= 0.05)


def rung_gaps(run: Path, rungs: tuple[int, ...]) -> list[float]:
    """Return the seconds between the last act of each rung and the first visit after it."""
    records = [r for rank in events(run) for r in rank if r["kind"] in ("visit", "eval")]
    return [
        min(r["start"] for r in records if r["kind"] == "visit" and r["epoch"] >= epoch)
        - max(r["end"] for r in records if r["epoch"] < epoch)
        for epoch in rungs
    ]


def population(folder: Path, targets: Targets, _: Path) -> None:
    store, _ = sleeping_store(folder)
    text = (ROOT / "launch/experiments/digits_population.toml").read_text()
    text = text.replace("../../stores/digits.zarr", str(store))
    text = text.replace('"digits.py:build"', f'"{ROOT}/launch/experiments/digits.py:build"')
    toml = folder / "population.toml"
    toml.write_text(text)
    run = folder / "population"
    run_experiment(toml, run, 4)
    rows = results(run)
    copies = sum(max(0, len(row["lineage"]) - 1) for row in rows)
    crossed = sum(r["kind"] == "copy" for rank in events(run) for r in rank)
    verdicts = json.loads(mophpc("verify", str(run), "--json"))
    equal = sum(verdict["equal"] for verdict in verdicts)
    told = f"{equal} of {len(rows)} configs after {copies} copies"
    met = equal == len(rows) and 0 < copies == crossed
    targets.row("population: states equal to sequential training", "all bytes", told, met=met)


def report(folder: Path, targets: Targets, _: Path) -> None:
    from made_up import Shape, write_run  # the tests' generator of run folders

    run = folder / "made-up"
    write_run(run, Shape(configs=256, epochs=50, ranks=16))
    begin_s = time.time()
    command = [sys.executable, "-m", "mophpc", "report", str(run)]
    subprocess.run(command, check=True, capture_output=True)
    took_s = time.time() - begin_s
    page = (run / "report.html").stat()
    size, page_s = page.st_size, page.st_mtime - begin_s
    what = "report of 256 configs x 50 epochs x 16 ranks"
    targets.row(f"{what}: size", "5 MB", f"{size / 1e6:.1f} MB", met=size <= 5e6)
    targets.row(f"{what}: time", "10 s", f"{page_s:.1f} s", met=page_s <= 10)
    targets.row(f"{what} and its trace: time", "10 s", f"{took_s:.1f} s", met=took_s <= 10)


if __name__ == "__main__":
    sys.exit(main())
