"""The rows of results.json, as `mophpc verify` reads them: by itself, as it does all else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mophpc.errors import RunFolderError

Row = Mapping[str, Any]

_NEEDED: dict[str, type] = {
    "config_id": int,
    "config": str,
    "status": str,
    "hyperparameters": dict,
    "state_sha256": str,
    "route": list,
}


def read_rows(run: Path) -> list[Row]:
    """Return the rows of a run's results, by config_id.

    Raises:
        RunFolderError: there is no such run, or it did not end, or they are damaged.
    """
    if not (run / "experiment.toml").is_file():
        raise RunFolderError(f"'{run}' holds no run; give the folder that 'mophpc run' made")
    if not (run / "results.json").is_file():
        raise RunFolderError(
            f"the run in '{run}' did not end: there are no results to verify; go on with --resume"
        )
    path = run / "results.json"
    try:
        rows = list(json.loads(path.read_text(encoding="utf-8"))["configs"])
        for place, row in enumerate(rows):
            _check_row(row, place, len(rows))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        wrong = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RunFolderError(
            f"'{path}' is damaged: {wrong}; restore it, or run the experiment again"
        ) from error
    return rows


def _check_row(row: Row, place: int, count: int) -> None:
    """Return if a row is one from which a config can be trained again.

    Its digests are not looked at: whether they are right is what is to be found out.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    if not row.keys() >= _NEEDED.keys():
        raise ValueError(f"a config lacks one of {', '.join(sorted(_NEEDED))}")
    for name, kind in _NEEDED.items():
        if type(row[name]) is not kind:
            raise ValueError(f"{name} of config {place} is not as it should be")
    if row["config_id"] != place:
        raise ValueError(f"config {place} is called {row['config_id']}")
    for visit in row["route"]:
        if not all(type(visit[name]) is int and visit[name] >= 0 for name in ("epoch", "shard")):
            raise ValueError(f"config {place} has a visit that cannot be")
    for number, entry in enumerate(row.get("lineage", ())):
        if not isinstance(entry["hyperparameters"], dict):
            raise ValueError(f"config {place} has hyperparameters that are none")
        if number == 0 and not is_copy(entry):
            continue
        if type(entry["epoch"]) is not int or entry["source"] not in range(count):
            raise ValueError(f"config {place} has a copy that cannot be")


def check_shards(run: Path, rows: Sequence[Row], num_shards: int) -> None:
    """Return if all shards that were visited are there.

    Raises:
        RunFolderError: one is not.
    """
    for row in rows:
        for visit in row["route"]:
            if visit["shard"] >= num_shards:
                raise RunFolderError(
                    f"'{run / 'results.json'}' is damaged: config {row['config_id']} was on shard "
                    f"{visit['shard']}, and the store has {num_shards}; restore it, or run the "
                    f"experiment again"
                )


def choose(rows: list[Row], configs: Sequence[str]) -> list[Row]:
    """Return the rows of configs: ids or names; all where none is given.

    Raises:
        RunFolderError: there is no such config.
    """
    if not configs:
        return rows
    chosen = []
    for given in configs:
        found = [
            row
            for row in rows
            if given in (str(row["config_id"]), row["config"], row["config"].partition("-")[0])
        ]
        if not found:
            raise RunFolderError(
                f"the run has no config '{given}'; allowed: 0 to {len(rows) - 1}, or a name"
            )
        chosen += found
    return chosen


def is_copy(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a lineage is a copy of another config's state, and not the beginning."""
    return entry["source"] is not None
