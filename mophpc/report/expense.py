"""What a run moved and cost, and what other ways to train the same configs would, by formula.

The formulas of bytes are those of the Cerebro paper (Nakandala, Zhang, Kumar: "Cerebro: A Data
System for Optimized Deep Learning Model Selection", PVLDB 13(11), 2020), in the version of its
errata. With k epochs, S configs of m bytes, p ranks, D bytes of data and batches of b rows, of
which an epoch on all ranks has N = ceil(rows / (b p)):

    hops, the next epoch begins where the last one ended    k m (p - 1) S
    hops, each epoch begins anywhere                        k m p S + m S
    hops through shared storage                             2 k m p S
    task parallelism, data copied to every rank             p D + m S
    task parallelism, data read from afar                   k S D + m S
    model averaging after each epoch                        2 k m p S
    parameter server                                        2 k m p S N
    data parallelism, ring all-reduce                       2 k m (p - 1) S N

Here configs may differ, so that each product with S is a sum over the configs. A hop carries the
whole state; a gradient is as large as the weights alone, so the last two rows take these for m.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mophpc.events import PARTS
from mophpc.report.run_data import RunData, number
from mophpc.report.run_events import Activity

BATCH_NAMES = ("batch_size", "batch", "bs")
"""Hyperparameters that say how many rows a batch has."""


MOST_IN_MATRIX = 128
"""Ranks up to which it is told how much went from each to each."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What the user says of a rank."""

    per_hour: float | None = None
    """Money per rank and hour."""
    watts: float | None = None
    """Of a rank, busy or idle."""
    currency: str = ""
    batch_size: int | None = None
    """Of configs without a hyperparameter that says it."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What was trained, as far as the run folder tells; one entry per config."""

    ranks: int
    epochs: list[int]
    state_bytes: list[float]
    weight_bytes: list[float]
    busy_s: list[float]
    """Seconds of its visits, evaluations and checkpoints."""
    data_bytes: float
    rows: float
    batch_sizes: list[int | None]
    bandwidth: float | None
    latency_s: float
    setup_s: float
    makespan_s: float
    """Of the visits, set-up not included, nor the time between the parts of a resumed run."""
    parts: int = 1
    """In which the visits were made."""


def measure(run: RunData, prices: Prices) -> Workload:
    """Return the sizes that the formulas need."""
    ids = [row.config_id for row in run.rows]
    count = max(ids, default=-1) + 1
    activity = run.activity
    busy = np.zeros(count)
    for kind in ("visit", "eval", "checkpoint"):
        part = activity.of(kind)
        _add(busy, part["config"], part["end"] - part["start"])
    state = _mean(count, activity.of("receive"), "nbytes")
    weights = _mean(count, activity.of("checkpoint"), "nbytes")
    state = np.where(np.isnan(state), np.nanmean(state) if np.isfinite(state).any() else 0, state)
    weights = np.where(np.isnan(weights), state, weights)
    load, link = activity.of("load"), activity.of("link")
    once = sorted({int(s): i for i, s in enumerate(load["shard"])}.values())
    parts = _parts(activity)
    bandwidths = link["bandwidth_bytes_per_s"]
    return Workload(
        ranks=run.num_ranks,
        epochs=[row.epochs for row in run.rows],
        state_bytes=[float(state[i]) for i in ids],
        weight_bytes=[float(weights[i]) for i in ids],
        busy_s=[float(busy[i]) for i in ids],
        data_bytes=float(np.nansum(load["nbytes"][once])),
        rows=float(np.nansum(load["rows"][once])),
        batch_sizes=[_batch(row.hyperparameters, prices.batch_size) for row in run.rows],
        bandwidth=float(np.nanmedian(bandwidths)) if np.isfinite(bandwidths).any() else None,
        latency_s=float(np.nanmedian(link["latency_s"])) if len(link["latency_s"]) else 0.0,
        setup_s=max(0.0, parts[0][0]) if parts else 0.0,
        makespan_s=sum(end_s - begin_s for begin_s, end_s in parts),
        parts=max(1, len(parts)),
    )


def _parts(activity: Activity) -> list[tuple[float, float]]:
    """Return from when to when visits, evaluations and checkpoints were made, in each part.

    A run that goes on, or loses a rank, loads shards anew before the next visit.
    """
    kinds = [activity.of(kind) for kind in ("visit", "eval", "checkpoint")]
    starts = np.concatenate([columns["start"] for columns in kinds])
    ends = np.concatenate([columns["end"] for columns in kinds])
    groups = np.searchsorted(np.sort(activity.of("load")["start"]), starts)
    found = []
    for group in np.unique(groups):
        own = groups == group
        found.append((float(starts[own].min()), float(ends[own].max())))
    return found


def _add(total: Any, ids: Any, values: Any) -> None:
    inside = (ids >= 0) & (ids < len(total))
    np.add.at(total, ids[inside].astype(np.int64), values[inside])


def _mean(count: int, columns: Any, name: str) -> Any:
    values, times = np.zeros(count), np.zeros(count)
    good = np.isfinite(columns[name])
    ids = columns["config"][good]
    _add(values, ids, columns[name][good])
    _add(times, ids, np.ones(len(ids)))
    with np.errstate(invalid="ignore"):
        return values / times


def _batch(values: dict[str, Any], default: int | None) -> int | None:
    for name in BATCH_NAMES:
        found = number(values.get(name))
        if found is not None and found >= 1:
            return int(found)
    return default


def traffic(run: RunData) -> dict[str, Any]:
    """Return what the hops moved, as measured: in sum, by rank, and from rank to rank."""
    came = run.activity.of("receive")
    ranks = run.num_ranks
    state, header = np.nan_to_num(came["nbytes"]), np.nan_to_num(came["header_nbytes"])
    inside = (came["source"] < ranks) & (came["dest"] < ranks)
    source = came["source"][inside].astype(np.int64)
    dest = came["dest"][inside].astype(np.int64)

    def total(by: Any, weights: Any = None) -> list[float]:
        chosen = None if weights is None else weights[inside]
        return [float(v) for v in np.bincount(by, chosen, minlength=ranks)]

    exposed = np.nan_to_num(came["exposed_s"])
    took = np.nan_to_num(came["transfer_s"])
    matrix: Any = []
    if ranks <= MOST_IN_MATRIX:
        pairs = np.bincount(source * ranks + dest, state[inside], minlength=ranks * ranks)
        matrix = pairs.reshape(ranks, ranks).tolist()
    return {
        "hops": len(state),
        "state_bytes": float(state.sum()),
        "header_bytes": float(header.sum()),
        "hidden": int(np.count_nonzero(exposed == 0.0)),
        "exposed_s": float(exposed.sum()),
        "transfer_s": float(took.sum()),
        "sent_bytes": total(source, state),
        "sent_header_bytes": total(source, header),
        "sent_hops": total(source),
        "received_bytes": total(dest, state),
        "received_hops": total(dest),
        "matrix": matrix,
    }


def longest_first(seconds: Sequence[float], ranks: int) -> float:
    """Return the makespan of whole configs on ranks, the longest first to the rank free first."""
    free = [0.0] * max(1, ranks)
    for own in sorted(seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + own)
    return max(free)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to train the configs."""

    name: str
    kind: str
    """`measured`, or `formula`."""
    formula: str
    bytes_moved: float | None
    storage_bytes: float | None
    rank_s: float | None
    """Seconds of all ranks in sum."""
    basis: str
    """What the seconds rest on."""


def ways(work: Workload, moved: float | None) -> list[Way]:
    """Return the run as it was, and other ways by formula.

    Args:
        work: what was trained.
        moved: bytes of all hops, as measured.
    """
    p, data = work.ranks, work.data_bytes or None
    both = list(zip(work.epochs, work.state_bytes, strict=True))
    km, m = sum(k * b for k, b in both), sum(work.state_bytes)
    keeps = sum(work.epochs)  # k S
    steps = _steps(work)
    found = [
        Way("MOP, this run", "measured", "", moved, data, p * work.makespan_s, "measured"),
        Way("MOP", "formula", "k m (p-1) S", km * (p - 1), data, None, ""),
        Way("MOP through shared storage", "formula", "2 k m p S", 2 * km * p, data, None, ""),
    ]
    if data is not None:
        together = p * longest_first(work.busy_s, p)
        basis = "measured seconds of each config, longest first; data copied before"
        copied = p * data
        found += [
            Way(
                "task parallel, data copied",
                "formula",
                "p D + m S",
                copied + m,
                copied,
                together,
                basis,
            ),
            Way(
                "task parallel, data read from afar",
                "formula",
                "k S D + m S",
                keeps * data + m,
                data,
                None,
                "",
            ),
        ]
    found.append(Way("model averaging", "formula", "2 k m p S", 2 * km * p, data, None, ""))
    if steps is not None:
        grads = sum(
            k * w * n for k, w, n in zip(work.epochs, work.weight_bytes, steps, strict=True)
        )
        formula = "2 k m p S ⌈D/(b p)⌉"
        found.append(Way("parameter server", "formula", formula, 2 * grads * p, data, None, ""))
        found.append(
            Way(
                "data parallel, ring all-reduce",
                "formula",
                "2 k m (p-1) S ⌈D/(b p)⌉",
                2 * grads * (p - 1),
                data,
                _all_reduce_s(work, steps),
                "measured seconds of each config, split evenly, and each step's all-reduce at the "
                "measured bandwidth and latency",
            )
        )
    return found


def _steps(work: Workload) -> list[int] | None:
    """Return the steps of an epoch if each batch is spread over all ranks; None: not known."""
    if not work.rows or not work.batch_sizes or None in work.batch_sizes:
        return None
    return [math.ceil(work.rows / ((b or 1) * work.ranks)) for b in work.batch_sizes]


def _all_reduce_s(work: Workload, steps: Sequence[int]) -> float | None:
    """Return the seconds of all ranks: a ring sends 2 (p - 1) pieces of m / p bytes per step."""
    p = work.ranks
    if not work.bandwidth:
        return None
    total = 0.0
    for k, w, n, busy in zip(work.epochs, work.weight_bytes, steps, work.busy_s, strict=True):
        pieces = 2 * (p - 1)
        total += busy / p + k * n * pieces * (w / p / work.bandwidth + work.latency_s)
    return p * total


def expense(run: RunData, prices: Prices) -> dict[str, Any]:
    """Return rank-hours, money and energy, and what other ways would move and cost."""
    work = measure(run, prices)
    came = run.activity.of("receive")
    moved = float(np.nansum(came["nbytes"]) + np.nansum(came["header_nbytes"]))
    spent = [run.activity.spent[rank] for rank in sorted(run.activity.spent)]
    busy = sum(part[name] for part in spent for name in PARTS[:2])
    bound = _bound(run, work)
    has_hops = len(came["nbytes"]) > 0 or work.ranks == 1
    return {
        "ranks": work.ranks,
        "setup_s": work.setup_s,
        "makespan_s": work.makespan_s,
        "parts": work.parts,
        "rank_s": work.ranks * (work.setup_s + work.makespan_s),
        "busy_s": busy,
        "lower_bound_s": bound,
        "data_bytes": work.data_bytes,
        "rows": work.rows,
        "bandwidth": work.bandwidth,
        "latency_s": work.latency_s,
        "batch_known": _steps(work) is not None,
        "price": prices.per_hour,
        "watts": prices.watts,
        "currency": prices.currency,
        "ways": [
            {name: getattr(way, name) for name in way.__slots__}
            for way in ways(work, moved if has_hops else None)
        ],
    }


def _bound(run: RunData, work: Workload) -> float | None:
    """Return what no schedule of the same visits can be shorter than."""
    by_rank = np.zeros(run.num_ranks)
    for kind in ("visit", "eval", "checkpoint"):
        part = run.activity.of(kind)
        _add(by_rank, part["rank"], part["end"] - part["start"])
    return max([*work.busy_s, float(by_rank.max(initial=0.0))], default=None)
