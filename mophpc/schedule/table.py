"""A plan as text: a table of ranks by steps, and a few lines that sum it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mophpc.schedule.simulate import Prediction, bytes_moved, hops_per_config, predict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mophpc.schedule.plan import Plan

IDLE = "·"
_EARLIER, _LATER = "<", ">"


def format_plan(
    plan: Plan,
    names: Sequence[str] | None = None,
    *,
    epoch: int | None = None,
    max_width: int = 100,
    max_rows: int = 32,
) -> str:
    """Return the plan as a table: a row per rank, a column per step, cells are config ids.

    A step is the time of one visit where all visits cost the same. What does not fit is left out,
    and a line says what.

    Args:
        plan: a plan that passes `check_plan`.
        names: names of the configs, shown below the table.
        epoch: the only epoch to show; all by default.
        max_width: characters in a line.
        max_rows: ranks to show, and names.

    Raises:
        PlanError: ranks wait for each other for ever.
        ValueError: there is no such epoch.
    """
    if epoch is not None and not 0 <= epoch < plan.num_epochs:
        raise ValueError(f"there is no epoch {epoch}; the plan has {plan.num_epochs}")
    grid = _grid(plan)
    made = np.unique(grid.epoch[grid.epoch >= 0]).tolist()  # a plan may begin with later ones
    if epoch is not None and epoch not in made:
        return f"epoch {epoch}: no visits in this plan"
    shown = made if epoch is None else [epoch]
    blocks = [_block(plan, grid, one, max_width, max_rows) for one in shown]
    if names is not None:
        width = len(str(len(names) - 1))
        legend = [f"{index:>{width}} = {name}" for index, name in enumerate(names[:max_rows])]
        if len(names) > max_rows:
            legend.append(f"… {len(names) - max_rows} more configs")
        blocks.append("\n".join(legend))
    return "\n\n".join(blocks)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Config and epoch of each (rank, step), -1 where the rank is idle."""

    config: NDArray[np.int64]
    epoch: NDArray[np.int64]


def _grid(plan: Plan) -> _Grid:
    prediction = predict(plan, 1.0)
    shape = (plan.num_ranks, round(prediction.makespan_s))
    grid = _Grid(np.full(shape, -1, np.int64), np.full(shape, -1, np.int64))
    for visit in prediction.plan.visits():
        place = visit.rank, round(visit.predicted_start_s)
        grid.config[place], grid.epoch[place] = visit.config_id, visit.epoch
    return grid


def _block(plan: Plan, grid: _Grid, epoch: int, max_width: int, max_rows: int) -> str:
    """Return the table of one epoch, from its first step to its last on any rank."""
    steps = np.flatnonzero((grid.epoch == epoch).any(axis=0))
    first, last = int(steps[0]), int(steps[-1])
    ranks = range(min(plan.num_ranks, max_rows))
    labels = [f"epoch {epoch}, step", *(_label(plan, rank) for rank in ranks)]
    left = max(map(len, labels))
    # The same cells in every epoch, so that the blocks line up.
    cell = 1 + max(len(str(plan.num_configs - 1)), len(str(grid.epoch.shape[1] - 1)))
    stop = min(last + 1, first + max(1, (max_width - left) // cell))
    rows = [[str(step) for step in range(first, stop)]]
    for rank in ranks:
        configs = grid.config[rank, first:stop].tolist()
        epochs = grid.epoch[rank, first:stop].tolist()
        rows.append([_cell(one, own - epoch) for one, own in zip(configs, epochs, strict=True)])
    lines = [
        label.ljust(left) + "".join(text.rjust(cell) for text in row)
        for label, row in zip(labels, rows, strict=True)
    ]
    used = {text for row in rows[1:] for text in row}
    notes = {
        IDLE: "idle",
        _EARLIER: "a visit of an earlier epoch",
        _LATER: "a visit of a later epoch",
    }
    lines += [f"{mark} {meaning}" for mark, meaning in notes.items() if mark in used]
    if stop <= last:
        lines.append(f"… steps {stop} to {last} are cut off; a wider table shows them")
    if plan.num_ranks > max_rows:
        lines.append(f"… ranks {max_rows} to {plan.num_ranks - 1} are not shown")
    return "\n".join(lines)


def _cell(config_id: int, later: int) -> str:
    if config_id < 0:
        return IDLE
    return str(config_id) if later == 0 else _LATER if later > 0 else _EARLIER


def _label(plan: Plan, rank: int) -> str:
    own = plan.shards_of(rank)
    runs_on = own == tuple(range(own[0], own[-1] + 1))
    shards = f"{own[0]}-{own[-1]}" if runs_on and len(own) > 2 else ",".join(map(str, own))
    return f"rank {rank} (shard {shards})" if len(own) == 1 else f"rank {rank} (shards {shards})"


def summary(
    prediction: Prediction,
    *,
    unit: str = "visits",
    lower_bound_s: float | None = None,
    state_nbytes: Sequence[int] | None = None,
) -> tuple[str, ...]:
    """Return lines on makespan, idle share, hops, bytes and arenas.

    Args:
        prediction: the plan's prediction.
        unit: what a predicted second stands for; `s` where costs are measured.
        lower_bound_s: the bound to compare the makespan with.
        state_nbytes: size of each config's state, for the bytes.

    Raises:
        ValueError: there is not one state size per config.
    """
    plan = prediction.plan
    span = f"makespan  {prediction.makespan_s:,.6g} {unit}"
    if lower_bound_s is not None and lower_bound_s > 0.0:
        ratio = prediction.makespan_s / lower_bound_s
        span += f" (lower bound {lower_bound_s:,.6g}, ratio {ratio:.3f})"
    lines = [span, f"idle      {prediction.idle_share:.1%} of the ranks' time"]
    if len(set(prediction.idle_shares)) > 1:
        worst = max(range(plan.num_ranks), key=prediction.idle_shares.__getitem__)
        lines[-1] += f", {prediction.idle_shares[worst]:.1%} on rank {worst}"
    lines.append(f"hops      {sum(hops_per_config(plan)):,} of {plan.num_visits:,} visits")
    if state_nbytes is not None:
        moved = bytes_moved(plan, state_nbytes)
        lines.append(f"moved     {_bytes(moved)}, {_bytes(moved / plan.num_epochs)} per epoch")
    lines.append(f"arenas    at most {plan.max_arenas} config states on a rank")
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class Rating:
    """How a policy's plan does."""

    policy: str
    makespan_s: float
    idle_share: float
    ratio: float | None
    """Makespan / lower bound; None where the bound is 0."""
    hops: int
    max_arenas: int


def rate(prediction: Prediction, lower_bound_s: float) -> Rating:
    """Rate a plan against the lower bound."""
    plan = prediction.plan
    ratio = prediction.makespan_s / lower_bound_s if lower_bound_s > 0.0 else None
    return Rating(
        plan.policy,
        prediction.makespan_s,
        prediction.idle_share,
        ratio,
        sum(hops_per_config(plan)),
        plan.max_arenas,
    )


def format_ratings(ratings: Sequence[Rating], *, unit: str = "visits") -> str:
    """Return a table with a row per policy.

    Args:
        ratings: one per policy.
        unit: what a predicted second stands for.
    """
    rows = [("policy", f"makespan [{unit}]", "idle", "ratio to bound", "hops", "arenas")]
    rows += [
        (
            one.policy,
            f"{one.makespan_s:,.6g}",
            f"{one.idle_share:.1%}",
            "-" if one.ratio is None else f"{one.ratio:.3f}",
            f"{one.hops:,}",
            str(one.max_arenas),
        )
        for one in ratings
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _bytes(size: float) -> str:
    for name in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.4g} {name}"
        size /= 1000
    return f"{size:.4g} PB"
