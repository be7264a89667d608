"""What a run that goes on has measured of its costs: no pilot is needed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mophpc.schedule.costs import Costs

UNKNOWN_S = 1.0
"""Of a visit, where nothing was measured."""


def past_costs(run: Path, num_configs: int, shard_rows: Sequence[int]) -> Costs:
    """Return what configs cost, by the events of a run; what is unknown is as in the mean.

    Args:
        run: the run folder.
        num_configs: configs.
        shard_rows: rows of each shard.
    """
    per_row, evals, hops = (defaultdict[int, list[float]](list) for _ in range(3))
    for event in _events(run / "events"):
        kind, config_id = event.get("kind"), event.get("config")
        if not isinstance(config_id, int) or not 0 <= config_id < num_configs:
            continue
        try:
            took_s = float(event["end"]) - float(event["start"])
            if kind == "visit" and event["rows"] > 0:
                per_row[config_id].append(max(0.0, took_s) / event["rows"])
            elif kind == "eval":
                evals[config_id].append(max(0.0, took_s))
            elif kind == "hop" and event["direction"] == "receive":
                hops[config_id].append(max(0.0, float(event["transfer_s"])))
        except (KeyError, TypeError, ValueError):
            continue  # a line of another version
    rows = np.array(shard_rows, np.float64)
    seconds = _means(per_row, num_configs, UNKNOWN_S / float(rows.mean()))
    return Costs(
        visit_s=seconds[:, None] * rows,
        hop_s=_means(hops, num_configs, 0.0),
        eval_s=_means(evals, num_configs, 0.0),
    )


def _means(
    found: dict[int, list[float]], num_configs: int, unknown: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return a median by config; where there is none, the mean of the others."""
    known = {config_id: float(np.median(values)) for config_id, values in found.items()}
    others = float(np.mean(list(known.values()))) if known else unknown
    return np.array([known.get(config_id, others) for config_id in range(num_configs)])


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("rank-*.jsonl")):
        for line in path.read_text(errors="replace").splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # half a line
            if isinstance(event, dict):
                yield event
