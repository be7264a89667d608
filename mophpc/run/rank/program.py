"""The program of one rank: walk the list of visits."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

from mophpc.errors import ExperimentError, MophpcError, Place, StateError
from mophpc.events import PARTS, EventLog
from mophpc.hop.parcel import Parcel
from mophpc.run.faults.halt import Halt
from mophpc.run.faults.places import Sign, own_whereabouts
from mophpc.run.ports import Rows, Session, Trainer
from mophpc.run.rank.carrier import Carrier
from mophpc.run.rank.keeper import Keeper
from mophpc.run.rank.states import StateKeeper
from mophpc.schedule.plan import Stop, Visit
from mophpc.search.space import Config

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a rank needs for its visits."""

    configs: list[Config]
    """By config_id; others may come while it runs."""
    shards: Mapping[int, Rows]
    valid: Rows
    num_shards: int
    trainer: Trainer
    keeper: Keeper
    states: StateKeeper
    events: EventLog
    report: Report
    """Tells rank 0."""
    turn: AbstractContextManager[Any]
    """Held while computing; only the in-process ranks have to take turns."""
    log: logging.Logger
    progress: AbstractContextManager[Any]
    """Held while computing: messages progress in the meantime."""
    halt: Halt
    pause: Callable[[], None] = lambda: None
    """Called while all that is left to do is to wait."""
    between: Callable[[], None] = lambda: None
    """Called between two visits."""
    sign: Sign = field(default_factory=lambda: Sign(own_whereabouts(0, 1)))
    """Tells others where this rank is."""


class RankProgram:
    """Makes the visits of one rank in the order in which it is told them."""

    def __init__(self, carrier: Carrier, equipment: Equipment, place: Place) -> None:
        self._carrier = carrier
        self._at = equipment
        self.place = place
        """Where the rank is now, for messages."""
        self.spent = dict.fromkeys(PARTS, 0.0)
        """Seconds; together they are the time that `run` took."""
        self._position = 0

    def run(self) -> None:
        """Make all visits, then wait until the last states have left.

        Raises:
            InterruptError: the run was asked to stop, and all states are on disk; on all ranks.
        """
        begin_s = self._at.events.now()
        while True:
            self._let_end()
            if self._at.halt.is_asked:
                self.put_away()
            self.place = replace(self.place, config=None, epoch=None, shard=None)
            self._at.keeper.check()
            self._at.between()
            stop = self._carrier.next_stop(self._position)
            if stop is not None:
                self._make(stop)
            elif self._carrier.is_over(self._position):
                break
        self._carrier.drain()
        self._at.sign.over()
        self.place = replace(self.place, config=None, epoch=None, shard=None)
        flushed_s = self._at.events.now()
        self._at.keeper.flush()
        self.spent["checkpoint_s"] += self._at.events.now() - flushed_s
        self.spent["exposed_hop_s"] += self._carrier.exposed_s
        whole_s = self._at.events.now() - begin_s
        self.spent["idle_s"] = max(0.0, whole_s - sum(self.spent.values()))

    def _make(self, stop: Stop) -> None:
        """Get the state, train it, pass it on."""
        visit, position = stop.visit, self._position
        name = self._at.configs[visit.config_id].name
        self.place = replace(self.place, config=name, epoch=visit.epoch, shard=visit.shard)
        self._at.sign.at(self.place)
        self._at.trainer.turn_to(visit.config_id, visit.step)
        wanted_s = self._at.events.now()
        draft = self._draft(position, visit)
        while (parcel := self._carrier.obtain(position, wanted_s)) is None:
            self._let_end()
            if self._at.halt.is_asked:
                return
        if not parcel.diverged and not self._fits(stop, parcel):
            parcel.diverged = True
        if parcel.diverged:
            self._at.trainer.forget(parcel.arena)
            self._skip(visit)
        else:
            with self._at.turn, self._at.progress, self._at.sign.visits():
                is_made = self._visit(stop, parcel, draft)
            if not is_made:
                return
        parcel.step += 1
        self._carrier.pass_on(stop, parcel)
        self._carrier.advance()
        self._position += 1

    def _fits(self, stop: Stop, parcel: Parcel) -> bool:
        """Find out about a config that came while the run went on; return whether it can train."""
        visit, trainer = stop.visit, self._at.trainer
        config_id = visit.config_id
        try:
            if stop.creates and not trainer.knows(config_id):
                with self._at.turn, self._at.progress:
                    with self._at.events.timed("probe", config=config_id):
                        found = trainer.lay_out(config_id, self._at.shards[visit.shard])
                    self._at.report({"kind": "layout", "config": config_id, "probe": found})
                self._carrier.resize(parcel)
            with self._at.turn, self._at.progress:
                trainer.check_change(config_id, visit.step)
        except ExperimentError as error:
            self._at.log.warning("%s", error, exc_info=error)
            facts = {"status": "failed", "steps": visit.step, "state_sha256": ""}
            self._at.report({"kind": "final", "config": config_id, **facts, "why": str(error)})
            return False
        return True

    def _let_end(self) -> None:
        """Keep the weights of configs that end here since somebody decided so."""
        while (taken := self._carrier.take_ended()) is not None:
            parcel, is_in_file = taken
            config = self._at.configs[parcel.config_id]
            self.place = replace(self.place, config=config.name, epoch=None, shard=None)
            if is_in_file:
                self._load(parcel, config)
            if not parcel.diverged:
                with self._at.turn, self._at.progress:
                    self._end(config, parcel)
            self._carrier.free(parcel)

    def _end(self, config: Config, parcel: Parcel) -> None:
        begin_s = self._at.events.now()
        self._at.trainer.turn_to(parcel.config_id, parcel.step)
        state = (parcel.config_id, parcel.arena, parcel.rest, None, parcel.held)
        session = self._at.trainer.resume(*state)
        self._at.keeper.save_last(session, config, parcel.step // self._at.num_shards - 1)
        parcel.rest, parcel.held = session.release()
        self.spent["checkpoint_s"] += self._at.events.now() - begin_s
        self._finish(config, parcel, parcel.step, "stopped")

    def look_ahead(self) -> None:
        """Bring the state for the next visit to where it will be trained; called while training."""
        found = self._carrier.next_up(self._position + 1)
        if found is not None:
            self._at.trainer.ahead(found.config_id, found.step, found.arena, found.held)

    def _draft(self, position: int, visit: Visit) -> Any:
        """Build while the state is on its way, for the rank has nothing else to do."""
        arena = self._carrier.awaited(position)
        if arena is None:
            return None
        facts = {"config": visit.config_id, "step": visit.step}
        with self._at.turn, self._at.progress, self._at.events.timed("build", **facts):
            try:
                return self._at.trainer.draft(visit.config_id, arena)
            except MophpcError:  # it may have failed elsewhere, which its state will tell
                return None

    def _skip(self, visit: Visit) -> None:
        """Say that a config that has diverged passes."""
        now_s = self._at.events.now()
        facts = {"config": visit.config_id, "step": visit.step, "shard": visit.shard}
        self._at.report({"kind": "skip", **facts, "rank": visit.rank, "end": now_s})

    def _visit(self, stop: Stop, parcel: Parcel, draft: Any) -> bool:
        """Train; return whether the visit is made, and not stopped in its middle."""
        visit, trainer, events = stop.visit, self._at.trainer, self._at.events
        start_s, waited_s = events.now(), trainer.waited_s
        cursor = None
        if stop.loads is not None:
            cursor = self._load(parcel, self._at.configs[stop.loads])
            start_s = events.now()
        elif trainer.is_copy(visit.config_id, visit.step):
            # What it is a copy of goes on, and may be gone when the run is cut off.
            self._keep_state(visit, visit.step, parcel, {"copied": True})
        if stop.creates and cursor is None:
            session = trainer.start(visit.config_id, parcel.arena)
        else:
            session = trainer.resume(visit.config_id, parcel.arena, parcel.rest, draft, parcel.held)
            if cursor is None:  # else it was changed before the batches that it has made
                trainer.change(session, visit.config_id, visit.step)
        parcel.held, copy_s = None, trainer.waited_s - waited_s
        rows = self._at.shards[visit.shard]
        halt = self._at.halt
        outcome = session.train(
            visit.epoch, visit.shard, rows, should_stop=lambda: halt.is_asked, cursor=cursor
        )
        if outcome.is_paused:
            self._stop_within(parcel, session)
            return False
        trained_s = events.now()
        parcel.diverged = outcome.diverged
        metrics = None
        if not outcome.diverged and (visit.step + 1) % self._at.num_shards == 0:
            metrics = self._end_epoch(session, visit)
        evaluated_s = events.now()
        ends = stop.is_last or outcome.diverged
        if ends or metrics is not None:
            self._save(session, visit, metrics, ends=ends)
        saved_s = events.now()
        parcel.rest, parcel.held = session.release()
        is_due = self._at.states.is_due(visit.config_id, ends_epoch=metrics is not None)
        if is_due and not ends:
            known = {} if metrics is None else {"metrics": metrics}
            self._keep_state(visit, visit.step + 1, parcel, known)
        # Evaluation and saving lie between training and release; the visit is the other two.
        eval_s = evaluated_s - trained_s
        end_s = events.now() - (saved_s - trained_s)
        facts = {
            "config": visit.config_id,
            "step": visit.step,
            "epoch": visit.epoch,
            "shard": visit.shard,
            "rank": visit.rank,
            "rows": outcome.rows,
            "data_s": outcome.data_s,
            "copy_s": copy_s,
        }
        self.spent["compute_s"] += end_s - start_s - outcome.data_s - copy_s
        self.spent["exposed_hop_s"] += copy_s
        self.spent["data_s"] += outcome.data_s
        self.spent["evaluation_s"] += eval_s
        events.write("visit", start_s, end_s, **{k: v for k, v in facts.items() if k != "rank"})
        self._at.report(
            {
                "kind": "visit",
                **facts,
                "start": start_s,
                "end": end_s,
                "eval_s": eval_s,
                "loss": outcome.loss,
                "diverged": outcome.diverged,
            }
        )
        if ends:
            status = "diverged" if outcome.diverged else "done"
            self._finish(self._at.configs[visit.config_id], parcel, visit.step + 1, status, metrics)
        return True

    def _stop_within(self, parcel: Parcel, session: Session) -> None:
        """Write the state of a config whose visit was stopped between two batches."""
        cursor = session.cursor
        parcel.rest, parcel.held = session.release()
        self._put(parcel, cursor)
        self._carrier.free(parcel)

    def put_away(self) -> None:
        """Write the states that are here, and those that still come, until all are on disk.

        Raises:
            InterruptError: always, in the end.
        """
        halt, states = self._at.halt, self._at.states
        is_first = True
        while not (halt.is_over or halt.is_late or halt.loss):
            halt.wanted = [pair for pair in halt.wanted if not self._carrier.fetch(*pair)]
            here, leaving = self._carrier.take_all()
            for parcel in [*here, *leaving]:
                if not parcel.diverged:
                    self._put(parcel, None)
            for parcel in here:
                self._carrier.free(parcel)
            if (written := states.settle(lambda: halt.is_late)) or is_first:
                self._at.report({"kind": "written", "states": written})
            if is_first:
                is_first = False
                self._at.report({"kind": "paused", "rank": self.place.rank})
            self._at.pause()
        if halt.loss:
            for parcel in itertools.chain(*self._carrier.take_all(receives=False)):
                if not parcel.diverged:
                    self._put(parcel, None)
            states.settle()
        raise halt.error()

    def _put(self, parcel: Parcel, cursor: Any) -> None:
        """Have a state written, once, however slow the disk is."""
        config, step = self._at.configs[parcel.config_id], parcel.step
        states = self._at.states
        if states.is_off or (states.is_asked(config, step) and cursor is None):
            return
        self._at.trainer.turn_to(parcel.config_id, step)
        copy = self._at.trainer.state_copy(
            parcel.config_id, parcel.arena, parcel.rest, parcel.held, cursor
        )
        states.keep(config, step, copy, {})

    def _load(self, parcel: Parcel, whose: Config) -> Any:
        """Read a state from its file; return where in a visit it was stopped, or None."""
        config_id, step = parcel.config_id, parcel.step
        paths = self._at.states.paths(whose, step)
        with self._at.events.timed("resume", config=config_id, step=step):
            self._at.trainer.turn_to(config_id, step)
            for path in paths:
                try:
                    parcel.rest, cursor, _ = self._at.trainer.load(
                        config_id, path, parcel.arena, whose.config_id
                    )
                except StateError as error:
                    if path == paths[-1]:
                        raise
                    self._at.log.warning("%s", error)
                else:
                    return cursor
        raise StateError(f"config {whose.name} has no state for its visit {step} any more")

    def _keep_state(
        self, visit: Visit, step: int, parcel: Parcel, facts: Mapping[str, Any]
    ) -> None:
        """Have the state written from which the config goes on if the run is cut off."""
        states, config = self._at.states, self._at.configs[visit.config_id]
        if not states.has_room:
            return
        begin_s = self._at.events.now()
        copy = self._at.trainer.state_copy(
            visit.config_id, parcel.arena, parcel.rest, parcel.held, None
        )
        states.keep(config, step, copy, facts)
        self.spent["checkpoint_s"] += self._at.events.now() - begin_s

    def _end_epoch(self, session: Session, visit: Visit) -> dict[str, float]:
        with self._at.events.timed("eval", config=visit.config_id, epoch=visit.epoch):
            metrics = session.evaluate(visit.epoch, self._at.valid)
        self._at.report(
            {
                "kind": "epoch",
                "config": visit.config_id,
                "epoch": visit.epoch,
                "rank": visit.rank,
                "metrics": metrics,
            }
        )
        return metrics

    def _save(
        self, session: Session, visit: Visit, metrics: dict[str, float] | None, *, ends: bool
    ) -> None:
        """Copy the weights while they are still here: on a device, their memory is lent on."""
        keeper, config = self._at.keeper, self._at.configs[visit.config_id]
        begin_s, copied = self._at.events.now(), ends
        if metrics is not None:
            copied = keeper.end_epoch(session, config, visit.epoch, metrics, ends=ends)
        elif ends:
            keeper.save_last(session, config, visit.epoch)
        end_s = self._at.events.now()
        if copied:
            facts = {"config": visit.config_id, "epoch": visit.epoch}
            self._at.events.write("snapshot", begin_s, end_s, **facts)
        self.spent["checkpoint_s"] += end_s - begin_s

    def _finish(
        self,
        config: Config,
        parcel: Parcel,
        steps: int,
        status: str,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        begin_s = self._at.events.now()
        digest = self._at.trainer.digest(config.config_id, parcel.arena, parcel.rest, parcel.held)
        facts = {"status": status, "steps": steps, "state_sha256": digest}
        known = {} if metrics is None else {"metrics": dict(metrics)}
        self._at.keeper.write_manifest(config, facts | known)
        self._at.states.drop(config)
        self.spent["checkpoint_s"] += self._at.events.now() - begin_s
        if parcel.diverged:
            self._at.log.warning(
                "%s diverged in its visit %d; it leaves the schedule", config.name, steps
            )
        self._at.report({"kind": "final", "config": config.config_id, **facts})
