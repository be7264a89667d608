"""Visits and hops on one timeline: what was planned and what was done, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mophpc.report.run_data import RunData

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(slots=True)
class Timeline:
    """One entry per visit, sorted by rank and time; nan is a time that is not known.

    Times are on rank 0's clock. The hop of an entry is the one that brought the config here.
    """

    config: Ints
    epoch: Ints
    shard: Ints
    step: Ints
    rank: Ints
    """Where it was made; where it was planned, if it was not made."""
    planned_rank: Ints
    planned_start_s: Floats
    planned_end_s: Floats
    start_s: Floats
    end_s: Floats
    hop_source: Ints
    """-1: there was no hop."""
    hop_sent_s: Floats
    """When the source began to send."""
    hop_begun_s: Floats
    """When bytes began to come."""
    hop_end_s: Floats
    hop_exposed_s: Floats
    """Of it, so long had the rank nothing to train."""

    def __len__(self) -> int:
        """Return how many visits there are."""
        return len(self.config)

    @property
    def made(self) -> NDArray[np.bool_]:
        """Which visits were made."""
        return np.isfinite(self.start_s) & np.isfinite(self.end_s)

    def window(self) -> tuple[float, float]:
        """Return when the first visit began and the last one ended; planned, if none was made."""
        starts, ends = self.start_s[self.made], self.end_s[self.made]
        if not len(starts):
            planned = np.isfinite(self.planned_start_s) & np.isfinite(self.planned_end_s)
            starts, ends = self.planned_start_s[planned], self.planned_end_s[planned]
        if not len(starts):
            return 0.0, 0.0
        return float(starts.min()), float(ends.max())


def make_timeline(run: RunData) -> Timeline:
    """Return the visits of the plan and those of the events as one list."""
    plan, made = run.schedule, run.activity.of("visit")
    steps = int(max(plan.step.max(initial=0), made["step"].max(initial=0))) + 1
    planned_key = plan.config * steps + plan.step
    made_key = (made["config"] * steps + made["step"]).astype(np.int64)
    keys = np.unique(np.concatenate((planned_key, made_key)))
    size = len(keys)
    of_plan = np.searchsorted(keys, planned_key)
    of_made = np.searchsorted(keys, made_key)

    def column(planned: NDArray[np.generic], real: Floats) -> Ints:
        values = np.zeros(size, np.int64)
        values[of_plan] = planned
        values[of_made] = real.astype(np.int64)
        return values

    def times(planned: Floats, real: Floats) -> Floats:
        values = np.full(size, np.nan)
        values[of_plan] = planned
        values[of_made] = real
        return values

    starts, ends = _aligned(run, plan.start_s), _aligned(run, plan.end_s)
    config = column(plan.config, made["config"])
    nothing = np.full(len(of_made), np.nan)
    rank = column(plan.rank, made["rank"])
    planned_rank = rank.copy()
    planned_rank[of_plan] = plan.rank
    planned_start, planned_end = (
        times(plan.planned_start_s, nothing),
        times(plan.planned_end_s, nothing),
    )
    # A visit that is in the events too was set to nan just now.
    planned_start[of_plan], planned_end[of_plan] = plan.planned_start_s, plan.planned_end_s
    found = Timeline(
        config=config,
        epoch=column(plan.epoch, made["epoch"]),
        shard=column(plan.shard, made["shard"]),
        step=keys - config * steps,
        rank=rank,
        planned_rank=planned_rank,
        planned_start_s=planned_start,
        planned_end_s=planned_end,
        start_s=times(starts, made["start"]),
        end_s=times(ends, made["end"]),
        hop_source=np.full(size, -1),
        hop_sent_s=np.full(size, np.nan),
        hop_begun_s=np.full(size, np.nan),
        hop_end_s=np.full(size, np.nan),
        hop_exposed_s=np.full(size, np.nan),
    )
    _add_hops(run, found, keys, steps)
    return _sorted(found)


def _aligned(run: RunData, times_s: Floats) -> Floats:
    """Return times of the plan's visits, which each rank took by its own clock."""
    aligned = times_s.copy()
    for rank in run.activity.clocks:
        here = run.schedule.rank == rank
        aligned[here] = run.activity.align(rank, times_s[here])
    return aligned


def _add_hops(run: RunData, found: Timeline, keys: Ints, steps: int) -> None:
    """Match each receive with its visit, and each send with its receive."""
    came, left = run.activity.of("receive"), run.activity.of("send")
    at, is_here = _places(keys, came["config"] * steps + came["step"], came["step"] < steps)
    at = at[is_here]
    found.hop_source[at] = came["source"][is_here].astype(np.int64)
    found.hop_end_s[at] = came["end"][is_here]
    took = np.nan_to_num(came["transfer_s"][is_here])
    found.hop_begun_s[at] = came["end"][is_here] - took
    found.hop_exposed_s[at] = came["exposed_s"][is_here]
    at, is_here = _places(keys, left["config"] * steps + left["step"], left["step"] < steps)
    places, sources = at[is_here], left["source"][is_here]
    same = found.hop_source[places] == sources
    found.hop_sent_s[places[same]] = left["start"][is_here][same]


def _places(keys: Ints, wanted: Floats, good: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.bool_]]:
    whole = wanted.astype(np.int64)
    at = np.minimum(np.searchsorted(keys, whole), max(0, len(keys) - 1))
    if not len(keys):
        return at, np.zeros(len(at), bool)
    return at, good & (keys[at] == whole)


def _sorted(found: Timeline) -> Timeline:
    when = np.where(np.isfinite(found.start_s), found.start_s, found.planned_start_s)
    order = np.lexsort((found.step, np.nan_to_num(when), found.rank))
    return Timeline(*(getattr(found, name)[order] for name in Timeline.__dataclass_fields__))
