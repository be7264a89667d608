"""What the page is made from: small facts as JSON, long columns packed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mophpc._version import __version__
from mophpc.events import PARTS
from mophpc.files import plain
from mophpc.report.expense import Prices, expense, traffic
from mophpc.report.importance import FEWEST_CONFIGS, importances
from mophpc.report.pack import Packer
from mophpc.report.run_data import Row, RunData
from mophpc.report.timeline import Timeline

Record = dict[str, Any]
Floats = NDArray[np.float64]

QUANTA = 2000
"""Times of the schedule are rounded to so many parts of a median visit, or finer."""


def page_data(run: RunData, timeline: Timeline, prices: Prices) -> Record:
    """Return everything that the page shows."""
    packer = Packer()
    quantum_s = _quantum(timeline, run)
    _pack_visits(packer, timeline, quantum_s)
    _pack_others(packer, run, quantum_s)
    _pack_curves(packer, run)
    names = list(dict.fromkeys(name for row in run.rows for name in row.hyperparameters))
    begin_s, end_s = timeline.window()
    schedule = run.schedule
    record = {
        "mophpc": __version__,
        "title": run.title,
        "ended": run.ended,
        "problems": run.problems,
        "metric": run.metric,
        "maximise": run.maximise,
        "best": run.best,
        "hyperparameters": [_axis(name, run.rows) for name in names],
        "rows": [_row(row, names) for row in run.rows],
        "metrics": run.metrics,
        "decisions": run.decisions,
        "ranks": run.num_ranks,
        "shards": schedule.num_shards,
        "epochs": schedule.num_epochs,
        "policy": schedule.policy,
        "renewals": schedule.renewals,
        "quantum_s": quantum_s,
        "window": [begin_s, end_s],
        "importance": [one.record() for one in importances(run)],
        "importance_needs": FEWEST_CONFIGS,
        "parts": [part.removesuffix("_s") for part in PARTS],
        "spent": [
            {"rank": rank, "seconds": [run.activity.spent[rank][part] for part in PARTS]}
            for rank in sorted(run.activity.spent)
        ],
        "memory": [[rank, size] for rank, size in sorted(run.activity.peak_rss.items())],
        "clocks": _clocks(run),
        "traffic": traffic(run),
        "expense": expense(run, prices),
        "settings": run.settings_text,
    }
    found: Record = plain(record)
    return found | {"packed": packer.record()}


def _axis(name: str, rows: list[Row]) -> Record:
    """Return what kind of values a hyperparameter has."""
    values = [row.hyperparameters[name] for row in rows if name in row.hyperparameters]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values) or not numbers:
        return {"name": name, "kind": "text"}
    positive = min(numbers) > 0
    log = positive and max(numbers) / min(numbers) >= 10
    return {"name": name, "kind": "log" if log else "number"}


def _row(row: Row, names: list[str]) -> Record:
    values = [row.hyperparameters.get(name) for name in names]
    has = [name in row.hyperparameters for name in names]
    return {
        "id": row.config_id,
        "name": row.name,
        "status": row.status,
        "values": values,
        "has": has,
        "epochs": row.epochs,
        "best": row.best,
        "best_epoch": row.best_epoch,
        "final": row.final,
        "lineage": row.lineage,
        "began": row.began,
    }


def _clocks(run: RunData) -> list[Record]:
    found = []
    for rank, checks in sorted(run.activity.clocks.items()):
        drift = checks[-1].offset_s - checks[0].offset_s
        found.append(
            {
                "rank": rank,
                "offset_s": checks[0].offset_s,
                "error_s": max(check.error_s for check in checks),
                "drift_s": drift if len(checks) > 1 else None,
            }
        )
    return found


def _quantum(timeline: Timeline, run: RunData) -> float:
    """Return the step of the schedule's times: a power of ten, fine against a median visit."""
    lengths = np.concatenate(
        (
            timeline.end_s - timeline.start_s,
            timeline.planned_end_s - timeline.planned_start_s,
        )
    )
    lengths = lengths[np.isfinite(lengths) & (lengths > 0)]
    fine = float(np.median(lengths)) / QUANTA if len(lengths) else 1e-6
    planned = np.concatenate((timeline.planned_start_s, timeline.planned_end_s))
    planned = np.abs(planned[np.isfinite(planned)])
    largest = max(run.activity.last_s, *map(abs, timeline.window()), planned.max(initial=0.0))
    fine = max(fine, largest / 2**26, 1e-9)  # of ten times 2**26, 32 bits hold two
    return float(10.0 ** math.floor(math.log10(fine)))


def _steps(times: Floats, quantum_s: float) -> NDArray[np.int64]:
    limit = 2**30
    return np.clip(np.rint(np.nan_to_num(times) / quantum_s), -limit, limit).astype(np.int64)


def _pack_visits(packer: Packer, t: Timeline, quantum_s: float) -> None:
    """Add visits: starts relative to the end of the visit before, then lengths, -1 where none."""
    packer.whole("rank", np.diff(t.rank, prepend=0))
    for name in ("config", "epoch", "shard", "step"):
        packer.whole(name, getattr(t, name))
    packer.whole("moved", t.planned_rank - t.rank)
    packer.whole("hop_source", t.hop_source)
    pairs = (("planned", t.planned_start_s, t.planned_end_s), ("real", t.start_s, t.end_s))
    for name, starts, ends in pairs:
        there = np.isfinite(starts) & np.isfinite(ends)
        begin = np.where(there, _steps(starts, quantum_s), 0)
        end = np.where(there, _steps(ends, quantum_s), 0)
        packer.whole(f"{name}_gap", np.where(there, begin - _last(end, there), 0))
        packer.whole(f"{name}_length", np.where(there, np.maximum(0, end - begin), -1))
    hopped = (t.hop_source >= 0) & np.isfinite(t.hop_end_s) & t.made
    start = _steps(t.start_s, quantum_s)
    sent = np.where(np.isfinite(t.hop_sent_s), t.hop_sent_s, t.hop_begun_s)
    arrived = _steps(t.hop_end_s, quantum_s)
    packer.whole("hop_ago", np.where(hopped, start - arrived, 0))
    packer.whole("hop_length", np.where(hopped, arrived - _steps(sent, quantum_s), -1))
    packer.whole("hop_exposed", np.where(hopped, _steps(t.hop_exposed_s, quantum_s), 0))


def _last(values: NDArray[np.int64], there: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each entry the value of the entry before it that is there; 0 before the first."""
    index = np.where(there, np.arange(len(values)), -1)
    before = np.concatenate(([-1], np.maximum.accumulate(index)[:-1])) if len(values) else index
    return np.where(before >= 0, values[before], 0)


def _pack_others(packer: Packer, run: RunData, quantum_s: float) -> None:
    """Add evaluations and checkpoints, by rank and time."""
    evals, saves = run.activity.of("eval"), run.activity.of("checkpoint")
    kind = np.repeat([0, 1], [len(evals["rank"]), len(saves["rank"])])
    both = {n: np.concatenate((evals[n], saves[n])) for n in ("rank", "start", "end", "config")}
    order = np.lexsort((both["start"], both["rank"]))
    start = _steps(both["start"][order], quantum_s)
    packer.whole("other_kind", kind[order])
    packer.whole("other_rank", np.diff(both["rank"][order].astype(np.int64), prepend=0))
    packer.whole("other_config", both["config"][order])
    packer.whole("other_gap", np.diff(start, prepend=0))
    packer.whole("other_length", _steps(both["end"][order], quantum_s) - start)


def _pack_curves(packer: Packer, run: RunData) -> None:
    """Add the metrics of each epoch, and when it ended."""
    config = np.array([c for c, _, _ in run.curves], np.int64)
    epoch = np.array([e for _, e, _ in run.curves], np.int64)
    values = np.array([v for _, _, v in run.curves], np.float64).reshape(
        len(config), len(run.metrics)
    )
    packer.whole("curve_config", config)
    packer.whole("curve_epoch", epoch)
    for index in range(len(run.metrics)):
        packer.real(f"curve_{index}", values[:, index])
    evals = run.activity.of("eval")
    most = int(max(epoch.max(initial=0), evals["epoch"].max(initial=0))) + 1
    keys = evals["config"] * most + evals["epoch"]
    order = np.argsort(keys, kind="stable")
    wanted = config * most + epoch
    ended = np.full(len(wanted), np.nan)
    if len(keys):
        at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        same = keys[order][at] == wanted
        ended[same] = evals["end"][order][at][same]
    packer.real("curve_time", ended)
