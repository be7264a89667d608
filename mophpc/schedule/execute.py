"""What a plan does when visits take other times than it was made for: a simulation of the ranks.

Ranks make their visits in the order that they were told, and renewals are those of a real run:
`Renewal` decides when and what, and a new part reaches the ranks `delay_s` after it was begun.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mophpc.errors import PlanError
from mophpc.schedule.costs import Observed
from mophpc.schedule.orders import Orders, whole
from mophpc.schedule.renewal import Renewal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mophpc.schedule.costs import Costs, FloatArray
    from mophpc.schedule.plan import Plan, Stop


@dataclass(frozen=True, slots=True, eq=False)
class Reality:
    """What visits, hops and evaluations really take, in seconds."""

    visit_s: FloatArray
    """Shape (epochs, configs, shards)."""
    hop_s: FloatArray
    """Shape (configs,)."""
    eval_s: FloatArray
    """Shape (configs,)."""

    @classmethod
    def draw(
        cls, costs: Costs, num_epochs: int, *, noise: float, jitter: float, seed: int
    ) -> Reality:
        """Return times that differ from `costs` by lognormal factors.

        Args:
            costs: what is believed.
            num_epochs: epochs.
            noise: standard deviation of the logarithm of each config's factor.
            jitter: the same, of each single visit's factor.
            seed: of the draw.
        """
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1])))
        num_configs, num_shards = costs.visit_s.shape
        factor = np.exp(noise * generator.standard_normal(num_configs))
        shape = (num_epochs, num_configs, num_shards)
        visit_s = (
            costs.visit_s * factor[:, None] * np.exp(jitter * generator.standard_normal(shape))
        )
        return cls(visit_s, costs.hop_s, costs.eval_s * factor)

    def bound(self, owners: Sequence[int], num_ranks: int) -> float:
        """Return the seconds that no schedule can beat."""
        by_config = self.visit_s.sum(axis=(0, 2)) + len(self.visit_s) * self.eval_s
        load = np.bincount(owners, weights=self.visit_s.sum(axis=(0, 1)), minlength=num_ranks)
        mean = (load.sum() + len(self.visit_s) * self.eval_s.sum()) / num_ranks
        return float(max(by_config.max(), load.max(), mean))


@dataclass(frozen=True, slots=True)
class Executed:
    """How an execution went."""

    makespan_s: float
    renewals: int
    predicted_s: float
    """The makespan as the plan had it when half of the visits were made."""


def execute(
    plan: Plan,
    costs: Costs,
    reality: Reality,
    *,
    renew: bool,
    seed: int = 0,
    delay_s: float = 0.0,
) -> Executed:
    """Execute a plan in a simulated reality.

    Args:
        plan: with predicted times, where it is renewed.
        costs: what it was made from.
        reality: what takes how long.
        renew: whether the plan is renewed on the way.
        seed: of the renewals.
        delay_s: from the beginning of a renewal to when the ranks have it.

    Raises:
        PlanError: ranks wait for each other for ever.
    """
    return _Execution(plan, costs, reality, renew, seed, delay_s).run()


_END, _ARRIVE, _TOLD, _TICK = range(4)


class _Execution:
    def __init__(
        self, plan: Plan, costs: Costs, reality: Reality, renew: bool, seed: int, delay_s: float
    ) -> None:
        self._plan = plan
        self._reality = reality
        self._delay_s = delay_s
        self._renewal = Renewal(plan, costs, seed=seed) if renew else None
        self._renewing = False
        self._stops: list[list[Stop]] = [[] for _ in range(plan.num_ranks)]
        self._place = [0] * plan.num_ranks
        self._busy = [False] * plan.num_ranks
        self._here = [(-1, -1)] * plan.num_configs  # (rank, step) that each config is ready for
        self._open: dict[int, int] = {}  # config that has nowhere to go yet: its rank
        self._dest: dict[tuple[int, int], int] = {}  # (config, step): where it goes
        self._events: list[tuple[float, int, int, tuple[int, ...]]] = []
        self._number = 0
        self._orders: list[list[Orders]] = []
        self._made = 0
        self._predicted_s = 0.0

    def run(self) -> Executed:
        plan, now = self._plan, 0.0
        if self._renewal is None:
            self._tell([whole(plan, rank) for rank in range(plan.num_ranks)], now)
        else:
            self._tell(self._renewal.begin(), now)
            self._tick()
        while self._events:
            now, _, kind, what = heapq.heappop(self._events)
            self._happen(kind, what, now)
            if self._made == plan.num_visits:
                break
        if self._made != plan.num_visits:
            raise PlanError("the plan cannot be executed: ranks wait for each other for ever")
        count = self._renewal.count if self._renewal else 0
        return Executed(now, count, self._predicted_s)

    def _happen(self, kind: int, what: tuple[int, ...], now: float) -> None:
        if kind == _END:
            self._end(what[0], now)
        elif kind == _ARRIVE:
            config_id, step, rank = what
            self._here[config_id] = (rank, step)
            self._try(rank, now)
        elif kind == _TOLD:
            self._renewing = False
            self._tell(self._orders.pop(0), now)
            self._tick()
        self._renew(now)

    def _push(self, at: float, kind: int, *what: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, kind, what))

    def _tick(self) -> None:
        if self._renewal is not None and not self._renewal.is_over:
            self._push(np.nextafter(self._renewal.patience_end_s, np.inf), _TICK)

    def _renew(self, now: float) -> None:
        if self._renewal is None or self._renewing or not self._renewal.due(now):
            return
        solution = self._renewal.snapshot(now).solve()
        self._renewing = True
        self._renewal.took(solution.estimated_s)
        self._orders.append(self._renewal.adopt(solution, now + self._delay_s))
        if 2 * self._made >= self._plan.num_visits and self._predicted_s == 0.0:
            self._predicted_s = solution.makespan_s
        self._push(now + self._delay_s, _TOLD)

    def _tell(self, orders: list[Orders], now: float) -> None:
        for rank, own in enumerate(orders):
            self._stops[rank] += own.stops
            for link in own.links:
                self._dest[link.config_id, link.step] = link.dest
                if self._open.pop(link.config_id, None) is not None:
                    self._go(link.config_id, link.step, rank, link.dest, now)
        for rank in range(len(orders)):
            self._try(rank, now)

    def _try(self, rank: int, now: float) -> None:
        """Let a rank start its next visit if it can."""
        place, stops = self._place[rank], self._stops[rank]
        if self._busy[rank] or place == len(stops):
            return
        visit = stops[place].visit
        if visit.step > 0 and self._here[visit.config_id] != (rank, visit.step):
            return
        self._busy[rank] = True
        took = float(self._reality.visit_s[visit.epoch, visit.config_id, visit.shard])
        if (visit.step + 1) % self._plan.num_shards == 0:
            took += float(self._reality.eval_s[visit.config_id])
        self._push(now + took, _END, rank)

    def _end(self, rank: int, now: float) -> None:
        stop = self._stops[rank][self._place[rank]]
        visit = stop.visit
        self._busy[rank] = False
        self._place[rank] += 1
        self._made += 1
        if self._renewal is not None:
            self._renewal.observe(self._observed(stop, now))
        step = visit.step + 1
        dest = self._dest.get((visit.config_id, step)) if stop.is_open else rank
        if stop.send is not None:
            dest = stop.send.dest
        if dest is None:
            self._open[visit.config_id] = rank
        elif not stop.is_last:
            self._go(visit.config_id, step, rank, dest, now)
        self._try(rank, now)

    def _observed(self, stop: Stop, now: float) -> Observed:
        visit = stop.visit
        took = float(self._reality.visit_s[visit.epoch, visit.config_id, visit.shard])
        last = (visit.step + 1) % self._plan.num_shards == 0
        eval_s = float(self._reality.eval_s[visit.config_id]) if last else 0.0
        end = now - eval_s
        return Observed(
            visit.config_id, visit.shard, visit.rank, visit.step, end - took, end, eval_s
        )

    def _go(self, config_id: int, step: int, rank: int, dest: int, now: float) -> None:
        if dest == rank:
            self._here[config_id] = (dest, step)
            self._try(rank, now)
        else:
            hop_s = float(self._reality.hop_s[config_id])
            self._push(now + hop_s, _ARRIVE, config_id, step, dest)
