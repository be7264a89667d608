"""The checks that every plan passes before a rank acts on it; one error per invariant.

PlanError
├── CompletenessError   a config misses a shard in an epoch, or visits it twice
├── OwnerError          a visit is not on the rank that owns its shard
├── IsolationError      a config is in two places at a time
├── ExclusivityError    a rank trains two configs at a time
├── OrderError          steps with gaps, epochs out of order, or a rank's list that goes back
├── MatchingError       a receive could take the message of another hop
└── DeadlockError       the ranks wait for each other, or for arenas, for ever
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mophpc.errors import PlanError
from mophpc.schedule.plan import TAG_SPAN, Columns, Plan, Visit, columns
from mophpc.schedule.walk import LOOKAHEAD, least_arenas, stuck

if TYPE_CHECKING:
    from collections.abc import Sequence


class CompletenessError(PlanError):
    """A config does not visit each shard exactly once in each epoch."""


class OwnerError(PlanError):
    """A visit is not on the rank that owns its shard."""


class IsolationError(PlanError):
    """A config is in two places at a time."""


class ExclusivityError(PlanError):
    """A rank trains two configs at a time."""


class OrderError(PlanError):
    """A config's steps have gaps, leave the order of epochs, or go back in a rank's list."""


class MatchingError(PlanError):
    """Two hops that may be in flight together have the same source, dest and tag."""


class DeadlockError(PlanError):
    """The plan cannot end: ranks wait for each other, or for arenas, for ever."""


def check_plan(plan: Plan, *, tag_span: int = TAG_SPAN, lookahead: int = LOOKAHEAD) -> None:
    """Check every invariant of the schedule; return when all hold.

    Args:
        plan: the plan.
        tag_span: how many tags the transport can tell apart.
        lookahead: how many visits of a rank may have an arena before they start.

    Raises:
        CompletenessError: a config misses a shard in an epoch, or visits it twice.
        OwnerError: a visit is not on the rank that owns its shard.
        IsolationError: a config makes two visits as the same step, or its predicted times overlap.
        OrderError: steps with gaps, epochs out of order, or a rank's list that goes back.
        ExclusivityError: the predicted times of a rank overlap.
        MatchingError: a receive could take the message of another hop.
        DeadlockError: the plan cannot end.
    """
    visits, table = tuple(plan.visits()), columns(plan)
    _check_completeness(plan, visits, table)
    _check_owners(plan, visits, table)
    _check_steps(plan, visits, table)
    _check_times(visits, table)
    _check_matching(plan, tag_span)
    _check_deadlock(plan, visits, lookahead)


def _where(visit: Visit) -> str:
    return (
        f"config {visit.config_id}, epoch {visit.epoch}, shard {visit.shard} on rank {visit.rank}"
    )


def _first(mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> int | None:
    """Return the index of the first True, None if there is none."""
    return int(np.argmax(mask)) if mask.any() else None


def _check_completeness(plan: Plan, visits: Sequence[Visit], table: Columns) -> None:
    if plan.spans is not None:
        _check_ragged(plan, visits, table)
        return
    sizes = (plan.num_configs, plan.num_epochs, plan.num_shards)
    outside = np.zeros(len(visits), np.bool_)
    for values, size in zip((table.config, table.epoch, table.shard), sizes, strict=True):
        outside |= (values < 0) | (values >= size)
    if (bad := _first(outside)) is not None:
        raise CompletenessError(
            f"{_where(visits[bad])}: the plan has {sizes[0]} configs, {sizes[1]} epochs "
            f"and {sizes[2]} shards"
        )
    key = (table.config * plan.num_epochs + table.epoch) * plan.num_shards + table.shard
    count = np.bincount(key, minlength=sizes[0] * sizes[1] * sizes[2])
    if (cell := _first(count != 1)) is not None:
        rest, shard = divmod(cell, plan.num_shards)
        config_id, epoch = divmod(rest, plan.num_epochs)
        raise CompletenessError(
            f"config {config_id} visits shard {shard} {count[cell]} times in epoch {epoch}; "
            "once is due"
        )


def _check_ragged(plan: Plan, visits: Sequence[Visit], table: Columns) -> None:
    """Check completeness where configs make different numbers of epochs.

    A config that diverged may end in the middle of one; those before it are whole.
    """
    begin, end = np.array(plan.all_spans, np.int64).T
    known = (table.config >= 0) & (table.config < plan.num_configs)
    config = np.where(known, table.config, 0)
    known &= (table.step >= begin[config]) & (table.step < end[config])
    known &= (table.shard >= 0) & (table.shard < plan.num_shards)
    if (bad := _first(~known)) is not None:
        raise CompletenessError(f"{_where(visits[bad])}: the plan has no such visit for the config")
    for fork in plan.forks:
        for config_id, step in ((fork.config_id, fork.step), (fork.source, fork.step - 1)):
            if not (
                0 <= config_id < plan.num_configs and begin[config_id] <= step < end[config_id]
            ):
                raise CompletenessError(f"a state is copied at step {step} of config {config_id}")
        if fork.step % plan.num_shards:
            raise CompletenessError(f"a state is copied in the middle of an epoch: {fork}")
    copied = [(fork.config_id, fork.step) for fork in plan.forks]
    copied += [(one.config_id, one.step) for one in plan.brought]
    if len(set(copied)) != len(copied):
        raise CompletenessError("a config gets two states for one visit")
    for config_id, (first, _) in enumerate(plan.all_spans):
        if first > 0 and first < end[config_id] and (config_id, first) not in copied:
            raise CompletenessError(f"config {config_id} begins with step {first}, of no state")
    done = _check_brought(plan)
    config, shard = (
        np.concatenate((own, [row[place] for row in done])).astype(np.int64)
        for place, own in ((0, table.config), (2, table.shard))
    )
    epoch = np.concatenate((table.step // plan.num_shards, [row[1] for row in done]))
    key = epoch.astype(np.int64) * plan.num_shards + shard  # of a config, unique
    order = np.lexsort((key, config))  # stable: a visit comes before what was done before it
    same = (np.diff(key[order]) == 0) & (np.diff(config[order]) == 0)
    if (bad := _first(same)) is not None:
        raise CompletenessError(f"{_where(visits[order[bad]])}: the shard is visited twice")


def _check_brought(plan: Plan) -> list[tuple[int, int, int]]:
    """Check the states that are brought; return (config, epoch, shard) that they have seen."""
    found = []
    for one in plan.brought:
        due, seen = one.step % plan.num_shards, set(one.done)
        if not len(seen) == len(one.done) == due or not seen <= set(range(plan.num_shards)):
            raise CompletenessError(
                f"the state of config {one.config_id} for step {one.step} has seen shards "
                f"{list(one.done)} of the epoch; {due} different ones are due"
            )
        if one.step == 0 or not 0 <= one.source < plan.num_configs:
            raise CompletenessError(
                f"the state of config {one.config_id} for step {one.step} is said to be that of "
                f"config {one.source}"
            )
        if one.done and one.step != plan.all_spans[one.config_id][0]:
            raise CompletenessError(
                f"config {one.config_id} gets a state in the middle of an epoch, at step {one.step}"
            )
        found += [(one.config_id, one.step // plan.num_shards, shard) for shard in one.done]
    return found


def _check_owners(plan: Plan, visits: Sequence[Visit], table: Columns) -> None:
    owner = np.array(plan.owners)[table.shard]
    claimed = np.array([visit.rank for visit in visits], np.int64)
    if (bad := _first((owner != table.rank) | (claimed != table.rank))) is not None:
        raise OwnerError(
            f"{_where(visits[bad])}: the visit is in the list of rank {table.rank[bad]}, "
            f"the shard belongs to rank {owner[bad]}"
        )


def _check_steps(plan: Plan, visits: Sequence[Visit], table: Columns) -> None:
    order = np.lexsort((table.step, table.config))
    if plan.spans is None:  # completeness holds, so each config has exactly num_steps visits
        due = np.tile(np.arange(plan.num_steps), plan.num_configs)
    else:
        table.links(plan)
        due = np.concatenate([np.arange(*span) for span in plan.spans] or [np.arange(0)])
    found, of = table.step[order], table.config[order]
    if (bad := _first((np.diff(found) == 0) & (np.diff(of) == 0))) is not None:
        raise IsolationError(
            f"{_where(visits[order[bad]])} and {_where(visits[order[bad + 1]])} "
            f"are both step {found[bad]} of the config"
        )
    if (bad := _first(found != due)) is not None:
        visit = visits[order[bad]]
        raise OrderError(f"{_where(visit)} is step {visit.step}; step {due[bad]} is missing")
    epoch = table.step // plan.num_shards
    if (bad := _first(epoch != table.epoch)) is not None:
        raise OrderError(
            f"{_where(visits[bad])} is step {visits[bad].step}, which is in epoch {epoch[bad]}"
        )
    # Stable, so that visits of a config on one rank stay in the order of the rank's list.
    listed = np.lexsort((table.config, table.rank))
    same = (np.diff(table.config[listed]) == 0) & (np.diff(table.rank[listed]) == 0)
    if (bad := _first(same & (np.diff(table.step[listed]) < 0))) is not None:
        early, late = visits[listed[bad]], visits[listed[bad + 1]]
        raise OrderError(f"{_where(early)} (step {early.step}) comes before step {late.step}")


def _check_times(visits: Sequence[Visit], table: Columns) -> None:
    """Check predicted times for overlap; a plan without them has all zero, which passes."""
    start = np.array([visit.predicted_start_s for visit in visits])
    end = np.array([visit.predicted_end_s for visit in visits])
    if (bad := _first(~(end >= start))) is not None:
        raise ExclusivityError(f"{_where(visits[bad])} is predicted to end before it starts")
    early = end[:-1] > start[1:]
    if (bad := _first(early & (np.diff(table.rank) == 0))) is not None:
        raise ExclusivityError(
            f"{_where(visits[bad + 1])} is predicted to start while {_where(visits[bad])} runs"
        )
    order = np.lexsort((table.step, table.config))
    early = end[order][:-1] > start[order][1:]
    if (bad := _first(early & (np.diff(table.config[order]) == 0))) is not None:
        raise IsolationError(
            f"{_where(visits[order[bad + 1]])} is predicted to start while "
            f"{_where(visits[order[bad]])} runs"
        )


def _check_matching(plan: Plan, tag_span: int) -> None:
    """Check that a tag belongs to one config; then the order of its steps matches its hops."""
    if plan.num_configs > tag_span:
        raise MatchingError(
            f"configs 0 and {tag_span} have the same tag, and their hops may be in flight "
            f"together: a plan holds at most {tag_span} configs"
        )


def _check_deadlock(plan: Plan, visits: Sequence[Visit], lookahead: int) -> None:
    found = stuck(plan, lookahead=lookahead)
    if not found:
        return
    places = [f"{_where(visits[one.index])} cannot start: {one.reason}" for one in found[:4]]
    if len(found) > len(places):
        places.append(f"and {len(found) - len(places)} more ranks")
    enough = least_arenas(plan, lookahead)
    hint = "no number of arenas is enough" if enough is None else f"{enough} arenas are enough"
    raise DeadlockError(
        f"the plan cannot end with {plan.max_arenas} arenas per rank ({hint}): {'; '.join(places)}"
    )
