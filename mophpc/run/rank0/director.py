"""Rank 0's third role where configs are decided on: it asks a method and people, and plans.

A method of ours thinks in no time, in the thread that talks to the ranks. A user's own and a
sampler may take seconds, and draw from generators that training draws from too; so they think
between two visits of rank 0, while the messages go on. Each visit seeds all generators anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mophpc.dimensions import Value
from mophpc.errors import ExperimentError
from mophpc.experiment import Objective
from mophpc.run.rank0.ledger import Ledger
from mophpc.run.rank0.planner import observed
from mophpc.run.rank0.thought import Thought, make_up
from mophpc.run.recovery.journal import Cut
from mophpc.schedule.costs import Costs
from mophpc.schedule.orders import Orders
from mophpc.schedule.plan import Plan
from mophpc.schedule.pool import Pool
from mophpc.search.method import Continue, Copy, Method, Result, Start, Stop

Record = dict[str, Any]

LOOK_S = 0.005
"""Between two looks at whether a rank runs out of visits, where nothing was heard of."""


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
        is_quick: whether the method thinks in no time and draws from generators of its own.
        goes_on: whether configs have goals already.
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
        is_quick: bool = True,
        goes_on: bool = False,
    ) -> None:
        self.pool = pool
        self.ledger = ledger
        self.epochs = epochs
        self.undecided = 0
        """Configs that waited when nothing followed any more."""
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
        self._is_quick = is_quick
        self._ids: list[int] = []  # config_id of each config that the method has started
        self._numbers: dict[int, int] = {}  # and the other way round
        self._told: set[tuple[int, int]] = set()  # (number, epochs) of results
        self._calls: list[Record] = []  # of the method, which the journal does not have yet
        self._metrics: dict[tuple[int, int], Mapping[str, float]] = {}
        self._inbox: list[Result] = []
        self._thought: Thought | None = None
        self._is_fresh = True
        self._is_asked = False
        self._look_s = 0.0
        self._is_closed = False
        for config_id, start in enumerate(starts):
            if goes_on:
                self._remember([config_id])
            else:
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
            self.pool.observe(observed(record))
            if kind == "skip" or record["diverged"]:
                self.end_config(config_id)
            elif record["step"] + 1 == self.pool.members[config_id].goal:
                self._reached(config_id)
        elif kind == "epoch":
            self._metrics[config_id, record["epoch"]] = record["metrics"]
        elif kind == "layout":
            self.pool.lay_out(config_id)
            self.ledger.tell({"config_id": config_id, "probe": record["probe"]})
        elif kind == "final" and record["status"] == "failed":
            self.end_config(config_id)

    @property
    def has_to_think(self) -> bool:
        """Whether `think` should be called, between two visits of this rank."""
        waits = self._method is not None and not self._is_quick and self._thought is None
        return waits and bool(self._inbox)

    def think(self) -> None:
        """Let the method decide on what has come; what it raises is raised by `poll`."""
        assert self._method is not None
        inbox, self._inbox = self._inbox, []
        for result in inbox:
            self._note_told(result.config_id, result.epochs, is_over=result.is_over)
        self._thought = thought = Thought()
        make_up(thought, self._method, inbox, self._room())

    def hurry(self) -> None:
        """Let the next `poll` tell the ranks what people have asked for, whatever they know."""
        self._is_fresh = self._is_asked = True

    def poll(self) -> None:
        """Take up what was decided, and tell the ranks what follows; never waits.

        Raises:
            ExperimentError: the method decided what cannot be.
            PlanError: what is to be promised breaks an invariant (a bug in the planner).
        """
        now_s = self._now()
        done = self._thought is not None and self._thought.is_done
        if not (self._is_fresh or done) and now_s < self._look_s:
            return
        self._is_fresh, self._look_s = False, now_s + LOOK_S
        self._take_up()
        while self._is_quick and self._method is not None and self._inbox:
            self.think()
            self._take_up()
        if not self._is_closed and self._has_nothing_left():
            self._close()
        if self.pool.due(now_s) or self._is_asked:
            self._is_asked = False
            begin_s = time.thread_time()  # a busy machine is no reason to plan less
            orders = self.pool.promise(now_s, self.ledger.take_news())
            self.pool.took(time.thread_time() - begin_s)
            self._tell(orders)

    def take_calls(self) -> list[Record]:
        """Return what the method was told and asked since the last time."""
        found, self._calls = self._calls, []
        return found

    def recall(
        self,
        calls: Sequence[Record],
        metrics: Mapping[tuple[int, int], Mapping[str, float]],
        finals: Mapping[int, Record],
    ) -> None:
        """Go on where a run was cut off: the pool stands there already, with all goals.

        Args:
            calls: of the method until then, in order; they are made again.
            metrics: by (config, epoch).
            finals: of configs that have ended.

        Raises:
            ExperimentError: the method decides otherwise than it did.
        """
        self.know(metrics)
        for call in calls:
            self._call_again(call)
        over = {number for number, epochs in self._told if epochs < 0}
        for config_id, member in enumerate(self.pool.members):
            number = self._numbers.get(config_id)
            if member.is_over:
                if config_id not in finals:
                    self._end_again(config_id)
                if number is not None and number not in over:
                    status = finals[config_id]["status"] if config_id in finals else "stopped"
                    epochs = self.epochs_of(config_id)
                    is_well = status in ("done", "stopped")
                    score = self._score(config_id, epochs) if is_well else math.inf
                    self._inbox.append(self._result(config_id, epochs, score, is_over=True))
            elif member.goal > 0 and self.pool.waits(config_id):
                self._reached(config_id)

    def _end_again(self, config_id: int) -> None:
        """See to a config that was to end when the run was cut off."""
        if self.pool.is_in_file(config_id):
            self.retire(config_id)
        elif self.pool.members[config_id].made == 0 and self.pool.rank_of(config_id) < 0:
            final = {"status": "stopped", "steps": 0, "state_sha256": ""}
            self._report({"kind": "final", "config": config_id, **final})

    def _call_again(self, call: Record) -> None:
        assert self._method is not None
        if "ask" in call:
            starts = self._method.ask(call["ask"])
            if len(starts) != len(call["ids"]):
                raise ExperimentError(
                    "search.method starts other configs than it did before the run was cut off; "
                    "what it decides must follow from its seed and from what it is told"
                )
            self._remember(call["ids"])
            return
        config_id = self._ids[call["tell"]]
        score = math.inf if call["score"] is None else call["score"]
        known = self._metrics.get((config_id, call["epochs"] - 1), {})
        self._note_told(call["tell"], call["epochs"], is_over=call["is_over"])
        self._method.tell(Result(call["tell"], call["epochs"], score, known, call["is_over"]))

    def _remember(self, ids: Sequence[int]) -> None:
        for config_id in ids:
            self._numbers[config_id] = len(self._ids)
            self._ids.append(config_id)

    def _note_told(self, number: int, epochs: int, *, is_over: bool) -> None:
        self._told.add((number, epochs))
        if is_over:
            self._told.add((number, -1))

    # What configs come to.

    def end_config(self, config_id: int, *, is_well: bool = False) -> None:
        """Let a config end that has diverged, failed or was stopped, and tell the method.

        Args:
            config_id: the config.
            is_well: whether its last score counts.
        """
        member = self.pool.members[config_id]
        if member.is_over:
            return
        epochs = member.made // self._num_shards
        self._end(config_id)
        cut = self.cuts.pop(config_id, None)
        for clone, _, _ in cut.clones if cut else ():
            self.stop_now(clone)  # what it was to be a copy of is gone
        if config_id in self._numbers:
            score = self._score(config_id, epochs) if is_well else math.inf
            self._inbox.append(self._result(config_id, epochs, score, is_over=True))

    def settle(self, config_id: int) -> None:
        """See to a config that was cut and waits already, so that no visit will tell of it."""
        if config_id in self.cuts and self.pool.waits(config_id):
            self._reached(config_id)

    def stop_now(self, config_id: int, **facts: Any) -> None:
        """Let a config end that waits, or has not begun."""
        for cut in self.cuts.values():  # it may be a copy that is to be made
            cut.clones = [clone for clone in cut.clones if clone[0] != config_id]
        is_new = self.pool.rank_of(config_id) < 0 and not self.pool.is_in_file(config_id)
        self._is_fresh = True
        self.ledger.note("stop", config_id, epochs=self.epochs_of(config_id), **facts)
        self._end(config_id)
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

    def _end(self, config_id: int) -> None:
        """Let a config end; a rank reads the state of one that is in a file."""
        if self.pool.is_in_file(config_id):
            self.retire(config_id)
        self.pool.end(config_id)

    def retire(self, config_id: int) -> None:
        """Have a rank read a config's state from its file, and keep its weights."""
        step = self.pool.members[config_id].made
        self.ledger.tell({"config_id": config_id, "retires_at": step})

    def know(self, metrics: Mapping[tuple[int, int], Mapping[str, float]]) -> None:
        """Take over the metrics by (config, epoch) that were recorded before."""
        self._metrics |= metrics

    def epochs_of(self, config_id: int) -> int:
        """Return the epochs that a config has made."""
        return self.pool.members[config_id].made // self._num_shards

    def _reached(self, config_id: int) -> None:
        """A config has come to its goal, or to where somebody wanted it to wait."""
        if self.pool.members[config_id].is_over:
            return
        self._is_fresh = True
        epochs = self.epochs_of(config_id)
        if config_id not in self.cuts and (self._numbers.get(config_id), epochs) in self._told:
            return  # before the run was cut off; it waits for others
        cut = self.cuts.pop(config_id, None)
        if cut is not None:
            self.copy(cut.clones, config_id)
            if cut.stops:
                self.ledger.note("stop", config_id, epochs=epochs, by="people")
                self.end_config(config_id, is_well=True)
                return
            if cut.goal > epochs:
                self.pool.set_goal(config_id, cut.goal, cut.then)
                return
        is_over = self.pool.is_finished(config_id)
        if is_over:
            self._end(config_id)
        if config_id in self._numbers:
            score = self._score(config_id, epochs)
            self._inbox.append(self._result(config_id, epochs, score, is_over=is_over))
        elif not is_over:
            self.stop_now(config_id)

    def copy(self, clones: Sequence[tuple[int, Mapping[str, Value], int]], source: int) -> None:
        """Make copies of a config that waits: (config, hyperparameters, epochs) of each."""
        if not clones:
            return
        forks = self.pool.copy([(clone, source) for clone, _, _ in clones])
        self.ledger.copy(
            forks, [source] * len(clones), [values for _, values, _ in clones], self._num_shards
        )
        for clone, _, epochs in clones:
            self.pool.set_goal(clone, epochs)
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

    def _take_up(self) -> None:
        """Do what the method has decided, if it has."""
        if self._thought is not None and self._thought.is_done:
            thought, self._thought = self._thought, None
            if thought.error is not None:
                raise thought.error
            self._apply(thought)

    def _room(self) -> int:
        members = self.pool.members
        training = sum(not members[c].is_over and not self.pool.waits(c) for c in self._ids)
        return self._in_flight - training

    def _apply(self, thought: Thought) -> None:
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
                    self.pool.set_goal(config_id, one.epochs, one.then)
                    self.ledger.note("continue", config_id, epochs=one.epochs)
        self._calls += thought.calls
        for start in thought.starts:
            config = self.ledger.add(start.values)
            self.pool.add()
            self._adopt(config.config_id, start)
            thought.calls[-1]["ids"].append(config.config_id)

    def _apply_copies(self, copies: Sequence[Copy]) -> None:
        members = self.pool.members
        able = []
        for one in copies:
            config_id = self._ids[one.config_id]
            if members[config_id].is_over:
                continue
            if members[self._ids[one.source]].is_over:  # somebody stopped it meanwhile
                self.pool.set_goal(config_id, one.epochs, one.then)
                self.ledger.note("continue", config_id, epochs=one.epochs, lost=one.source)
                continue
            able.append(one)
        pairs = [(self._ids[one.config_id], self._ids[one.source]) for one in able]
        for (config_id, source), one in zip(pairs, able, strict=True):
            made, its = self.epochs_of(config_id), self.epochs_of(source)
            if made != its:
                raise ExperimentError(
                    f"search.method copied the state of config {one.source}, which has made {its} "
                    f"epochs, to config {one.config_id}, which has made {made}; both must have "
                    f"made as many"
                )
        forks = self.pool.copy(pairs)
        sources = [source for _, source in pairs]
        self.ledger.copy(forks, sources, [one.values for one in able], self._num_shards)
        for (config_id, _), fork, one in zip(pairs, forks, able, strict=True):
            self.pool.set_goal(config_id, one.epochs, one.then)
            facts = {"source": fork.source, "values": dict(one.values)}
            self.ledger.note("copy", config_id, epochs=one.epochs, **facts)

    def _adopt(self, config_id: int, start: Start) -> None:
        """Give a config of the method its first goal."""
        self._remember([config_id])
        self.pool.set_group(config_id, start.group)
        self.pool.set_goal(config_id, start.epochs, start.then)
        self.ledger.note("start", config_id, epochs=start.epochs, values=dict(start.values))

    def _has_nothing_left(self) -> bool:
        return self._thought is None and not self._inbox and self.pool.training == 0

    def _close(self) -> None:
        """Stop what waits; nothing more will come."""
        self._is_closed = self._is_fresh = True
        for config_id in range(len(self.pool.members)):
            if self.pool.waits(config_id):
                self.undecided += config_id in self._numbers
                self.stop_now(config_id)
        self.pool.close()
