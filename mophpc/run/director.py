"""Rank 0's third role where configs are decided on: it asks a method and people, and plans.

The method thinks in a thread of its own, since it may be a user's or a sampler that takes seconds.
What it has decided is taken up, and the ranks are told, by the thread that talks to them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mophpc.dimensions import Value
from mophpc.experiment import Objective
from mophpc.run.ledger import Ledger
from mophpc.schedule.costs import Costs
from mophpc.schedule.orders import Orders
from mophpc.schedule.plan import Plan
from mophpc.schedule.pool import Pool
from mophpc.schedule.underway import Observed
from mophpc.search.method import Continue, Copy, Decision, Method, Result, Start, Stop

Record = dict[str, Any]

LOOK_S = 0.005
"""Between two looks at whether a rank runs out of visits, where nothing was heard of."""


@dataclass(slots=True)
class _Thought:
    """What the method makes of some results."""

    decisions: list[Sequence[Decision]] = field(default_factory=list)
    """Of each result that something followed from."""
    starts: Sequence[Start] = ()
    error: BaseException | None = None
    is_done: bool = False


@dataclass(slots=True)
class Cut:
    """A config that waits before its goal, since somebody asked for that."""

    goal: int
    """Epochs that it was to make."""
    then: int
    stops: bool = False
    clones: list[tuple[int, Mapping[str, Value], int]] = field(default_factory=list)
    """Copies to be made of it: (config, hyperparameters, epochs)."""


class Director:
    """Takes records of ranks, asks the method, and promises visits.

    Args:
        pool: plans what is decided.
        ledger: of the configs.
        epochs: that a config makes at most.
        objective: what results are told by.
        tell: takes what each rank is told next.
        report: takes a record as if a rank had sent it, of a config that no rank has.
        now: seconds since the run's start.
        method: decides; None where people alone do.
        starts: with what the method began.
        in_flight: configs in training at a time that keep all ranks busy.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        *,
        epochs: int,
        num_shards: int,
        objective: Objective,
        tell: Callable[[list[Orders]], None],
        report: Callable[[Record], None],
        now: Callable[[], float],
        method: Method | None = None,
        starts: Sequence[Start] = (),
        in_flight: int = 0,
    ) -> None:
        self.pool = pool
        self.ledger = ledger
        self.epochs = epochs
        self.predictions: list[dict[str, float]] = []
        """Nothing is predicted here."""
        self.cuts: dict[int, Cut] = {}
        """By config_id."""
        self._num_shards = num_shards
        self._objective = objective
        self._tell = tell
        self._report = report
        self._now = now
        self._method = method
        self._in_flight = in_flight
        self._ids: list[int] = []  # config_id of each config that the method has started
        self._numbers: dict[int, int] = {}  # and the other way round
        self._metrics: dict[tuple[int, int], Mapping[str, float]] = {}
        self._inbox: list[Result] = []
        self._thought: _Thought | None = None
        self._is_fresh = True
        self._look_s = 0.0
        self._is_closed = False
        for config_id, start in enumerate(starts):
            self._adopt(config_id, start)

    def begin(self) -> None:
        """Tell every rank its first visits."""
        self.pool.begin(self._now())
        self.poll()

    @property
    def plan(self) -> Plan:
        """All that was promised so far."""
        return self.pool.plan()

    @property
    def learned(self) -> Costs | None:
        """What every config costs, or has cost; None before each has been observed."""
        return self.pool.learned

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be decided."""
        return self._is_closed

    def left_s(self) -> float:
        """Return the seconds until all that is decided has been made, at best."""
        return max(0.0, self.pool.makespan_s - self._now())

    def observe(self, record: Record) -> None:
        """Take a record of a rank."""
        self._is_fresh = True
        kind = record["kind"]
        config_id = record.get("config", -1)
        if kind in ("visit", "skip"):
            self.pool.observe(_observed(record))
            if kind == "visit" and record["diverged"]:
                self.is_over(config_id)
            elif record["step"] + 1 == self.pool.members[config_id].goal:
                self._reached(config_id)
        elif kind == "epoch":
            self._metrics[config_id, record["epoch"]] = record["metrics"]
        elif kind == "layout":
            self.pool.lay_out(config_id)
            self.ledger.tell({"config_id": config_id, "probe": record["probe"]})
        elif kind == "final" and record["status"] == "failed":
            self.is_over(config_id)

    def poll(self) -> None:
        """Take up what was decided, and tell the ranks what follows; never waits.

        Raises:
            ExperimentError: the method decided what cannot be.
            PlanError: what is to be promised breaks an invariant (a bug in the planner).
        """
        self._think()
        if not self._is_closed and self._has_nothing_left():
            self._close()
        now_s = self._now()
        if not self._is_fresh and now_s < self._look_s:
            return
        self._is_fresh, self._look_s = False, now_s + LOOK_S
        if self.pool.due(now_s):
            begin_s = time.perf_counter()
            orders = self.pool.promise(now_s, self.ledger.take_news())
            self.pool.took(time.perf_counter() - begin_s)
            self._tell(orders)

    # What configs come to.

    def is_over(self, config_id: int) -> None:
        """A config has diverged, failed, or was stopped: let it end, and say so to the method."""
        member = self.pool.members[config_id]
        if member.is_over:
            return
        epochs = member.made // self._num_shards
        self.pool.end(config_id)
        cut = self.cuts.pop(config_id, None)
        for clone, _, _ in cut.clones if cut else ():
            self.stop_now(clone)  # what it was to be a copy of is gone
        if config_id in self._numbers:
            score = math.inf if cut is None or not cut.stops else self._score(config_id, epochs)
            self._inbox.append(self._result(config_id, epochs, score, is_over=True))

    def stop_now(self, config_id: int, **facts: Any) -> None:
        """Let a config end that waits, or has not begun."""
        is_new = self.pool.rank_of(config_id) < 0
        self.ledger.note("stop", config_id, epochs=self.epochs_of(config_id), **facts)
        self.pool.end(config_id)
        if is_new:
            final = {"status": "stopped", "steps": 0, "state_sha256": ""}
            self._report({"kind": "final", "config": config_id, **final})

    def stop_waiting(self, config_id: int) -> None:
        """Stop a config that waits or has not begun, since people want it; tell the method."""
        self.stop_now(config_id, by="people")
        if config_id in self._numbers:
            epochs = self.epochs_of(config_id)
            score = self._score(config_id, epochs)
            self._inbox.append(self._result(config_id, epochs, score, is_over=True))

    def copy_now(self, clones: Sequence[tuple[int, Mapping[str, Value], int]], source: int) -> None:
        """Make copies of a config that waits: (config, hyperparameters, epochs) of each."""
        self._copy(clones, source)

    def know(self, metrics: Mapping[tuple[int, int], Mapping[str, float]]) -> None:
        """Take over the metrics by (config, epoch) that were recorded before."""
        self._metrics |= metrics

    def epochs_of(self, config_id: int) -> int:
        """Return the epochs that a config has made."""
        return self.pool.members[config_id].made // self._num_shards

    def _reached(self, config_id: int) -> None:
        """A config has come to its goal, or to where somebody wanted it to wait."""
        epochs = self.epochs_of(config_id)
        cut = self.cuts.get(config_id)
        if cut is not None:
            self._copy(cut.clones, config_id)
            if cut.stops:
                self.ledger.note("stop", config_id, epochs=epochs, by="people")
                self.is_over(config_id)
                return
            del self.cuts[config_id]
            if cut.goal > epochs:
                self.pool.extend(config_id, cut.goal, cut.then)
                return
        is_over = self.pool.is_finished(config_id)
        if is_over:
            self.pool.end(config_id)
        if config_id in self._numbers:
            score = self._score(config_id, epochs)
            self._inbox.append(self._result(config_id, epochs, score, is_over=is_over))
        elif not is_over:
            self.stop_now(config_id)

    def _copy(self, clones: Sequence[tuple[int, Mapping[str, Value], int]], source: int) -> None:
        """Make copies of a config that waits."""
        if not clones:
            return
        forks = self.pool.copy([(clone, source) for clone, _, _ in clones])
        self.ledger.copy(forks, [values for _, values, _ in clones], self._num_shards)
        for clone, _, epochs in clones:
            self.pool.extend(clone, epochs)
            self.ledger.note("copy", clone, epochs=epochs, source=source, by="people")

    def _result(self, config_id: int, epochs: int, score: float, *, is_over: bool) -> Result:
        metrics = self._metrics.get((config_id, epochs - 1), {})
        return Result(self._numbers[config_id], epochs, score, metrics, is_over)

    def _score(self, config_id: int, epochs: int) -> float:
        """Return the objective after a config's last epoch, less for better, infinite for none."""
        metrics = self._metrics.get((config_id, epochs - 1), {})
        value = metrics.get(self._objective.metric, math.nan)
        if not math.isfinite(value):
            return math.inf
        return -value if self._objective.maximise else value

    # What the method decides.

    def _think(self) -> None:
        """Take up a thought that is done, and begin the next where there are results."""
        if self._thought is not None and self._thought.is_done:
            thought, self._thought = self._thought, None
            if thought.error is not None:
                raise thought.error
            self._apply(thought)
        if self._thought is None and self._inbox and self._method is not None:
            inbox, self._inbox = self._inbox, []
            self._thought = thought = _Thought()
            arguments = (thought, self._method, inbox, self._room())
            threading.Thread(target=_make_up, args=arguments, daemon=True).start()

    def _room(self) -> int:
        members = self.pool.members
        training = sum(not members[c].is_over and not self.pool.waits(c) for c in self._ids)
        return self._in_flight - training

    def _apply(self, thought: _Thought) -> None:
        self._is_fresh = True
        for decisions in thought.decisions:
            copies = [one for one in decisions if isinstance(one, Copy)]
            self._apply_copies(copies)
            for one in decisions:
                config_id = self._ids[one.config_id]
                if self.pool.members[config_id].is_over:
                    continue  # somebody stopped it while the method was thinking
                if isinstance(one, Stop):
                    self.stop_now(config_id)
                elif isinstance(one, Continue):
                    self.pool.extend(config_id, one.epochs, one.then)
                    self.ledger.note("continue", config_id, epochs=one.epochs)
        for start in thought.starts:
            config = self.ledger.add(start.values)
            self.pool.add()
            self._adopt(config.config_id, start)

    def _apply_copies(self, copies: Sequence[Copy]) -> None:
        members = self.pool.members
        able = [
            one
            for one in copies
            if not (members[self._ids[one.config_id]].is_over or self._is_gone(one.source))
        ]
        pairs = [(self._ids[one.config_id], self._ids[one.source]) for one in able]
        forks = self.pool.copy(pairs)
        self.ledger.copy(forks, [one.values for one in able], self._num_shards)
        for (config_id, _), fork, one in zip(pairs, forks, able, strict=True):
            self.pool.extend(config_id, one.epochs, one.then)
            facts = {"source": fork.source, "values": dict(one.values)}
            self.ledger.note("copy", config_id, epochs=one.epochs, **facts)

    def _is_gone(self, number: int) -> bool:
        """Whether a state that was to be copied is not there any more: somebody stopped it."""
        return self.pool.members[self._ids[number]].is_over

    def _adopt(self, config_id: int, start: Start) -> None:
        """Give a config of the method its first goal."""
        self._numbers[config_id] = len(self._ids)
        self._ids.append(config_id)
        self.pool.extend(config_id, start.epochs, start.then)
        self.ledger.note("start", config_id, epochs=start.epochs, values=dict(start.values))

    def _has_nothing_left(self) -> bool:
        return self._thought is None and not self._inbox and self.pool.training == 0

    def _close(self) -> None:
        """Stop what waits; nothing more will come."""
        self._is_closed = self._is_fresh = True
        for config_id in range(len(self.pool.members)):
            if self.pool.waits(config_id):
                self.stop_now(config_id)
        self.pool.close()


def _make_up(thought: _Thought, method: Method, inbox: Sequence[Result], room: int) -> None:
    """Let the method think; in a thread of its own."""
    try:
        for result in inbox:
            decisions = list(method.tell(result))
            if decisions:
                thought.decisions.append(decisions)
            room -= sum(isinstance(one, Continue | Copy) for one in decisions)
        if room > 0:
            thought.starts = list(method.ask(room))
    except BaseException as error:  # raised again in the thread that polls
        thought.error = error
    thought.is_done = True


def _observed(record: Record) -> Observed:
    skipped = record["kind"] == "skip"
    return Observed(
        config_id=record["config"],
        shard=record["shard"],
        rank=record["rank"],
        step=record["step"],
        start_s=record["end"] if skipped else record["start"],
        end_s=record["end"],
        eval_s=0.0 if skipped else record["eval_s"],
        diverged=skipped or record["diverged"],
    )
