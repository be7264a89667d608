"""A plan that follows what is measured: the next stays are promised, the rest is planned anew.

Every rank has been told its visits up to some moment, and never starts another before it is told.
Well before a rank runs out of them, the rest is planned again from the costs measured so far, and
its first part is promised in turn. So nobody waits for a barrier, nothing that was promised
changes, and all ranks always agree, since each visit is told to its rank once.

This is pure: `begin`, `observe`, `due`, `snapshot` and `adopt` are quick and belong to the thread
that talks to the ranks; `Snapshot.solve` takes its time and may run in another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mophpc.errors import PlanError
from mophpc.schedule.balanced import (
    Effort,
    few_held,
    mean_stay,
    plan_order,
    remaining_bound,
    renewal_effort,
)
from mophpc.schedule.check import check_plan
from mophpc.schedule.costs import CostModel, Costs, Observed
from mophpc.schedule.orders import Orders, Promises
from mophpc.schedule.plan import Plan, Visit
from mophpc.schedule.stays import Progress, StayCosts, time_order, visits_of
from mophpc.schedule.underway import Underway
from mophpc.schedule.walk import LOOKAHEAD, least_arenas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mophpc.schedule.stays import Order

WINDOW = 1.5
"""The part that is promised reaches so many paces ahead."""

LEAST_PACE_S = 0.4
"""A pace is a mean stay, but no shorter than this: where visits take milliseconds, a message and
a plan take as long, so that many stays are promised at once."""

SPARE_STAYS = 1
"""A renewal is due when a rank has no more than so many promised stays that have not begun, ..."""

LEAST_GAP = 0.25
"""... and, when it has none, sooner than a pace after the last: after this share of a mean stay."""

SEARCH_SHARE, MOST_SEARCH_S = 0.005, 0.1
"""A search takes this share of a mean stay, and so many seconds at most, by its estimate; ..."""

SOLVING_SHARE = 0.02
"""... and renewals are so far apart that planning really takes no more than this share."""

BETTER = 0.999
"""The old rest is kept unless a new one is shorter by this factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A new rest of the plan."""

    order: Order
    starts_s: list[float]
    makespan_s: float
    is_new: bool
    """Whether it differs from the old rest."""
    max_arenas: int
    """States that a rank may hold from now on."""
    estimated_s: float = 0.0
    """Seconds that it took to find, by the estimate, for a simulation."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What a renewal is computed from."""

    progress: Progress
    """Where everything will stand when all that is promised has been made."""
    costs: StayCosts
    order: Order
    """The rest as it is planned now."""
    seed: tuple[int, ...]
    limit: Effort
    most_held: int
    """States that a rank may hold."""
    lookahead: int
    whole: Callable[[Order], Plan]
    """Makes the whole plan of what is promised and a rest, without times."""

    def solve(self) -> Solution:
        """Plan the rest again; the old one stays where no better one is found.

        Raises:
            PlanError: the new plan breaks an invariant (a bug in the planner).
        """
        old = self._solution(self.order)
        if BETTER * old.makespan_s <= remaining_bound(self.progress, self.costs):
            return old
        order = plan_order(self.progress, self.costs, self.limit, self.seed, self.most_held)
        new = self._solution(order)
        if new.makespan_s >= BETTER * old.makespan_s:
            return replace(old, estimated_s=self.limit.seconds)
        arenas = self._checked(self.whole(order)).max_arenas
        return replace(new, is_new=True, max_arenas=arenas, estimated_s=self.limit.seconds)

    def _solution(self, order: Order) -> Solution:
        state = self.progress.copy()
        starts = time_order(order, state, self.costs)
        return Solution(order, starts, float(state.free_s.max()), is_new=False, max_arenas=0)

    def _checked(self, plan: Plan) -> Plan:
        """Return the plan with as many arenas as it needs."""
        arenas = least_arenas(plan, self.lookahead)
        if arenas is None:
            raise PlanError("a renewed plan cannot end with any number of arenas")
        plan = replace(plan, max_arenas=max(plan.max_arenas, arenas))
        check_plan(plan, lookahead=self.lookahead)
        return plan


@dataclass(frozen=True, slots=True, eq=False)
class Handed:
    """Where a run stands, for a pool that goes on with it."""

    model: CostModel
    costs: Costs
    promises: Promises
    underway: Underway
    todo: NDArray[np.bool_]
    """Shape (configs, ranks): stays of each config's current epoch that are not promised."""
    made: list[int]
    """By config: the first step that is not made."""
    max_arenas: int
    lookahead: int


class Renewal:
    """The plan of a run, and what is known of how it goes.

    Args:
        plan: the first plan, of one stay per config, rank and epoch.
        costs: what it was made from.
        seed: of the search.
        lookahead: how many visits of a rank may have an arena before they start.
    """

    def __init__(
        self, plan: Plan, costs: Costs, *, seed: int = 0, lookahead: int = LOOKAHEAD
    ) -> None:
        self._plan = plan
        self._lookahead = lookahead
        self._seed = seed
        self._model = CostModel(costs, plan.owners, plan.num_ranks)
        self._shards = [plan.shards_of(rank) for rank in range(plan.num_ranks)]
        self._promises = Promises(plan.num_configs, plan.num_ranks, plan.num_steps)
        self._frontier = Progress.start(plan.num_configs, plan.num_ranks, plan.num_epochs)
        self._order: Order = []
        self._starts_s: list[float] = []
        self._set_pace(mean_stay(self._stay_costs(costs)), 0.0)
        self._solving_s = 0.0
        self._last_s = 0.0
        self._ranks_left = [True] * plan.num_ranks  # whether the rest has stays of the rank
        self._max_arenas = plan.max_arenas
        few = few_held(plan.num_configs, plan.num_ranks)
        self._most_held = max(few, plan.max_arenas - LOOKAHEAD)
        self._underway = Underway(plan.num_configs, plan.num_ranks)
        self._config_steps = [0] * plan.num_configs
        self._rank_next_s = [
            0.0
        ] * plan.num_ranks  # when each is expected to have made all it was told
        self.count = 0
        """How often the plan was renewed."""
        self.makespan_s = max((v.predicted_end_s for v in plan.visits()), default=0.0)
        """When all visits will have been made, as far as is known."""

    @property
    def whole(self) -> Plan:
        """The first plan: sizes and owners."""
        return self._plan

    def begin(self, now_s: float = 0.0) -> list[Orders]:
        """Promise the first part; return what to tell each rank."""
        self._order, starts = _stays(self._plan)
        self._starts_s = [start + now_s for start in starts]
        self.makespan_s += now_s
        self._underway.begin(now_s)
        self._last_s = now_s
        return self._promise(now_s)

    @property
    def learned(self) -> Costs | None:
        """What every config costs, or has cost; None before each has been observed."""
        return self._model.costs(left_too=True) if self._model.has_seen_all else None

    @property
    def is_over(self) -> bool:
        """Whether everything has been promised."""
        return not self._order

    @property
    def patience_end_s(self) -> float:
        """When the next renewal is due in any case: a rank may wait for what only it tells."""
        return self._last_s + self._patience_s

    def observe(self, seen: Observed) -> None:
        """Take a visit that was made."""
        self._model.take(seen)
        self._underway.observe(seen)
        made = self._config_steps[seen.config_id]  # reports of ranks may cross
        self._config_steps[seen.config_id] = max(made, seen.step + 1)

    @property
    def handed(self) -> Handed:
        """What a pool needs to go on from here."""
        return Handed(
            model=self._model,
            costs=self._model.costs(left_too=True),
            promises=self._promises,
            underway=self._underway,
            todo=self._frontier.todo,
            made=list(self._config_steps),
            max_arenas=self._max_arenas,
            lookahead=self._lookahead,
        )

    def took(self, solving_s: float) -> None:
        """Take how long a renewal took, so that it is not done too often."""
        self._solving_s = max(0.5 * self._solving_s, solving_s)

    def due(self, now_s: float) -> bool:
        """Return whether the rest should be planned again now."""
        since_s = now_s - self._last_s
        if self.is_over or since_s < self._least_gap_s:
            return False
        spare = 0 if since_s < self._pace_s else SPARE_STAYS
        return now_s >= self.patience_end_s or any(
            rank_left and self._underway.left(rank) <= (spare + 1) * len(own)
            for rank, (rank_left, own) in enumerate(
                zip(self._ranks_left, self._shards, strict=True)
            )
        )

    def snapshot(self, now_s: float) -> Snapshot:
        """Return what the renewal is computed from."""
        costs = self._model.costs()
        progress = self._expected(costs, now_s)
        stays = self._stay_costs(costs)
        allowed_s = min(MOST_SEARCH_S, SEARCH_SHARE * self._pace_s)
        limit = renewal_effort(progress, allowed_s)
        return Snapshot(
            progress=progress,
            costs=stays,
            order=self._order,
            seed=(self._seed, self.count + 1),
            limit=limit,
            most_held=self._most_held,
            lookahead=self._lookahead,
            whole=self._whole,
        )

    def adopt(self, solution: Solution, now_s: float) -> list[Orders]:
        """Take a new rest over and promise its first part; return what to tell each rank."""
        self.count += 1
        self._order, self._starts_s = solution.order, solution.starts_s
        self.makespan_s = max(solution.makespan_s, now_s)
        self._last_s = now_s
        costs = self._stay_costs(self._model.costs())
        self._set_pace(mean_stay(costs), self._solving_s / SOLVING_SHARE)
        self._max_arenas = max(self._max_arenas, solution.max_arenas)
        return self._promise(now_s)

    def _set_pace(self, mean_s: float, bearable_s: float) -> None:
        """Set how far promises reach and how often they are made.

        Args:
            mean_s: of a stay.
            bearable_s: seconds between renewals, by how long they take.
        """
        self._pace_s = max(mean_s, bearable_s, LEAST_PACE_S)
        self._least_gap_s = max(LEAST_GAP * mean_s, bearable_s)
        # The last promised one of many short stays begins too late to plan what follows it.
        has_many = self._pace_s > 2.0 * mean_s
        self._patience_s = (1.0 if has_many else WINDOW) * self._pace_s

    def plan(self) -> Plan:
        """Return the whole plan as it is now: what is promised, and the rest."""
        lists = [list(own) for own in self._promises.visits]
        for visit in self._expand(self._order, self._starts_s):
            lists[visit.rank].append(visit)
        return replace(
            self._plan,
            visits_by_rank=tuple(map(tuple, lists)),
            max_arenas=self._max_arenas,
        )

    def _whole(self, order: Order) -> Plan:
        """Return what is promised and another rest, without times, which would overlap."""
        lists = [
            [replace(visit, predicted_start_s=0.0, predicted_end_s=0.0) for visit in own]
            for own in self._promises.visits
        ]
        no_time = np.zeros((self._plan.num_configs, self._plan.num_shards))
        starts = [0.0] * len(order)
        step_of = self._promises.step_of
        for visit in visits_of(order, starts, no_time, self._shards, step_of):
            lists[visit.rank].append(visit)
        return replace(
            self._plan, visits_by_rank=tuple(map(tuple, lists)), max_arenas=self._max_arenas
        )

    def _promise(self, now_s: float) -> list[Orders]:
        """Promise the stays of the rest that are to start soon."""
        # A config that waits to be told where it goes does not hop yet.
        longest_hop_s = float(self._model.costs().hop_s.max(initial=0.0))
        until_s = now_s + WINDOW * self._pace_s + longest_hop_s
        until_s = max(until_s, min(self._starts_s, default=0.0))
        if max(self._starts_s, default=0.0) <= until_s + self._pace_s:
            until_s = np.inf
        told = self._with_next_stays([start <= until_s for start in self._starts_s])
        now = [stay for stay, chosen in zip(self._order, told, strict=True) if chosen]
        starts = [start for start, chosen in zip(self._starts_s, told, strict=True) if chosen]
        visits = self._expand(now, starts)
        for config_id, rank in now:
            self._frontier.make(config_id, rank)
        self._underway.promise(visits)
        later = [not chosen for chosen in told]
        self._order = [s for s, chosen in zip(self._order, later, strict=True) if chosen]
        self._starts_s = [s for s, chosen in zip(self._starts_s, later, strict=True) if chosen]
        self._ranks_left = [False] * self._plan.num_ranks
        for _, rank in self._order:
            self._ranks_left[rank] = True
        return self._promises.extend(visits, self._max_arenas, is_last=self.is_over)

    def _with_next_stays(self, told: list[bool]) -> list[bool]:
        """Return `told` with one more stay for each rank that has none after what it does now.

        Not where the rank would have to wait for it: until then something else may become better.
        What comes before such a stay, for its config and its rank, is told with it.
        """
        unmade = [self._underway.left(rank) for rank in range(self._plan.num_ranks)]
        first: dict[int, int] = {}  # of each rank, the place of its first stay in the rest
        for place, (_, rank) in enumerate(self._order):
            first.setdefault(rank, place)
            unmade[rank] += told[place] * len(self._shards[rank])
        by_rank = [-1] * self._plan.num_ranks  # up to which place stays are told
        by_config = [-1] * self._plan.num_configs
        for rank, place in first.items():
            follows = self._starts_s[place] <= self._rank_next_s[rank] + LEAST_GAP * self._pace_s
            if follows and unmade[rank] <= len(self._shards[rank]):
                by_rank[rank] = place
        result = list(told)
        for place in range(len(told) - 1, -1, -1):
            config_id, rank = self._order[place]
            if result[place] or place <= max(by_rank[rank], by_config[config_id]):
                result[place] = True
                by_rank[rank] = max(by_rank[rank], place)
                by_config[config_id] = max(by_config[config_id], place)
        return result

    def _expand(self, order: Order, starts_s: Sequence[float]) -> list[Visit]:
        """Return the visits of stays that follow what is promised."""
        visit_s = self._model.costs().visit_s
        return visits_of(order, starts_s, visit_s, self._shards, self._promises.step_of)

    def _stay_costs(self, costs: Costs) -> StayCosts:
        return StayCosts.of(costs, self._plan.owners, self._plan.num_ranks)

    def _expected(self, costs: Costs, now_s: float) -> Progress:
        """Return where everything will stand when all that is promised has been made."""
        free, end = self._underway.expected(costs, self._plan.num_shards, now_s)
        self._rank_next_s = [max(end_s, now_s) for end_s in free]
        progress = self._frontier.copy()
        begins = progress.todo.all(axis=1)  # of an epoch: no hop leads to its first stay
        progress.free_s[:] = np.maximum(free, now_s)
        progress.ready_s[:] = np.array(end) + np.where(begins, 0.0, costs.hop_s)
        return progress


def _stays(plan: Plan) -> tuple[Order, list[float]]:
    """Return a plan's stays and their starts, in an order in which they can be made."""
    order: Order = []
    starts: list[float] = []
    made = [0] * plan.num_configs  # visits of each config
    place = [0] * plan.num_ranks
    waiting: dict[tuple[int, int], int] = {}  # (config, step): the rank that is to make it
    free = list(range(plan.num_ranks))
    while free:
        rank = free.pop()
        visits = plan.visits_by_rank[rank]
        while place[rank] < len(visits):
            visit = visits[place[rank]]
            if made[visit.config_id] != visit.step:
                waiting[visit.config_id, visit.step] = rank
                break
            before = visits[place[rank] - 1] if place[rank] else None
            if before is None or (before.config_id, before.epoch) != (visit.config_id, visit.epoch):
                order.append((visit.config_id, rank))
                starts.append(visit.predicted_start_s)
            made[visit.config_id] += 1
            place[rank] += 1
            if (other := waiting.pop((visit.config_id, visit.step + 1), None)) is not None:
                free.append(other)
    return order, starts
