"""A schedule whose end nobody knows: configs come, go on and leave as somebody decides.

Each config has a goal, so many epochs; when it has made them it waits, its state where it is, until
it is given another goal, gets a copy of another's state, or ends. What is decided is planned a few
stays ahead: whenever a rank will be free, it takes the config that will be there and has most to
do. As in a plan that is renewed, what was promised stays, and nobody waits for a barrier: while
some configs wait, ranks train the others.

This is pure, and quick enough for the thread that talks to the ranks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mophpc.errors import PlanError
from mophpc.schedule.ahead import Market
from mophpc.schedule.costs import CostModel, Costs, Observed
from mophpc.schedule.member import Member, then_s
from mophpc.schedule.orders import END, Orders, Promises, join
from mophpc.schedule.plan import Fork, Plan, Visit
from mophpc.schedule.resume import Owed, Standing, catch_up, shards_left
from mophpc.schedule.stays import visits_of
from mophpc.schedule.underway import Underway
from mophpc.schedule.walk import LOOKAHEAD, SPARE_ARENAS, arenas_from_here, least_arenas

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mophpc.schedule.renewal import Renewal

WINDOW = 1.5
"""What is promised reaches so many paces ahead; a pace is a mean stay, but no shorter than ..."""

LEAST_PACE_S = 0.1

LEAST_GAP = 0.25
"""Of a mean stay: so far apart are promises, if no rank runs out of visits, ..."""

PLANNING_SHARE = 0.05
"""... and so far that planning takes no more than this share."""


class Pool:
    """Plans what is decided.

    Args:
        plan: its sizes and owners; its visits are not looked at.
        costs: what the configs are thought to cost.
        lookahead: how many visits of a rank may have an arena before they start.
    """

    def __init__(self, plan: Plan, costs: Costs, *, lookahead: int = LOOKAHEAD) -> None:
        self._plan = plan
        self._lookahead = lookahead
        self._shards = [plan.shards_of(rank) for rank in range(plan.num_ranks)]
        self._model = CostModel(costs, plan.owners, plan.num_ranks)
        self._promises = Promises(plan.num_configs, plan.num_ranks, plan.num_steps)
        self._underway = Underway(plan.num_configs, plan.num_ranks)
        self.members = [Member(0, 0, 0) for _ in range(plan.num_configs)]
        """By config_id."""
        self._todo = [np.ones(plan.num_ranks, np.bool_) for _ in range(plan.num_configs)]
        self._forks: list[Fork] = []
        self._copies = [0] * plan.num_ranks  # made on each rank
        self._max_arenas = -(-plan.num_configs // plan.num_ranks) + SPARE_ARENAS
        self._is_closed = self._has_told_all = False
        self._held: list[Orders] = []  # to be told with what is promised next
        self._owed = Owed()
        self._owes_more = False  # that can be told now
        self._ending: set[int] = set()  # configs that end when they have made what is owed
        self._is_urgent = True
        self._last_s = self._took_s = 0.0
        self._mean_s = 0.0
        self.count = 0
        """How often visits were promised."""
        self.makespan_s = 0.0
        """When all that is decided will have been made, as far as is known."""

    @classmethod
    def after(cls, renewal: Renewal) -> Pool:
        """Return a pool that goes on where a plan that was renewed stands; that one is over."""
        plan, left = renewal.whole, renewal.handed
        pool = cls(plan, left.costs, lookahead=left.lookahead)
        pool._model, pool._promises, pool._underway = left.model, left.promises, left.underway
        pool._todo = [row.copy() for row in left.todo]
        pool._max_arenas = left.max_arenas
        for config_id, member in enumerate(pool.members):
            member.goal, member.made = plan.num_steps, left.made[config_id]
            if left.model.has_left(config_id):
                pool.end(config_id)
            member.is_over |= member.made >= plan.num_steps
        return pool

    @classmethod
    def resumed(
        cls,
        plan: Plan,
        costs: Costs,
        standings: Sequence[Standing],
        *,
        forks: Sequence[Fork] = (),
        lookahead: int = LOOKAHEAD,
        now_s: float = 0.0,
    ) -> Pool:
        """Return a pool in which configs go on from where they stand.

        What was promised to them is promised again, and told first. The goal of each is the end of
        the epoch that it comes to by that. The arguments are those of `catch_up`.

        Raises:
            PlanError: there is not one standing for each config, or one is not possible.
        """
        visits = catch_up(standings, plan, costs, now_s, forks)
        pool = cls(plan, costs, lookahead=lookahead)
        for config_id, standing in enumerate(standings):
            pool._promises.ends_at(config_id, standing.end_in(plan))
            if standing.step > 0:
                begin = (standing.source, standing.done)
                pool._promises.bring(config_id, standing.step, *begin)
            pool.members[config_id].made = standing.step
        pool._owed = Owed(visits, forks)
        pool._copy_owed()
        pool._hold_owed()
        own: list[list[Visit]] = [[] for _ in standings]
        for visit in visits:
            own[visit.config_id].append(visit)
        for config_id, standing in enumerate(standings):
            pool._stand(config_id, standing, own[config_id])
        return pool

    def _stand(self, config_id: int, standing: Standing, visits: Sequence[Visit]) -> None:
        """Take where a config stands after visits that are promised already."""
        self.members[config_id] = member = Member.of(standing, len(visits), self._plan)
        left = shards_left(standing, visits, self._plan.num_shards)
        self._todo[config_id] = np.array([left.issuperset(own) for own in self._shards])
        if standing.is_over and (visits or config_id in self._owed.configs):
            self.end(config_id)
        elif standing.is_over or member.is_over:
            member.is_over = True
            self._model.drop(config_id)

    def begin(self, now_s: float = 0.0) -> None:
        """Say when the first visit can start."""
        self._underway.begin(now_s)
        self._last_s = now_s

    # What is decided.

    def add(self, *, is_laid_out: bool = False, epochs: int | None = None) -> int:
        """Take one more config; return its id. It has no goal yet.

        Args:
            is_laid_out: whether the size of its state is known.
            epochs: that it makes at most; those of the plan by default.
        """
        most = self._plan.num_epochs if epochs is None else epochs
        self._promises.add(most * self._plan.num_shards)
        self._model.add()
        self._underway.add(self._last_s)
        self.members.append(Member(0, 0, 0, is_laid_out=is_laid_out))
        self._todo.append(np.ones(self._plan.num_ranks, np.bool_))
        return len(self.members) - 1

    def set_group(self, config_id: int, group: int) -> None:
        """Say with which others a config is compared."""
        self.members[config_id].group = group

    def set_goal(self, config_id: int, epochs: int, then: int = 0) -> None:
        """Give a config a goal: so many epochs in all, no fewer than are promised."""
        member = self.members[config_id]
        member.goal, member.then = epochs * self._plan.num_shards, then
        self._is_urgent = True

    def boundary(self, config_id: int) -> int:
        """Return after how many epochs a config can wait next: what is promised will be made.

        One that has just got a copy of a state makes an epoch with it first, so that every copy is
        followed by a visit and the plan has it.
        """
        step = self._promises.step_of(config_id) + self._promises.is_copy(config_id)
        step = max(step, self._owed.step_of(config_id))
        return -(-step // self._plan.num_shards)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> list[Fork]:
        """Let configs that wait, or are new, go on from the states of others that wait.

        Args:
            pairs: (config, source); a source may be replaced itself in the same breath.
        """
        if not pairs:
            return []
        if not self._owed.configs.isdisjoint(config_id for pair in pairs for config_id in pair):
            raise PlanError(f"copies {pairs} are to be made of what has not caught up yet")
        made = [self.members[source].made for _, source in pairs]
        forks = self._promises.copy(pairs)
        for (config_id, source), step in zip(pairs, made, strict=True):
            member = self.members[config_id]
            if self._promises.is_new(config_id):
                member.begin = step
            member.made = member.goal = step
            member.is_laid_out = True
            self._underway.copy(config_id, source)
            self._todo[config_id] = np.ones(self._plan.num_ranks, np.bool_)
        self._count(forks)
        return forks

    def _count(self, forks: Sequence[Fork]) -> None:
        """Take copies that are made; one of a state in a file is none, but is read from there."""
        for fork in forks:
            if (rank := self._promises.rank_of(fork.config_id)) >= 0:
                self._copies[rank] += 1
            if not self._promises.is_brought(fork.config_id):
                self._forks.append(fork)
        self._is_urgent = True

    def _copy_owed(self) -> None:
        """Make the copies again that can be made."""
        pairs = [
            (fork.config_id, fork.source)
            for fork in self._owed.take_forks([member.made for member in self.members])
        ]
        if pairs:
            self._owes_more = True
            self._count(self._promises.copy(pairs))
            for config_id, source in pairs:
                self._underway.copy(config_id, source)

    def _hold_owed(self) -> None:
        """Promise what is owed and waits for no copy; it is told with the next orders."""
        self._owes_more = False
        if visits := self._owed.take_visits():
            orders = self._tell(visits, is_last=False)
            self._held = join(self._held, orders) if self._held else orders
        for config_id in sorted(self._ending - self._owed.configs):
            self._ending.remove(config_id)
            self._close(config_id)

    def lay_out(self, config_id: int) -> None:
        """The size of a config's state is known."""
        self.members[config_id].is_laid_out = True
        self._is_urgent = True

    def end(self, config_id: int) -> None:
        """Let a config end: at once where it waits, else when it has made what is promised."""
        member = self.members[config_id]
        if not member.is_over:
            member.is_over = self._is_urgent = True
            if config_id in self._owed.configs:
                self._ending.add(config_id)
            else:
                self._close(config_id)

    def _close(self, config_id: int) -> None:
        if not self._promises.is_finished(config_id):
            self._promises.close(config_id, END)

    def close(self) -> None:
        """Nothing more will be decided."""
        self._is_closed = self._is_urgent = True

    # How it goes.

    @property
    def is_over(self) -> bool:
        """Whether the ranks have been told that nothing follows."""
        return self._has_told_all

    def goal_of(self, config_id: int) -> int:
        """Return the epochs after which a config is decided on."""
        return self.members[config_id].goal // self._plan.num_shards

    @property
    def num_decided(self) -> int:
        """Visits that are made or are to be made, by all that is decided."""
        step_of = self._promises.step_of
        return sum(
            max(step_of(c), self._owed.step_of(c), 0 if member.is_over else member.goal)
            - member.begin
            for c, member in enumerate(self.members)
        )

    def rank_of(self, config_id: int) -> int:
        """Return the rank where a config's state is when all is made; -1: it has none yet."""
        return self._promises.rank_of(config_id)

    @property
    def ends(self) -> list[int]:
        """By config: the step before which it ends at the latest."""
        return self._promises.ends

    def is_finished(self, config_id: int) -> bool:
        """Whether the last visit that a config can make is promised."""
        return self._promises.is_finished(config_id)

    def is_in_file(self, config_id: int) -> bool:
        """Whether a config's state is in a file, and no visit is promised that would read it."""
        return self._promises.is_brought(config_id) and self.rank_of(config_id) < 0

    def waits(self, config_id: int) -> bool:
        """Whether a config has made all that it is to make until somebody decides."""
        member = self.members[config_id]
        return (
            not member.is_over
            and member.made >= member.goal
            and config_id not in self._owed.configs
        )

    @property
    def training(self) -> int:
        """Configs that have not reached their goals."""
        return sum(not m.is_over and m.made < m.goal for m in self.members)

    @property
    def learned(self) -> Costs | None:
        """What every config costs, or has cost; None before each has been observed."""
        return self._model.costs(left_too=True) if self._model.has_seen_all else None

    def observe(self, seen: Observed) -> None:
        """Take a visit that was made."""
        self._model.take(seen)
        self._underway.observe(seen)
        # Ranks report by themselves: an earlier visit may be heard of later.
        member = self.members[seen.config_id]
        member.made = max(member.made, seen.step + 1)
        if self._owed:
            self._copy_owed()

    def took(self, planning_s: float) -> None:
        """Take how long planning took, so that it is not done too often."""
        self._took_s = max(0.5 * self._took_s, planning_s)

    def due(self, now_s: float) -> bool:
        """Return whether the ranks should be told more now."""
        if self._has_told_all:
            return False
        if self._held or self._owes_more:
            return True
        since_s = now_s - self._last_s
        if self._is_closed and self._is_urgent:
            return True
        # A rank without visits is told of some soon, if only planning is not all that is done.
        if self._runs_out(0):
            if self._is_urgent and since_s >= self._took_s:
                return True
            if since_s >= 10 * self._took_s and self._has_more:
                return True
        if since_s < max(LEAST_GAP * self._mean_s, self._took_s / PLANNING_SHARE):
            return False
        return self._is_urgent or (self._runs_out(1) and self._has_more)

    @property
    def _has_more(self) -> bool:
        step_of = self._promises.step_of
        return any(
            not member.is_over and step_of(config_id) < self._limit(config_id)
            for config_id, member in enumerate(self.members)
        )

    def _limit(self, config_id: int) -> int:
        """Return the step up to which a config's visits may be promised now."""
        member = self.members[config_id]
        if config_id in self._owed.configs:
            return 0
        if member.is_laid_out:
            return member.goal
        return min(member.goal, 1)  # its first stay, wherever that is

    def _runs_out(self, spare: int) -> bool:
        """Whether a rank has no more than so many stays to make that it knows of."""
        return any(
            self._underway.left(rank) <= spare * len(own) for rank, own in enumerate(self._shards)
        )

    # What the ranks are told.

    def promise(self, now_s: float, news: tuple[dict[str, Any], ...] = ()) -> list[Orders]:
        """Promise what is to start soon; return what to tell each rank.

        Args:
            now_s: seconds since the run's start.
            news: what all ranks must know before.

        Raises:
            PlanError: the ranks would wait for each other for ever (a bug in the planner).
        """
        self._is_urgent, self._last_s = False, now_s
        self.count += 1
        self._hold_owed()
        costs = self._model.costs()
        order, starts = self._market(costs, now_s)
        visits = visits_of(order, starts, costs.visit_s, self._shards, self._promises.step_of)
        for config_id, rank in order:
            todo = self._todo[config_id]
            todo[rank] = False
            if not todo.any():
                todo[:] = True
        self._has_told_all = self._is_closed and not self._has_more_after(visits)
        orders = self._tell(visits, is_last=self._has_told_all, news=news)
        held, self._held = self._held, []
        return join(held, orders) if held else orders

    def _tell(
        self, visits: Sequence[Visit], *, is_last: bool, news: tuple[dict[str, Any], ...] = ()
    ) -> list[Orders]:
        self._max_arenas = self._enough_arenas(visits)
        self._underway.promise(visits)
        # A copy takes an arena while what was promised before is not made yet.
        arenas = self._max_arenas + max(self._copies)
        return self._promises.extend(visits, arenas, is_last=is_last, news=news)

    def _has_more_after(self, visits: Sequence[Visit]) -> bool:
        told = {visit.config_id: visit.step + 1 for visit in visits}
        return bool(self._owed) or any(
            not member.is_over and told.get(c, self._promises.step_of(c)) < member.goal
            for c, member in enumerate(self.members)
        )

    def _market(self, costs: Costs, now_s: float) -> tuple[list[tuple[int, int]], list[float]]:
        """Return the stays that start soon, and when."""
        num_shards = self._plan.num_shards
        stay_s = costs.stay_s(self._plan.owners, self._plan.num_ranks)
        free, end = self._underway.expected(costs, num_shards, now_s)
        ids = [
            config_id
            for config_id, member in enumerate(self.members)
            if not member.is_over and self._promises.step_of(config_id) < self._limit(config_id)
        ]
        if not ids:
            self.makespan_s = max(free)
            return [], []
        market = Market(
            free_s=[max(at, now_s) for at in free],
            stay_s=stay_s[ids],
            hop_s=costs.hop_s[ids],
            eval_s=costs.eval_s[ids],
            end_s=np.array([max(end[c], now_s) for c in ids]),
            at=np.array([self._promises.rank_of(c) for c in ids]),
            todo=np.array([self._todo[c] for c in ids]),
            stays=np.array([self._stays_left(c) for c in ids]),
            then_s=then_s(self.members, ids, stay_s.sum(axis=1) + costs.eval_s),
        )
        known = stay_s[stay_s > 0.0]
        self._mean_s = float(known.mean()) if known.size else 0.0
        pace_s = max(self._mean_s, self._took_s / PLANNING_SHARE, LEAST_PACE_S)
        until_s = now_s + WINDOW * pace_s + float(costs.hop_s.max(initial=0.0))
        self.makespan_s = market.bound_s
        order, starts = market.order(until_s)
        return [(ids[index], rank) for index, rank in order], starts

    def _stays_left(self, config_id: int) -> int:
        """Return how many stays of a config may be planned."""
        limit, step = self._limit(config_id), self._promises.step_of(config_id)
        if not self.members[config_id].is_laid_out:
            return 1
        epochs = limit // self._plan.num_shards - step // self._plan.num_shards
        done = int((~self._todo[config_id]).sum())
        return epochs * self._plan.num_ranks - done

    def _enough_arenas(self, visits: Sequence[Visit]) -> int:
        by_rank: list[list[tuple[int, int]]] = [[] for _ in self._shards]
        for visit in visits:
            by_rank[visit.rank].append((visit.config_id, visit.step))
        waits_at = {
            c: self._promises.rank_of(c)
            for c, member in enumerate(self.members)
            if not (member.is_over or self._promises.is_finished(c))
            and self._promises.rank_of(c) >= 0
        }
        found = arenas_from_here(by_rank, waits_at, self._max_arenas, self._lookahead)
        if found is None:
            raise PlanError("what is promised cannot be made with any number of arenas")
        return found

    def plan(self) -> Plan:
        """Return all that is promised, as a plan with as many arenas as it needs at once."""
        spans = tuple(
            (member.begin, max(member.begin, self._promises.step_of(c)))
            for c, member in enumerate(self.members)
        )
        last = max((end for _, end in spans), default=0)
        plan = replace(
            self._plan,
            num_configs=len(self.members),
            num_epochs=max(self._plan.num_epochs, -(-last // self._plan.num_shards)),
            visits_by_rank=tuple(map(tuple, self._promises.visits)),
            policy="pool",
            max_arenas=self._max_arenas,
            spans=spans,
            forks=tuple(f for f in self._forks if f.step < spans[f.config_id][1]),
            brought=tuple(self._promises.brought),
        )
        enough = least_arenas(plan, self._lookahead) or 0
        return replace(plan, max_arenas=max(plan.max_arenas, enough))
