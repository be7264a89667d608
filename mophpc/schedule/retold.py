"""A plan whose configs end at different times, walked again, with its copies of states.

What follows a copy is told when the copy can be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mophpc.schedule.orders import END, Orders, Promises

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mophpc.schedule.plan import Fork, Plan, Visit


class Retold:
    """Tells each rank its list, as far as no visit in it waits for a copy.

    A copy is made when its source, and the config that gets it, have made all visits before it.
    Both make no other visit until then; so every list is told to its end if the plan could be
    walked once.

    Args:
        plan: that is walked again.
        ends: by config, the step before which it ended at the latest; all steps by default.
    """

    def __init__(self, plan: Plan, ends: Sequence[int] | None = None) -> None:
        self._plan = plan
        self._promises = Promises(plan.num_configs, plan.num_ranks, plan.num_steps)
        for config_id, end in enumerate(ends or ()):
            self._promises.ends_at(config_id, end)
        spans = plan.all_spans
        self._begin = [begin for begin, _ in spans]
        self._end = [end for _, end in spans]
        self._made = list(self._begin)
        self._next = list(self._begin)  # by config, the first step that is not told
        self._is_open = [begin < end for begin, end in spans]
        self._told = [0] * plan.num_ranks
        self._forks = list(plan.forks)
        self.is_over = False
        """Whether the ranks have been told that nothing follows."""

    def observe(self, config_id: int, step: int) -> None:
        """Take a visit that was made; of one config they may be heard of in any order."""
        self._made[config_id] = max(self._made[config_id], step + 1)

    def tell(self) -> list[Orders] | None:
        """Make the copies that can be made; return what to tell each rank, None for nothing."""
        ready = self._ready()
        self._promises.copy([(fork.config_id, fork.source) for fork in ready])
        self._forks = [fork for fork in self._forks if fork not in ready]
        visits = self._able()
        ended, was_over = self._close(), self.is_over
        lists = self._plan.visits_by_rank
        told = all(told == len(own) for told, own in zip(self._told, lists, strict=True))
        self.is_over = told and not any(self._is_open)
        # Ranks of a plan without visits wait for the word, too.
        if not (visits or ready or ended or self.is_over) or was_over:
            return None
        return self._promises.extend(visits, self._plan.max_arenas, is_last=self.is_over)

    def _able(self) -> list[Visit]:
        """Return the visits that can be told now, so that each rank and config has its order."""
        visits: list[Visit] = []
        count = -1
        while count < len(visits):
            count = len(visits)
            for rank, own in enumerate(self._plan.visits_by_rank):
                while self._told[rank] < len(own) and self._is_able(own[self._told[rank]]):
                    visit = own[self._told[rank]]
                    visits.append(visit)
                    self._next[visit.config_id] = visit.step + 1
                    self._told[rank] += 1
        return visits

    def _is_able(self, visit: Visit) -> bool:
        return self._next[visit.config_id] == visit.step and not any(
            visit.config_id in (fork.config_id, fork.source) and visit.step >= fork.step
            for fork in self._forks
        )

    def _close(self) -> bool:
        """Let configs end that have made all, and of which no copy is to be made any more."""
        wanted = [config_id for fork in self._forks for config_id in (fork.source, fork.config_id)]
        closed = False
        for config_id, is_open in enumerate(self._is_open):
            if is_open and self._made[config_id] == self._end[config_id]:
                if config_id in wanted:
                    continue
                if not self._promises.is_finished(config_id):
                    self._promises.close(config_id, END)
                self._is_open[config_id] = False
                closed = True
        return closed

    def _ready(self) -> list[Fork]:
        ready = [
            fork
            for fork in self._forks
            if self._made[fork.source] == fork.step == self._made[fork.config_id]
            and self._begin[fork.source] < fork.step
        ]
        while True:
            # A state that others still have to be copied from is not replaced.
            wanted = {(f.source, f.step) for f in self._forks if f not in ready}
            able = [fork for fork in ready if (fork.config_id, fork.step) not in wanted]
            if len(able) == len(ready):
                return able
            ready = able
