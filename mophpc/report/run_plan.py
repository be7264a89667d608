"""The schedule of a run folder's `plan.json` as arrays, for pictures.

A plan that is to be walked is read by `mophpc.schedule.from_json`, which checks all of it; here a
part that is missing is only a picture that is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mophpc.errors import PlanError
from mophpc.schedule.plan import Visit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_TOKENS = re.compile(r"(?:c\d+e\d+s\d+r\d+n\d+(?: |\Z))+", re.ASCII)

MOST = 2**31
"""Ids and steps are below this."""

MOST_S = 1e12
"""Times are below this."""


def _ints() -> Ints:
    return np.zeros(0, np.int64)


def _floats() -> Floats:
    return np.zeros(0, np.float64)


@dataclass(slots=True)
class Schedule:
    """Visits by rank, each rank's in order; nan is a time that is not known."""

    num_ranks: int = 0
    num_shards: int = 0
    num_epochs: int = 0
    policy: str = ""
    digest: str = ""
    names: list[str] = field(default_factory=list)
    """Of the configs, by id."""
    config: Ints = field(default_factory=_ints)
    epoch: Ints = field(default_factory=_ints)
    shard: Ints = field(default_factory=_ints)
    rank: Ints = field(default_factory=_ints)
    step: Ints = field(default_factory=_ints)
    planned_start_s: Floats = field(default_factory=_floats)
    planned_end_s: Floats = field(default_factory=_floats)
    start_s: Floats = field(default_factory=_floats)
    """Real times, by the clocks of the ranks."""
    end_s: Floats = field(default_factory=_floats)
    renewals: int = 0


def read_schedule(path: Path, problems: list[str]) -> Schedule:
    """Read a plan, or say why it cannot be read and return an empty one."""
    if not path.is_file():
        problems.append("There is no schedule as planned: plan.json is missing.")
        return Schedule()
    try:
        return _from_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        problems.append(f"plan.json is damaged: {' '.join(text.split())[:160]}.")
        return Schedule()


def _from_record(record: dict[str, Any]) -> Schedule:
    lists = record["visits_by_rank"]
    lengths = [len(own) for own in lists]
    tokens = [token for own in lists for token in own]
    fields = parse_tokens(tokens)
    names = record.get("configs")
    renewals = record.get("renewals")
    return Schedule(
        num_ranks=len(lists),
        num_shards=int(record["num_shards"]),
        num_epochs=int(record["num_epochs"]),
        policy=str(record.get("policy", "")),
        digest=str(record.get("digest", "")),
        names=[str(name) for name in names] if isinstance(names, list) else [],
        config=fields[0],
        epoch=fields[1],
        shard=fields[2],
        rank=np.repeat(np.arange(len(lists)), lengths),
        step=fields[4],
        planned_start_s=_times(record, "predicted_start_s", lengths),
        planned_end_s=_times(record, "predicted_end_s", lengths),
        start_s=_times(record, "real_start_s", lengths),
        end_s=_times(record, "real_end_s", lengths),
        renewals=len(renewals) if isinstance(renewals, list) else 0,
    )


def parse_tokens(tokens: Sequence[Any]) -> Ints:
    """Return config, epoch, shard, rank and step of visits in their one-token form, by row.

    Raises:
        PlanError: a token is none.
    """
    if not tokens:
        return np.zeros((5, 0), np.int64)
    if not all(type(token) is str for token in tokens):
        raise PlanError("visits_by_rank holds something that is no visit")
    text = " ".join(tokens)
    numbers = text.translate(str.maketrans("cesrn", "     ")).split()
    if _TOKENS.fullmatch(text) and len(numbers) == 5 * len(tokens):
        try:
            found = np.array(numbers, np.int64).reshape(-1, 5).T
        except (ValueError, OverflowError):
            found = np.full((5, 1), -1)
        if found.min() >= 0 and found.max() < MOST:
            return found
    for token in tokens:  # slower, and says which one is wrong
        Visit.parse(token)
    raise PlanError("a visit of visits_by_rank has a number that is too large")


def _times(record: dict[str, Any], name: str, lengths: Sequence[int]) -> Floats:
    rows = record.get(name)
    total = sum(lengths)
    if rows is None:
        return np.full(total, np.nan)
    if [len(own) for own in rows] != list(lengths):
        raise PlanError(f"{name} does not have one number per visit of visits_by_rank")
    times = np.array([time for own in rows for time in own], np.float64)
    if times.shape != (total,):
        raise PlanError(f"{name} holds something that is no number")
    times[~(np.abs(times) < MOST_S)] = np.nan
    return times
