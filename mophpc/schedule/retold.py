"""A plan with copies of states, walked again: what follows a copy is told when it can be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mophpc.schedule.orders import Orders, Promises

if TYPE_CHECKING:
    from mophpc.schedule.plan import Fork, Plan, Visit


class Retold:
    """Tells each rank its list, as far as no visit in it waits for a copy.

    A copy is made when its source, and the config that gets it, have made all visits before it.
    Both make no other visit until then; so every list is told to its end if the plan could be
    walked once.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._promises = Promises(plan.num_configs, plan.num_ranks, plan.num_steps)
        self._made = [begin for begin, _ in plan.all_spans]
        for config_id, (_, end) in enumerate(plan.all_spans):
            self._promises.ends_at(config_id, end)
        self._told = [0] * plan.num_ranks
        self._forks = list(plan.forks)

    @property
    def is_over(self) -> bool:
        """Whether the ranks know their whole lists."""
        lists = self._plan.visits_by_rank
        return all(told == len(own) for told, own in zip(self._told, lists, strict=True))

    def observe(self, config_id: int, step: int) -> None:
        """Take a visit that was made."""
        self._made[config_id] = step + 1

    def tell(self) -> list[Orders] | None:
        """Make the copies that can be made; return what to tell each rank, None for nothing."""
        ready = self._ready()
        self._promises.copy([(fork.config_id, fork.source) for fork in ready])
        self._forks = [fork for fork in self._forks if fork not in ready]
        visits: list[Visit] = []
        for rank, own in enumerate(self._plan.visits_by_rank):
            while self._told[rank] < len(own) and not self._is_held(own[self._told[rank]]):
                visits.append(own[self._told[rank]])
                self._told[rank] += 1
        if not visits and not ready:
            return None
        visits.sort(key=lambda visit: visit.step)  # stable: each rank's stay in order
        return self._promises.extend(visits, self._plan.max_arenas, is_last=self.is_over)

    def _ready(self) -> list[Fork]:
        begins = [begin for begin, _ in self._plan.all_spans]
        ready = [
            fork
            for fork in self._forks
            if self._made[fork.source] == fork.step == self._made[fork.config_id]
            and (begins[fork.source] < fork.step)
        ]
        while True:
            # A state that others still have to be copied from is not replaced.
            wanted = {(f.source, f.step) for f in self._forks if f not in ready}
            able = [fork for fork in ready if (fork.config_id, fork.step) not in wanted]
            if len(able) == len(ready):
                return able
            ready = able

    def _is_held(self, visit: Visit) -> bool:
        return any(
            visit.config_id in (fork.config_id, fork.source) and visit.step >= fork.step
            for fork in self._forks
        )
