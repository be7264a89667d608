"""The events of all ranks as arrays, on rank 0's clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mophpc.events import PARTS
from mophpc.report.lines import read_records
from mophpc.report.run_plan import MOST_S

Record = dict[str, Any]
Floats = NDArray[np.float64]
Columns = dict[str, Floats]

MOST = 2.0**60
"""Sizes and seconds are below this."""

_FILE = re.compile(r"rank-(\d{4,5})\.jsonl", re.ASCII)

FIELDS: dict[str, tuple[str, ...]] = {
    "visit": ("config", "step", "epoch", "shard", "rows", "data_s", "copy_s"),
    "eval": ("config", "epoch"),
    "receive": (
        *("config", "step", "source", "dest"),
        *("nbytes", "header_nbytes", "transfer_s", "exposed_s"),
    ),
    "send": ("config", "step", "source", "dest", "nbytes", "header_nbytes"),
    "wait": ("config", "step"),
    "build": ("config", "step"),
    "checkpoint": ("config", "nbytes"),
    "load": ("shard", "rows", "nbytes"),
    "link": ("latency_s", "bandwidth_bytes_per_s"),
    "told": (),
    "probe": ("config",),
    "compile": ("config",),
    "pilot": ("config",),
    "plan": (),
    "clock": (),
}
"""What is read of each kind, besides rank, start and end; a hop's two directions are two kinds."""


@dataclass(slots=True)
class ClockCheck:
    """One comparison of a rank's clock with rank 0's."""

    at_s: float
    offset_s: float
    error_s: float


@dataclass(slots=True)
class Activity:
    """What the ranks did: per kind an array per field; nan is a fact that an event lacks."""

    num_ranks: int = 0
    kinds: dict[str, Columns] = field(default_factory=dict)
    spent: dict[int, dict[str, float]] = field(default_factory=dict)
    """Seconds of each of `events.PARTS`, by rank, for ranks that came to their end."""
    peak_rss: dict[int, float] = field(default_factory=dict)
    clocks: dict[int, list[ClockCheck]] = field(default_factory=dict)
    last_s: float = 0.0
    """When the last event ended."""

    def of(self, kind: str) -> Columns:
        """Return the columns of a kind; empty ones where there are no such events."""
        names = ("rank", "start", "end", *FIELDS[kind])
        return self.kinds.get(kind) or {name: np.zeros(0) for name in names}

    def align(self, rank: int, times_s: Floats) -> Floats:
        """Return a rank's times on rank 0's clock; between two comparisons, in proportion."""
        checks = self.clocks.get(rank)
        if not checks:
            return times_s
        offsets = [check.offset_s for check in checks]
        return times_s + np.interp(times_s, [check.at_s for check in checks], offsets)


def read_activity(folder: Path, num_ranks: int, problems: list[str]) -> Activity:
    """Read `events/`, as far as it is there.

    Args:
        folder: that has a file per rank.
        num_ranks: as the plan has them; 0: not known.
        problems: gets a sentence for what is missing or damaged.
    """
    found = Activity()
    if not folder.is_dir():
        problems.append("There are no events: how the run went is not known.")
        return found
    files = {int(m[1]): path for path in folder.iterdir() if (m := _FILE.fullmatch(path.name))}
    parts: dict[str, list[Columns]] = {kind: [] for kind in FIELDS}
    for rank in sorted(files):
        _read_rank(found, rank, files[rank], parts, problems)
    for kind, columns in parts.items():
        if columns:
            found.kinds[kind] = {n: np.concatenate([c[n] for c in columns]) for n in columns[0]}
    found.num_ranks = max(num_ranks, max(files, default=-1) + 1)
    if len(files) < found.num_ranks:
        missing = found.num_ranks - len(files)
        problems.append(f"Events of {missing} of {found.num_ranks} ranks are missing.")
    if found.num_ranks > 1 and len(found.clocks) < len(files):
        problems.append(
            "Clocks of some ranks were not compared; their times are as their hosts had them."
        )
    return found


def _read_rank(
    found: Activity,
    rank: int,
    path: Path,
    parts: dict[str, list[Columns]],
    problems: list[str],
) -> None:
    shown = f"events/{path.name}"
    damaged = 0
    by_kind: dict[str, list[Record]] = {}
    for record in read_records(path, problems, shown):
        kind = record.get("kind")
        if kind == "hop":
            kind = record.get("direction")
        if type(kind) is str:
            by_kind.setdefault(kind, []).append(record)
    _take_clock(found, rank, by_kind.get("clock", []))
    for kind, fields in FIELDS.items():
        if kind in by_kind:
            columns, bad = _columns(by_kind[kind], fields)
            damaged += bad
            columns["rank"] = np.full(len(columns["start"]), float(rank))
            for name in ("start", "end"):
                columns[name] = found.align(rank, columns[name])
            found.last_s = max(found.last_s, columns["end"].max(initial=0.0))
            parts[kind].append(columns)
    for record in by_kind.get("end", []):
        spent = record.get("spent")
        if isinstance(spent, dict):
            found.spent[rank] = {part: max(0.0, _float(spent.get(part), 0.0)) for part in PARTS}
        found.peak_rss[rank] = _float(record.get("peak_rss_bytes"), 0.0)
    if damaged:
        count = "1 event lacks" if damaged == 1 else f"{damaged} events lack"
        problems.append(f"{shown}: {count} a time or an id that makes sense.")


def _take_clock(found: Activity, rank: int, records: Sequence[Record]) -> None:
    checks = []
    for record in records:
        times = [_float(record.get(n)) for n in ("start", "end", "offset_s", "error_s")]
        if np.isfinite(times).all():
            checks.append(ClockCheck((times[0] + times[1]) / 2, times[2], times[3]))
    if checks:
        found.clocks[rank] = sorted(checks, key=lambda check: check.at_s)


def _columns(records: Sequence[Record], fields: Sequence[str]) -> tuple[Columns, int]:
    """Return an array per field, without events whose times are no times; and how many those are.

    Ids are checked too: a config or a rank is a whole number from 0.
    """
    columns = {name: _column(records, name) for name in ("start", "end", *fields)}
    good = (columns["end"] >= columns["start"]) & (np.abs(columns["end"]) < MOST_S)
    for name in fields:
        if name in ("config", "step", "epoch", "shard", "source", "dest"):
            ids = columns[name]
            good &= (ids >= 0) & (ids < 2**31) & (ids == np.floor(ids))
        else:  # sizes and seconds
            facts = columns[name]
            facts[~((facts >= 0.0) & (facts < MOST))] = np.nan
    bad = int(np.count_nonzero(~good))
    if bad:
        columns = {name: values[good] for name, values in columns.items()}
    return columns, bad


def _column(records: Sequence[Record], name: str) -> Floats:
    try:
        found = np.array([record[name] for record in records], np.float64)
        if found.ndim == 1:
            return found
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    return np.array([_float(record.get(name)) for record in records], np.float64)


def _float(value: Any, default: float = float("nan")) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return float(value) if -1e300 < value < 1e300 else default
