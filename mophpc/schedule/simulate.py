"""What a plan will do with given costs: times, idle shares, bytes; a simulation without clocks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mophpc.errors import PlanError
from mophpc.schedule.bounds import idle_share
from mophpc.schedule.costs import seconds
from mophpc.schedule.plan import Columns, Plan, Visit, columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


@dataclass(frozen=True, slots=True)
class Prediction:
    """A plan with its predicted times; `busy_s` and `idle_shares` are per rank."""

    plan: Plan
    makespan_s: float
    busy_s: tuple[float, ...]
    idle_shares: tuple[float, ...]
    idle_share: float


@dataclass(frozen=True, slots=True)
class _Costs:
    """Seconds of each visit (by place in the plan's columns), and of each config's hop and eval."""

    visit: list[float]
    hop: list[float]
    evaluation: list[float]


def predict(
    plan: Plan, cost_s: ArrayLike, *, hop_s: ArrayLike = 0.0, eval_s: ArrayLike = 0.0
) -> Prediction:
    """Simulate the plan: a visit starts when its rank is free and the config's state is there.

    A rank is busy while it trains and while it evaluates, which it does after the last visit of
    each epoch, before the state moves on. Arenas do not delay anything here: a hop takes `hop_s`
    from the end of a visit, whenever the receive is posted.

    Args:
        plan: a plan that passes `check_plan`.
        cost_s: seconds of each visit, shape (configs, shards), or anything that broadcasts to it.
        hop_s: seconds of a hop, a number or shape (configs,).
        eval_s: seconds of an evaluation, a number or shape (configs,).

    Raises:
        PlanError: ranks wait for each other for ever.
        ValueError: costs have the wrong shape, or one is negative or not finite.
    """
    table = columns(plan)
    visit_s = seconds("cost_s", cost_s, (plan.num_configs, plan.num_shards))
    costs = _Costs(
        visit=visit_s[table.config, table.shard].tolist(),
        hop=seconds("hop_s", hop_s, (plan.num_configs,)).tolist(),
        evaluation=seconds("eval_s", eval_s, (plan.num_configs,)).tolist(),
    )
    start, end, free = _times(plan, table, costs)
    busy = np.zeros(plan.num_ranks)
    np.add.at(busy, table.rank, np.array(costs.visit))
    evaluated = (table.step + 1) % plan.num_shards == 0
    np.add.at(busy, table.rank[evaluated], np.array(costs.evaluation)[table.config[evaluated]])
    makespan_s = max(free)
    return Prediction(
        plan=_with_times(plan, table, start, end),
        makespan_s=makespan_s,
        busy_s=tuple(busy.tolist()),
        idle_shares=tuple(idle_share((own,), makespan_s) for own in busy.tolist()),
        idle_share=idle_share(busy.tolist(), makespan_s),
    )


def predicted(plan: Plan) -> Prediction:
    """Return the plan with the predicted times that it carries; all visits alike where it has none.

    Evaluations count as idle here, since the plan does not carry them.
    """
    busy = [0.0] * plan.num_ranks
    makespan_s = 0.0
    for visit in plan.visits():
        busy[visit.rank] += visit.predicted_end_s - visit.predicted_start_s
        makespan_s = max(makespan_s, visit.predicted_end_s)
    if makespan_s <= 0.0:
        return predict(plan, 1.0)
    shares = tuple(idle_share((own,), makespan_s) for own in busy)
    return Prediction(plan, makespan_s, tuple(busy), shares, idle_share(busy, makespan_s))


def _times(
    plan: Plan, table: Columns, costs: _Costs
) -> tuple[list[float], list[float], list[float]]:
    """Return start and end of each visit, and when each rank is free at last.

    Times are the longest path to each visit, so it does not matter which rank goes on first.
    """
    before, after = (link.tolist() for link in table.links(plan))
    copies: dict[int, list[int]] = {}  # visits that begin with a copy of a visit's state
    if plan.forks:
        for index, previous in enumerate(before):
            if previous >= 0 and after[previous] != index:
                copies.setdefault(previous, []).append(index)
    rank_of, config, step = table.rank.tolist(), table.config.tolist(), table.step.tolist()
    total = len(before)
    start, end, moved = [0.0] * total, [0.0] * total, [-1.0] * total
    free = [0.0] * plan.num_ranks
    position = list(table.first[:-1])
    waiting = deque(range(plan.num_ranks))
    while waiting:
        rank = waiting.popleft()
        last = table.first[rank + 1]
        while (index := position[rank]) < last:
            previous = before[index]
            if previous >= 0 and moved[previous] < 0.0:
                break
            begin = max(free[rank], moved[previous]) if previous >= 0 else free[rank]
            start[index] = begin
            end[index] = done = begin + costs.visit[index]
            if (step[index] + 1) % plan.num_shards == 0:
                done += costs.evaluation[config[index]]
            free[rank] = moved[index] = done
            position[rank] = index + 1
            following = after[index]
            if following >= 0 and (dest := rank_of[following]) != rank:
                moved[index] = done + costs.hop[config[index]]
                if position[dest] == following:
                    waiting.append(dest)
            waiting.extend(
                rank_of[copy] for copy in copies.get(index, ()) if position[rank_of[copy]] == copy
            )
    if tuple(position) != table.first[1:]:
        raise PlanError("the plan cannot be simulated: ranks wait for each other for ever")
    return start, end, free


def _with_times(plan: Plan, table: Columns, start: list[float], end: list[float]) -> Plan:
    visits = [
        Visit(old.config_id, old.epoch, old.shard, old.rank, old.step, begin, until)
        for old, begin, until in zip(plan.visits(), start, end, strict=True)
    ]
    return replace(
        plan,
        visits_by_rank=tuple(
            tuple(visits[begin:until])
            for begin, until in zip(table.first[:-1], table.first[1:], strict=True)
        ),
    )


def bytes_moved(plan: Plan, state_nbytes: Sequence[int]) -> int:
    """Return the bytes of state that all hops of the plan move, headers not counted.

    Args:
        plan: the plan.
        state_nbytes: size of each config's state.

    Raises:
        PlanError: a config lacks a step or makes one twice.
        ValueError: there is not one size per config.
    """
    if len(state_nbytes) != plan.num_configs:
        raise ValueError(f"{len(state_nbytes)} state sizes for {plan.num_configs} configs")
    counts = hops_per_config(plan)
    # Python's integers: 10^4 configs of 10^10 bytes over 10^6 hops do not fit in 63 bits.
    return sum(count * size for count, size in zip(counts, state_nbytes, strict=True))


def hops_per_config(plan: Plan) -> tuple[int, ...]:
    """Return how many hops each config makes.

    Raises:
        PlanError: a config lacks a step or makes one twice.
    """
    table = columns(plan)
    before, _ = table.links(plan)
    moves = (before >= 0) & (table.rank[before] != table.rank)
    return tuple(np.bincount(table.config[moves], minlength=plan.num_configs).tolist())


def time_left_s(prediction: Prediction, elapsed_s: float, visits_done: int) -> float:
    """Return how many seconds a running plan has left, given how far it has come.

    The predicted pace is scaled by the real one so far; so a prediction in which every visit costs
    1 serves where costs are not known. Before the first visit has ended it is the makespan.

    Args:
        prediction: the plan's prediction.
        elapsed_s: seconds since the plan was started.
        visits_done: visits that all ranks together have ended.
    """
    if visits_done >= prediction.plan.num_visits:
        return 0.0
    if visits_done < 1:
        return prediction.makespan_s
    ends = np.array([visit.predicted_end_s for visit in prediction.plan.visits()])
    planned_s = float(np.partition(ends, visits_done - 1)[visits_done - 1])
    if planned_s <= 0.0:
        return prediction.makespan_s
    return max(0.0, prediction.makespan_s - planned_s) * elapsed_s / planned_s
