"""A run as trace events, for https://ui.perfetto.dev and chrome://tracing.

A rank is a process, and its threads are visits, hops that come, hops that leave, and the rest.
Slices of a thread must not overlap in part, so what does gets a second thread of the same name. A
flow goes from each send to its receive. Times are microseconds on rank 0's clock.

The format is that of "Trace Event Format" by the Chromium project: complete events (X), metadata
(M) and flows (s, f).
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mophpc._version import __version__
from mophpc.report.run_data import RunData
from mophpc.report.run_events import Columns

Floats = NDArray[np.float64]

VISITS, RECEIVES, SENDS, REST = 1, 100, 200, 300
"""First thread of each sort; further ones of the same sort follow."""
_THREADS = {VISITS: "visits", RECEIVES: "hops in", SENDS: "hops out", REST: "rest"}

_REST = (
    *("eval", "checkpoint", "build", "wait", "told", "load"),
    *("probe", "compile", "pilot", "link", "plan", "clock"),
)
_LEAST_US = 0.001


def trace_text(run: RunData) -> Iterator[str]:
    """Yield the trace, piece by piece."""
    names = {row.config_id: json.dumps(_short(row.name)) for row in run.rows}
    facts = {"mophpc": __version__, "run": run.title}
    yield '{"displayTimeUnit":"ms","otherData":' + json.dumps(facts) + ',"traceEvents":[\n'
    threads: dict[tuple[int, int], str] = {}
    pieces = [_visits(run, names, threads), *_hops(run, names, threads), _rest(run, names, threads)]
    for piece in pieces:
        for begin in range(0, len(piece), 10_000):
            yield "".join(line + ",\n" for line in piece[begin : begin + 10_000])
    yield ",\n".join(_metadata(run, threads)) + "\n]}\n"


def _short(name: str) -> str:
    return name.partition("-")[0]


def _spans(columns: Columns) -> tuple[list[float], list[float]]:
    """Return starts and lengths in microseconds; rounded so that neighbours do not overlap."""
    starts, ends = np.round(columns["start"] * 1e6, 3), np.round(columns["end"] * 1e6, 3)
    return starts.tolist(), np.round(np.maximum(ends - starts, _LEAST_US), 3).tolist()


def _ints(values: Floats) -> list[int]:
    found: list[int] = values.astype(np.int64).tolist()
    return found


def lanes(ranks: Sequence[int], starts: Sequence[float], lengths: Sequence[float]) -> list[int]:
    """Return for each slice a lane of its rank, from 0, in which it overlaps no other."""
    begin, place = np.array(starts), np.array(ranks)
    by_time = np.lexsort((begin, place))
    end = (begin + np.array(lengths))[by_time]
    found = [0] * len(starts)
    same = np.diff(place[by_time]) == 0
    if not (same & (begin[by_time][1:] < end[:-1] - 1e-9)).any():
        return found
    order = by_time.tolist()
    busy: list[tuple[float, int]] = []
    free: list[int] = []
    rank = None
    for index in order:
        if ranks[index] != rank:
            rank, busy, free = ranks[index], [], []
        while busy and busy[0][0] <= starts[index] + 1e-9:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        found[index] = lane
        heapq.heappush(busy, (starts[index] + lengths[index], lane))
    return found


def _threads(
    sort: int,
    ranks: Sequence[int],
    starts: Sequence[float],
    lengths: Sequence[float],
    threads: dict[tuple[int, int], str],
) -> list[int]:
    """Return each slice's thread, and enter the threads' names."""
    own = lanes(ranks, starts, lengths)
    for rank, lane in set(zip(ranks, own, strict=True)):
        threads[rank, sort + lane] = _THREADS[sort] + (f" {lane + 1}" if lane else "")
    return [sort + lane for lane in own]


def _visits(run: RunData, names: dict[int, str], threads: dict[tuple[int, int], str]) -> list[str]:
    columns = run.activity.of("visit")
    starts, lengths = _spans(columns)
    ranks = _ints(columns["rank"])
    tids = _threads(VISITS, ranks, starts, lengths, threads)
    ids, steps = _ints(columns["config"]), _ints(columns["step"])
    epochs, shards = _ints(columns["epoch"]), _ints(columns["shard"])
    rows = _ints(np.nan_to_num(columns["rows"]))
    return [
        f'{{"ph":"X","cat":"visit","name":{names.get(c) or _name(c)},"pid":{r},"tid":{t},'
        f'"ts":{s},"dur":{d},"args":{{"config":{c},"step":{n},"epoch":{e},"shard":{h},'
        f'"rows":{w}}}}}'
        for c, r, t, s, d, n, e, h, w in zip(
            ids, ranks, tids, starts, lengths, steps, epochs, shards, rows, strict=True
        )
    ]


def _name(config_id: int) -> str:
    return f'"c{config_id:03d}"'


def _hops(
    run: RunData, names: dict[int, str], threads: dict[tuple[int, int], str]
) -> list[list[str]]:
    """Return slices of both ends, and the flows between ends that are both known."""
    came, left = dict(run.activity.of("receive")), run.activity.of("send")
    # A receive is posted long before: its slice is the time in which bytes came.
    came["start"] = came["end"] - np.maximum(0.0, np.nan_to_num(came["transfer_s"]))
    slices, flows = [], []
    ends = {}
    for sort, columns in ((SENDS, left), (RECEIVES, came)):
        starts, lengths = _spans(columns)
        ranks = _ints(columns["rank"])
        tids = _threads(sort, ranks, starts, lengths, threads)
        fields = [_ints(columns[n]) for n in ("config", "step", "source", "dest")]
        nbytes = _ints(np.nan_to_num(columns["nbytes"]))
        word, cat = ("to", "send") if sort == SENDS else ("from", "receive")
        peers = fields[3] if sort == SENDS else fields[2]
        slices.append(
            [
                f'{{"ph":"X","cat":"{cat}","name":"{_bare(names, c)} {word} {peer}","pid":{r},'
                f'"tid":{t},"ts":{s},"dur":{d},"args":{{"config":{c},"step":{n},"nbytes":{b}}}}}'
                for c, n, peer, r, t, s, d, b in zip(
                    fields[0], fields[1], peers, ranks, tids, starts, lengths, nbytes, strict=True
                )
            ]
        )
        keys = zip(*fields, strict=True)
        places = zip(ranks, tids, starts, lengths, strict=True)
        ends[sort] = dict(zip(keys, places, strict=True))
    for number, (key, (rank, tid, start, _)) in enumerate(ends[SENDS].items(), 1):
        target = ends[RECEIVES].get(key)
        if target is None:
            continue
        # Within the slices: a flow belongs to the slice that it begins or ends in.
        there = target[2] + target[3]
        flows.append(
            f'{{"ph":"s","cat":"hop","name":"hop","id":{number},"pid":{rank},"tid":{tid},'
            f'"ts":{start}}},\n{{"ph":"f","bp":"e","cat":"hop","name":"hop","id":{number},'
            f'"pid":{target[0]},"tid":{target[1]},"ts":{round(there - target[3] / 2, 3)}}}'
        )
    return [*slices, flows]


def _bare(names: dict[int, str], config_id: int) -> str:
    return (names.get(config_id) or _name(config_id))[1:-1]


def _rest(run: RunData, names: dict[int, str], threads: dict[tuple[int, int], str]) -> list[str]:
    parts = [(kind, run.activity.of(kind)) for kind in _REST]
    labels = [kind for kind, columns in parts for _ in columns["start"]]
    both = {n: np.concatenate([c[n] for _, c in parts]) for n in ("rank", "start", "end")}
    nothing = [np.full(len(c["start"]), -1.0) for _, c in parts]
    config = np.concatenate([c.get("config", n) for (_, c), n in zip(parts, nothing, strict=True)])
    starts, lengths = _spans(both)
    ranks, ids = _ints(both["rank"]), _ints(config)
    tids = _threads(REST, ranks, starts, lengths, threads)
    found = []
    for kind, c, r, t, s, d in zip(labels, ids, ranks, tids, starts, lengths, strict=True):
        name = kind if c < 0 else f"{kind} {_bare(names, c)}"
        args = "" if c < 0 else f',"args":{{"config":{c}}}'
        found.append(
            f'{{"ph":"X","cat":"{kind}","name":"{name}","pid":{r},"tid":{t},"ts":{s},"dur":{d}'
            f"{args}}}"
        )
    return found


def _metadata(run: RunData, threads: dict[tuple[int, int], str]) -> list[str]:
    events: list[dict[str, Any]] = []
    for rank in range(max(1, run.activity.num_ranks)):
        events.append({"name": "process_name", "pid": rank, "args": {"name": f"rank {rank}"}})
        events.append({"name": "process_sort_index", "pid": rank, "args": {"sort_index": rank}})
    for (rank, tid), name in sorted(threads.items()):
        events.append({"name": "thread_name", "pid": rank, "tid": tid, "args": {"name": name}})
        events.append(
            {"name": "thread_sort_index", "pid": rank, "tid": tid, "args": {"sort_index": tid}}
        )
    return [json.dumps({"ph": "M", **event}, separators=(",", ":")) for event in events]
