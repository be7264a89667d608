"""What is to be made first where a run goes on that was cut off, on as many ranks or others.

Each config stands at some visit, the newest whose state is kept, and had been promised further
ones. These are made again in the same order of shards, so that the config learns the same; but on
the ranks that own the shards now, and beside other configs than before. A config may then stand
between shards of one rank; those of such ranks follow, until what is left of its epoch is stays.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mophpc.errors import PlanError
from mophpc.schedule.plan import Visit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mophpc.schedule.costs import Costs
    from mophpc.schedule.plan import Fork, Plan


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a config stands when a run goes on."""

    step: int = 0
    """A file has its state, ready for this visit; 0: it has not begun."""
    promised: tuple[int, ...] = ()
    """Shards of the visits from `step` on that ranks were told of, in order, maybe over epochs."""
    done: tuple[int, ...] = ()
    """Shards of the current epoch that it visited before `step`."""
    end: int | None = None
    """It makes no visit from this step on; by default the plan's last step is its last."""
    source: int | None = None
    """The config whose file has the state, if it is another's that it was to get a copy of."""
    is_over: bool = False
    """It makes what is promised and no more, since somebody ended it or it diverged."""

    def end_in(self, plan: Plan) -> int:
        """Return the step from which on it makes no visit."""
        return plan.num_steps if self.end is None else self.end

    def promised_in(self, plan: Plan) -> tuple[int, ...]:
        """Return the shards that are promised, up to where it ends."""
        return self.promised[: max(0, self.end_in(plan) - self.step)]


def check_standings(standings: Sequence[Standing], plan: Plan, forks: Sequence[Fork] = ()) -> None:
    """Check that configs can stand so, with copies still to be made.

    Raises:
        PlanError: there is not one standing for each config of the plan, or one is not possible.
    """
    if len(standings) != plan.num_configs:
        raise PlanError(f"{len(standings)} standings are given for {plan.num_configs} configs")
    for config_id, own in enumerate(standings):
        if (why := _wrong(own, plan)) is not None:
            raise PlanError(f"config {config_id} cannot go on from step {own.step}: {why}")
    then = [own.step + len(own.promised_in(plan)) for own in standings]
    for fork in forks:
        for config_id in (fork.config_id, fork.source):
            known = 0 <= config_id < len(standings)
            if not (known and standings[config_id].step <= fork.step <= then[config_id]):
                raise PlanError(f"config {config_id} does not come to the copy at step {fork.step}")
        if fork.step % plan.num_shards or fork.step == 0:
            raise PlanError(f"a copy at step {fork.step} is not made between epochs")


def _wrong(own: Standing, plan: Plan) -> str | None:
    num_shards, end = plan.num_shards, own.end_in(plan)
    if own.step < 0 or end < 0:
        return f"it ends before step {end}"
    if len(own.done) != own.step % num_shards:
        return f"{len(own.done)} shards of its epoch are done; {own.step % num_shards} are due"
    if any(not 0 <= shard < num_shards for shard in own.done + own.promised):
        return f"shards are 0 to {num_shards - 1}; done: {own.done}, promised: {own.promised}"
    route, first = own.done + own.promised, own.step - len(own.done)
    for begin in range(0, len(route), num_shards):
        epoch = route[begin : begin + num_shards]
        if len(set(epoch)) != len(epoch):
            return f"epoch {(first + begin) // num_shards} visits a shard twice: {epoch}"
    if end > own.step + len(own.promised) and end % num_shards and not own.is_over:
        return f"its end, step {end}, is in the middle of an epoch and not promised"
    return None


def shards_left(standing: Standing, visits: Iterable[Visit], num_shards: int) -> set[int]:
    """Return the shards that a config has left of its epoch after its further visits."""
    seen = set(standing.done)
    for visit in visits:
        seen.add(visit.shard)
        if len(seen) == num_shards:
            seen.clear()
    return set(range(num_shards)) - seen


class Owed:
    """What configs are to do again before anything else, as far as it is not begun.

    No visit after a copy is told before the copy is made, neither of the config that gets it nor of
    the source: as when they were first made.

    Args:
        visits: each rank's and each config's in order.
        forks: copies among them.
    """

    def __init__(self, visits: Sequence[Visit] = (), forks: Sequence[Fork] = ()) -> None:
        self._visits = list(visits)
        self._forks = list(forks)
        self.configs: set[int] = set()
        """Those that have something to do of this."""
        self._steps: dict[int, int] = {}
        self._look()

    def _look(self) -> None:
        self._steps = {visit.config_id: visit.step + 1 for visit in self._visits}
        self.configs = {c for fork in self._forks for c in (fork.config_id, fork.source)}
        self.configs.update(self._steps)

    def __bool__(self) -> bool:
        return bool(self._visits or self._forks)

    def step_of(self, config_id: int) -> int:
        """Return the step after all that a config is to do of this; 0 if it is nothing."""
        return self._steps.get(config_id, 0)

    def take_forks(self, made: Sequence[int]) -> list[Fork]:
        """Return, once, copies that can be made together, all those that were not before.

        Args:
            made: by config, the first step that it has not made.
        """
        ready = [f for f in self._forks if made[f.source] == f.step == made[f.config_id]]
        while True:
            # A state that others still have to be copied from is not replaced.
            wanted = {(f.source, f.step) for f in self._forks if f not in ready}
            able = [fork for fork in ready if (fork.config_id, fork.step) not in wanted]
            if len(able) == len(ready):
                self._forks = [fork for fork in self._forks if fork not in able]
                self._look()
                return able
            ready = able

    def take_visits(self) -> list[Visit]:
        """Return, once, the visits that wait for no copy."""
        from_step: dict[int, int] = {}
        for fork in self._forks:
            for config_id in (fork.config_id, fork.source):
                from_step[config_id] = min(fork.step, from_step.get(config_id, fork.step))
        able: list[Visit] = []
        later: list[Visit] = []
        for visit in self._visits:
            waits = visit.step >= from_step.get(visit.config_id, visit.step + 1)
            (later if waits else able).append(visit)
        self._visits = later
        self._look()
        return able


def catch_up(
    standings: Sequence[Standing],
    plan: Plan,
    costs: Costs,
    now_s: float = 0.0,
    forks: Sequence[Fork] = (),
) -> list[Visit]:
    """Return the visits to be promised at once, each rank's and each config's in order.

    Afterwards every config that goes on stands at the end of an epoch, or has all or none of each
    rank's shards left.

    Args:
        standings: by config.
        plan: its sizes and owners; its visits are not looked at.
        costs: what configs are thought to cost.
        now_s: when the first can start.
        forks: copies that are to be made again on the way, since no state from after them is kept.
            A config that gets one stands before it, or at it and has no need of a state.

    Raises:
        PlanError: there is not one standing for each config of the plan, or one is not possible.
    """
    check_standings(standings, plan, forks)
    return _Scheduling(standings, plan, costs, now_s, forks).run()


@dataclass(slots=True)
class _Moving:
    """A config that catches up."""

    step: int
    seen: set[int]
    """Shards of the current epoch."""
    promised: deque[int]
    is_over: bool
    """It makes what is promised and no more."""
    at: int = -1
    """The rank that has its state; -1: any, since a file has it."""
    work_s: float = 0.0
    """Of all that it has to do, also later."""
    rest: dict[int, list[int]] = field(default_factory=dict)
    """By rank: the shards that follow what was promised, in any order of ranks."""


class _Scheduling:
    """List scheduling: a rank that is free takes the config, of those there, with most to do."""

    def __init__(
        self,
        standings: Sequence[Standing],
        plan: Plan,
        costs: Costs,
        now_s: float,
        forks: Sequence[Fork],
    ) -> None:
        self._plan = plan
        self._shards = [plan.shards_of(rank) for rank in range(plan.num_ranks)]
        self._visit_s, self._hop_s = costs.visit_s.tolist(), costs.hop_s.tolist()
        self._eval_s = costs.eval_s.tolist()
        self._configs = [
            _Moving(
                step=own.step,
                seen=set(own.done),
                promised=deque(own.promised_in(plan)),
                is_over=own.is_over or own.step + len(own.promised_in(plan)) >= own.end_in(plan),
            )
            for own in standings
        ]
        for config_id, standing in enumerate(standings):
            self._configs[config_id].work_s = self._work_s(config_id, standing)
        self._free_s = [now_s] * plan.num_ranks
        self._events: list[tuple[float, int]] = []  # (time, rank): it may be able to start a visit
        # Of each rank: (time, config, step) that may come, (-work, config, step) that are there.
        self._coming: list[list[tuple[float, int, int]]] = [[] for _ in self._shards]
        self._there: list[list[tuple[float, int, int]]] = [[] for _ in self._shards]
        self._now_s = now_s
        self._sources = {(fork.config_id, fork.step): fork.source for fork in forks}
        self._waiting: dict[tuple[int, int], list[int]] = {}  # by (source, step) of a copy

    def _work_s(self, config_id: int, own: Standing) -> float:
        num_shards = self._plan.num_shards
        promised = own.promised_in(self._plan)
        work_s = sum(self._visit_s[config_id][shard] for shard in promised)
        after = own.step + len(promised)
        if not own.is_over:
            mean_s = sum(self._visit_s[config_id]) / num_shards
            work_s += max(0, own.end_in(self._plan) - after) * mean_s
        epochs = max(after, 0 if own.is_over else own.end_in(self._plan)) / num_shards
        return float(work_s + max(0.0, epochs - own.step / num_shards) * self._eval_s[config_id])

    def run(self) -> list[Visit]:
        visits = []
        for config_id in range(len(self._configs)):
            self._offer(config_id, self._now_s)
        while self._events:
            now_s, rank = heapq.heappop(self._events)
            if self._free_s[rank] > now_s:
                continue  # looked at again then
            coming, there = self._coming[rank], self._there[rank]
            while coming and coming[0][0] <= now_s:
                _, config_id, step = heapq.heappop(coming)
                heapq.heappush(there, (-self._configs[config_id].work_s, config_id, step))
            while there:
                _, config_id, step = heapq.heappop(there)
                if self._configs[config_id].step == step:  # else another rank took it
                    visits.append(self._make(config_id, rank, now_s))
                    break
        return visits

    def _offer(self, config_id: int, ready_s: float) -> None:
        """Let the ranks know that a config can make its next visit."""
        one = self._configs[config_id]
        source = self._sources.pop((config_id, one.step), None)
        if source is not None:
            one.at = self._configs[source].at
            if self._configs[source].step < one.step:
                self._waiting.setdefault((source, one.step), []).append(config_id)
                return
        for rank in self._ranks(one):
            at_s = ready_s if one.at in (-1, rank) else ready_s + self._hop_s[config_id]
            heapq.heappush(self._coming[rank], (at_s, config_id, one.step))
            heapq.heappush(self._events, (max(at_s, self._free_s[rank]), rank))

    def _ranks(self, one: _Moving) -> tuple[int, ...]:
        if one.promised:
            return (self._plan.owners[one.promised[0]],)
        if not one.rest and not one.is_over:
            for rank, own in enumerate(self._shards):
                left = [shard for shard in own if shard not in one.seen]
                if 0 < len(left) < len(own):
                    # An odd epoch meets the shards of a rank backwards, as it does elsewhere.
                    is_odd = one.step // self._plan.num_shards % 2
                    one.rest[rank] = left[::-1] if is_odd else left
        return tuple(one.rest)

    def _make(self, config_id: int, rank: int, now_s: float) -> Visit:
        one, num_shards = self._configs[config_id], self._plan.num_shards
        if one.promised:
            shard = one.promised.popleft()
        else:
            shard = one.rest[rank].pop(0)
            if not one.rest[rank]:
                del one.rest[rank]
        took_s = self._visit_s[config_id][shard]
        end_s = now_s + took_s
        visit = Visit(config_id, one.step // num_shards, shard, rank, one.step, now_s, end_s)
        one.step, one.at = one.step + 1, rank
        one.seen.add(shard)
        if len(one.seen) == num_shards:
            one.seen.clear()
            took_s += self._eval_s[config_id]
            end_s += self._eval_s[config_id]
        one.work_s -= took_s
        self._free_s[rank] = end_s
        heapq.heappush(self._events, (end_s, rank))
        self._offer(config_id, end_s)
        for copy in self._waiting.pop((config_id, one.step), ()):
            self._configs[copy].at = rank
            self._offer(copy, end_s)
        return visit
