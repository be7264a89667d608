"""What a Gantt picture shows of a plan: visits, hops and ends of epochs, and its measures."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mophpc.schedule.plan import Plan, Visit

    Record = dict[str, Any]

MOST_VISITS = 20_000
"""Visits drawn, the first ones by start time; a second or two of drawing and some megabytes."""

_MOST_EPOCH_LINES = 100
_LONGEST_NAME = 120
_NARROW, _WIDE = 960, 1600  # pixels between the axes; the width follows from visits per rank
_PER_VISIT = 14
_ROW, _THIN_ROW = 44.0, 6.0
_TALL, _TALLEST = 640, 4000
_ODD = "\u2063"  # marks a colour for odd epochs; not printable, so that it is in no name


class Span(NamedTuple):
    """A visit as it is drawn."""

    visit: Visit
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn, and its measures in pixels."""

    plan: Plan
    labels: tuple[str, ...]
    named: bool
    """Whether the labels are names that a user gave."""
    real: bool
    """Whether times were measured."""
    spans: tuple[Span, ...]
    totals: Mapping[int, int]
    """Visits that have times, drawn or not, by epoch."""
    unit: str
    width: int
    row: float
    half_bar: float
    """Half the height of a bar, in rows."""

    @property
    def domain(self) -> tuple[float, float]:
        """Where the time axis begins and ends."""
        if not self.spans:
            return (0.0, 1.0)
        low = min(span.start_s for span in self.spans)
        high = max(span.end_s for span in self.spans)
        return (low, high) if low < high else (low, low + 1.0)

    @property
    def total(self) -> int:
        """Visits that have times, drawn or not."""
        return sum(self.totals.values())

    @property
    def configs(self) -> list[int]:
        """Ids of the configs that are drawn."""
        return sorted({span.visit.config_id for span in self.spans})


def make_drawing(
    plan: Plan,
    names: Sequence[str] | None,
    times: Mapping[tuple[int, int], tuple[float, float]] | None,
    unit: str,
) -> Drawing:
    """Choose what is drawn and how large; arguments as for `draw_gantt`.

    Raises:
        ValueError: there is not one name per config.
    """
    if names is None:
        labels = tuple(f"config {index}" for index in range(plan.num_configs))
    elif len(names) == plan.num_configs:
        labels = tuple(plain_text(name) for name in names)
    else:
        raise ValueError(f"{len(names)} names for {plan.num_configs} configs")
    spans, totals = _pick(plan, times)
    visits_of = Counter(span.visit.rank for span in spans)
    row = min(max(min(_ROW, _TALL / plan.num_ranks), _THIN_ROW), _TALLEST / plan.num_ranks)
    return Drawing(
        plan=plan,
        labels=labels,
        named=names is not None,
        real=times is not None,
        spans=spans,
        totals=totals,
        unit=plain_text(unit),
        width=min(max(_NARROW, _PER_VISIT * max(visits_of.values(), default=0)), _WIDE),
        row=row,
        half_bar=0.3 if row >= 24 else 0.4,
    )


def _pick(
    plan: Plan, times: Mapping[tuple[int, int], tuple[float, float]] | None
) -> tuple[tuple[Span, ...], dict[int, int]]:
    """Return the first visits by start time, and how many have times, by epoch."""
    if times is None:
        found = [Span(v, v.predicted_start_s, v.predicted_end_s) for v in plan.visits()]
    else:
        keys = ((visit, times.get((visit.config_id, visit.step))) for visit in plan.visits())
        found = [Span(visit, float(t[0]), float(t[1])) for visit, t in keys if t is not None]
    found = [s for s in found if -math.inf < s.start_s <= s.end_s < math.inf]
    first = heapq.nsmallest(
        MOST_VISITS,
        found,
        key=lambda s: (s.start_s, s.visit.rank, s.visit.config_id, s.visit.step),
    )
    return tuple(first), Counter(span.visit.epoch for span in found)


def plain_text(text: str) -> str:
    """Return `text` without what XML cannot hold, and not too long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def heading(drawing: Drawing) -> str:
    """Return a title."""
    plan = drawing.plan
    return f"{_counted(plan.num_configs, 'config')} on {_counted(plan.num_ranks, 'rank')}"


def facts(drawing: Drawing, num_hops: int) -> list[str]:
    """Return the lines under the title."""
    plan, drawn = drawing.plan, len(drawing.spans)
    parts = [
        _counted(plan.num_shards, "shard"),
        _counted(plan.num_epochs, "epoch"),
        f"policy {plain_text(plan.policy)}",
        _counted(drawing.total, "visit"),
    ]
    if drawn == drawing.total:
        parts.append(_counted(num_hops, "hop"))
    low, high = drawing.domain
    if drawn == drawing.total and drawn:
        busy_s = sum(span.end_s - span.start_s for span in drawing.spans)
        share = busy_s / ((high - low) * plan.num_ranks)
        # Not "idle": evaluations are no visits. Measured visits may overlap by a hair.
        parts.append(f"{min(share, 1.0):.1%} of time in visits")
    lines = [" · ".join([*parts, f"{'real' if drawing.real else 'predicted'} times"])]
    if drawn < drawing.total:
        lines.append(f"Only the first {drawn:,} of {drawing.total:,} visits by start are drawn.")
    return lines


def bar_records(drawing: Drawing) -> list[Record]:
    """Return the visits."""
    return [
        {
            "config": visit.config_id,
            "name": drawing.labels[visit.config_id],
            "tone": tone(drawing, visit.config_id, visit.epoch),
            "epoch": visit.epoch,
            "shard": visit.shard,
            "rank": visit.rank,
            "start": start_s,
            "end": end_s,
        }
        for visit, start_s, end_s in drawing.spans
    ]


def hop_records(drawing: Drawing) -> list[Record]:
    """Return a line per hop, from the edge of a bar to the nearer edge of the next one."""
    order = sorted(drawing.spans, key=lambda s: (s.visit.config_id, s.visit.step))
    found = []
    for one, two in pairwise(order):
        same = one.visit.config_id == two.visit.config_id
        source, dest = one.visit.rank, two.visit.rank
        if same and two.visit.step == one.visit.step + 1 and source != dest:
            reach = drawing.half_bar if dest > source else -drawing.half_bar
            found.append(
                {
                    "config": one.visit.config_id,
                    "start": one.end_s,
                    "end": two.start_s,
                    "source": round(source + reach, 3),
                    "dest": round(dest - reach, 3),
                }
            )
    return found


def epoch_records(drawing: Drawing) -> list[Record]:
    """Return when each epoch's last visit ends, for epochs that are drawn whole."""
    ends: dict[int, float] = {}
    for visit, _, end_s in drawing.spans:
        ends[visit.epoch] = max(end_s, ends.get(visit.epoch, end_s))
    drawn = Counter(span.visit.epoch for span in drawing.spans)
    whole = [epoch for epoch in sorted(ends) if drawn[epoch] == drawing.totals[epoch]]
    if len(whole) > _MOST_EPOCH_LINES:
        return []
    every = math.ceil(len(whole) * 96 / drawing.width)
    return [
        {"end": ends[epoch], "label": f"end of epoch {epoch}" if epoch % every == 0 else ""}
        for epoch in whole
    ]


def tone(drawing: Drawing, config_id: int, epoch: int) -> str:
    """Return the key of a bar's colour; for even epochs it is what the legend says."""
    return f"{config_id}: {drawing.labels[config_id]}" + (_ODD if epoch % 2 else "")
