"""What ranks have been told and have not made yet, and when they will have: estimates only."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mophpc.schedule.costs import Costs, Observed
    from mophpc.schedule.plan import Visit

OVERDUE = 0.25
"""A visit that takes longer than thought is expected to take this share of itself longer still."""


class Underway:
    """Follows the visits that were promised."""

    def __init__(self, num_configs: int, num_ranks: int) -> None:
        self.made = [0] * num_ranks
        """Visits that each rank has made."""
        self._rank_free_s = [0.0] * num_ranks
        self._config_end_s = [0.0] * num_configs
        self._config_at = [-1] * num_configs
        self._told = [0] * num_ranks
        self._pending: list[tuple[Visit, int]] = []  # with the place in the rank's list

    def begin(self, now_s: float) -> None:
        """Say when the first visit can start."""
        self._rank_free_s = [now_s] * len(self._rank_free_s)
        self._config_end_s = [now_s] * len(self._config_end_s)

    def add(self, now_s: float) -> None:
        """Take one more config."""
        self._config_end_s.append(now_s)
        self._config_at.append(-1)

    def copy(self, config_id: int, source: int) -> None:
        """Let a config stand where another one does."""
        self._config_end_s[config_id] = self._config_end_s[source]
        self._config_at[config_id] = self._config_at[source]

    def promise(self, visits: Iterable[Visit]) -> None:
        """Take visits that ranks are told, each rank's in order."""
        for visit in visits:
            self._pending.append((visit, self._told[visit.rank]))
            self._told[visit.rank] += 1

    def observe(self, seen: Observed) -> None:
        """Take a visit that was made."""
        self.made[seen.rank] += 1
        end_s = seen.end_s + seen.eval_s
        self._rank_free_s[seen.rank] = end_s
        self._config_end_s[seen.config_id] = end_s
        self._config_at[seen.config_id] = seen.rank

    def left(self, rank: int) -> int:
        """Return how many visits a rank was told and has not made."""
        return self._told[rank] - self.made[rank]

    def expected(
        self, costs: Costs, num_shards: int, now_s: float
    ) -> tuple[list[float], list[float]]:
        """Return when each rank and each config will have made all that is promised."""
        free, end, at = list(self._rank_free_s), list(self._config_end_s), list(self._config_at)
        visit_s, hop_s, eval_s = costs.visit_s.tolist(), costs.hop_s.tolist(), costs.eval_s.tolist()
        self._pending = [(v, place) for v, place in self._pending if place >= self.made[v.rank]]
        for visit, _ in self._pending:
            config_id, rank = visit.config_id, visit.rank
            ready = end[config_id]
            if at[config_id] not in (-1, rank):
                ready += hop_s[config_id]
            start = max(free[rank], ready)
            done = start + visit_s[config_id][visit.shard]
            if done < now_s:
                done = now_s + OVERDUE * (now_s - start)
            if (visit.step + 1) % num_shards == 0:
                done += eval_s[config_id]
            free[rank] = end[config_id] = done
            at[config_id] = rank
        return free, end
