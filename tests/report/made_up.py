"""Run folders that no run made, of any size, with every file as a run writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mophpc.events import PARTS
from mophpc.schedule import make_plan, predict
from mophpc.schedule.plan import to_json


@dataclass(frozen=True)
class Shape:
    configs: int = 6
    epochs: int = 3
    ranks: int = 3
    state_nbytes: int = 4000
    seed: int = 1
    skew_s: float = 0.0
    """Rank r's clock is r times this ahead of rank 0's."""


def write_run(folder: Path, shape: Shape = Shape()) -> Path:
    """Write a run that ended; returns its folder."""
    (folder / "events").mkdir(parents=True)
    rng = np.random.default_rng(shape.seed)
    names, values = _configs(shape)
    plan = make_plan(
        "round-robin",
        num_configs=shape.configs,
        num_shards=shape.ranks,
        num_ranks=shape.ranks,
        num_epochs=shape.epochs,
    )
    costs = (0.5 + np.arange(shape.configs) % 7 / 7)[:, None] * np.ones((1, shape.ranks))
    costs *= rng.uniform(0.9, 1.1, costs.shape)
    plan = predict(plan, costs).plan
    record = to_json(plan)
    times = _walk(plan, costs, rng)
    events, lists = _events(plan, times, shape)
    record["real_start_s"], record["real_end_s"] = lists
    record["configs"] = names
    record["renewals"] = [{"at_s": 1.0, "end_s": 2.0}]
    (folder / "plan.json").write_text(json.dumps(record))
    for rank, own in enumerate(events):
        lines = [json.dumps(event, separators=(",", ":")) for event in own]
        (folder / "events" / f"rank-{rank:04d}.jsonl").write_text("\n".join(lines) + "\n")
    _write_results(folder, names, values, plan, shape, rng)
    _write_experiment(folder, shape)
    return folder


def _configs(shape: Shape) -> tuple[list[str], list[dict[str, Any]]]:
    rng = np.random.default_rng(shape.seed + 1)
    names, values = [], []
    for i in range(shape.configs):
        own: dict[str, Any] = {"arch": ("mlp", "cnn")[i % 2]}
        own["lr"] = float(f"{10 ** rng.uniform(-4, -1):.3g}")
        own["batch_size"] = int(rng.choice([32, 64, 128]))
        if own["arch"] == "mlp":
            own["width"] = int(rng.integers(64, 513))
        pairs = ",".join(f"{k}={v}" for k, v in own.items())
        names.append(f"c{i:03d}-{pairs}")
        values.append(own)
    return names, values


def _walk(plan: Any, costs: Any, rng: Any) -> dict[tuple[int, int], tuple[float, float]]:
    """Times that respect that a config and a rank do one thing at a time."""
    free = [1.0] * plan.num_ranks
    ready = [1.0] * plan.num_configs
    at = [0] * plan.num_ranks
    done = [0] * plan.num_configs
    times: dict[tuple[int, int], tuple[float, float]] = {}
    left = plan.num_visits
    while left:
        before = left
        for rank, own in enumerate(plan.visits_by_rank):
            while at[rank] < len(own) and own[at[rank]].step == done[own[at[rank]].config_id]:
                visit = own[at[rank]]
                start = max(free[rank], ready[visit.config_id]) + 1e-3
                end = start + float(costs[visit.config_id, rank]) * rng.uniform(0.9, 1.1)
                times[visit.config_id, visit.step] = (start, end)
                free[rank], ready[visit.config_id] = end + 2e-3, end + 4e-3
                done[visit.config_id] += 1
                at[rank] += 1
                left -= 1
        assert left < before
    return times


def _events(plan: Any, times: Any, shape: Shape) -> tuple[list[list[dict[str, Any]]], Any]:
    events: list[list[dict[str, Any]]] = [[] for _ in range(plan.num_ranks)]
    lists: tuple[list[list[float]], list[list[float]]] = ([], [])

    def add(rank: int, kind: str, start: float, end: float, **facts: Any) -> None:
        skew = rank * shape.skew_s
        times = {"start": start + skew, "end": end + skew}
        events[rank].append({"kind": kind, "rank": rank} | times | facts)

    rng = np.random.default_rng(shape.seed + 2)
    where = {(v.config_id, v.step): v for v in plan.visits()}
    for rank in range(plan.num_ranks):
        clock = {"offset_s": -rank * shape.skew_s, "error_s": 2e-5 if rank else 0.0}
        add(rank, "clock", 0.0, 0.001, **clock)
        add(rank, "load", 0.01, 0.2, shard=rank, rows=1000, nbytes=800_000)
        link = {"latency_s": 1e-4, "bandwidth_bytes_per_s": 1e9}
        add(rank, "link", 0.3, 0.31, **link)
    for rank, own in enumerate(plan.visits_by_rank):
        for visit in own:
            c, n = visit.config_id, visit.step
            start, end = times[c, n]
            facts = {"config": c, "step": n}
            before = where.get((c, n - 1))
            if before is not None and before.rank != rank:
                sent = times[c, n - 1][1] + rng.uniform(1e-4, 2e-3)
                took = rng.uniform(1e-3, 2e-3)
                hop = facts | {"source": before.rank, "dest": rank}
                hop |= {"nbytes": shape.state_nbytes + 8 * c, "header_nbytes": 120}
                add(before.rank, "hop", sent, sent + took, direction="send", **hop)
                hop |= {"transfer_s": 0.8 * took, "exposed_s": 5e-4 if n % 3 == 0 else 0.0}
                arrived = {"direction": "receive", **hop, "hidden": n % 3 != 0}
                add(rank, "hop", sent - 0.5, sent + took, **arrived)
            add(rank, "wait", start - 5e-4, start - 1e-4, cpu_s=1e-5, **facts)
            place = {"epoch": visit.epoch, "shard": visit.shard, "rows": 1000}
            add(rank, "visit", start, end, **facts, **place, data_s=1e-3, copy_s=0.0)
            if (n + 1) % shape.ranks == 0:
                add(rank, "eval", end, end + 1e-3, config=c, epoch=visit.epoch)
            if n == plan.num_steps - 1:
                add(rank, "checkpoint", end + 1e-3, end + 2e-3, config=c, nbytes=1500)
        spans = [times[v.config_id, v.step] for v in own]
        busy = sum(end - start for start, end in spans)
        spent = dict.fromkeys(PARTS, 0.1) | {"compute_s": busy, "idle_s": 0.5}
        last = spans[-1][1] + 0.01
        add(rank, "end", last, last, most_arenas=4, peak_rss_bytes=4e8, spent=spent)
        skew = rank * shape.skew_s
        for which, lines in enumerate(lists):
            lines.append([span[which] + skew for span in spans])
    return events, lists


def _write_results(
    folder: Path, names: Any, values: Any, plan: Any, shape: Shape, rng: Any
) -> None:
    routes: list[list[dict[str, int]]] = [[] for _ in names]
    for visit in sorted(plan.visits(), key=lambda v: v.step):
        place = {"epoch": visit.epoch, "shard": visit.shard, "rank": visit.rank}
        routes[visit.config_id].append(place)
    rows, lines = [], []
    for i, name in enumerate(names):
        level = 0.95 - 0.1 * abs(np.log10(values[i]["lr"]) + 2) + rng.normal(0, 0.01)
        best, best_epoch, metrics = -1.0, 0, {}
        for epoch in range(shape.epochs):
            accuracy = float(level - 0.5 * np.exp(-(epoch + 1) / 4) + rng.normal(0, 0.004))
            loss = float(2.5 * (1 - accuracy))
            metrics = {"train_loss": loss * 0.9, "valid_loss": loss, "accuracy": accuracy}
            head = {"config_id": i, "config": name, "epoch": epoch, "rank": 0}
            lines.append(head | metrics | {"seconds": 0.1})
            if accuracy > best:
                best, best_epoch = accuracy, epoch
        rows.append(
            {
                "config_id": i,
                "config": name,
                "status": "done",
                "hyperparameters": values[i],
                "epochs": shape.epochs,
                "final": metrics,
                "best": best,
                "best_epoch": best_epoch,
                "state_sha256": "0" * 64,
                "route": routes[i],
            }
        )
    first = max(rows, key=lambda row: row["best"])["config_id"]
    record = {"metric": "accuracy", "mode": "max", "best": first, "configs": rows}
    (folder / "results.json").write_text(json.dumps(record, indent=1))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def _write_experiment(folder: Path, shape: Shape) -> None:
    (folder / "experiment.toml").write_text(
        f'build = "tune.py:build"\nepochs = {shape.epochs}\nseed = 1\n\n'
        '[data]\nstore = "rows.zarr"\n\n[objective]\nmetric = "accuracy"\nmode = "max"\n\n'
        "[space]\nlr = [0.01, 0.02]\nbatch_size = [32, 64]\n"
    )


def add_search(folder: Path) -> None:
    """Make of a run one in which configs were stopped, diverged, copied and left unfinished."""
    record = json.loads((folder / "results.json").read_text())
    rows = {row["config_id"]: row for row in record["configs"]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = max(line["epoch"] for line in lines)
    ends = {0: ("stopped", 1), 1: ("diverged", 1), 2: ("unfinished", last), 3: ("failed", 1)}
    ends = {i: end for i, end in ends.items() if i != record["best"]}
    for config_id, (status, epochs) in ends.items():
        rows[config_id] |= {"status": status, "epochs": epochs}
    lines = [
        line
        for line in lines
        if line["config_id"] not in ends or line["epoch"] < ends[line["config_id"]][1]
    ]
    for line in lines:
        if line["config_id"] == 1:
            line["train_loss"] = line["valid_loss"] = None
    changed = {"lr": 0.02, "batch_size": 64}
    rows[4]["lineage"] = [{"epoch": 1, "source": record["best"], "hyperparameters": changed}]
    decisions = [
        {"at": 2.5, "kind": "start", "config_id": 5, "config": "c005", "epochs": 0},
        {"at": 3.0, "kind": "stop", "config_id": 0, "config": "c000", "epochs": 1},
        {"at": 3.1, "kind": "continue", "config_id": 5, "config": "c005", "epochs": 1},
        {"at": 3.2, "kind": "copy", "config_id": 4, "config": "c004", "epochs": 1, "source": 5},
    ]
    plan = json.loads((folder / "plan.json").read_text())
    plan["spans"] = [[0, plan["num_epochs"]] for _ in rows]
    plan["forks"] = [[4, plan["num_shards"], record["best"]]]
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "results.json").write_text(json.dumps(record))
    for name, found in (("metrics", lines), ("decisions", decisions)):
        text = "".join(json.dumps(line) + "\n" for line in found)
        (folder / f"{name}.jsonl").write_text(text)


def edit_results(folder: Path, change: Any) -> None:
    """Let `change` have its way with what results.json holds."""
    record = json.loads((folder / "results.json").read_text())
    change(record)
    (folder / "results.json").write_text(json.dumps(record))
