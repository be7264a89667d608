"""Rank 0's side of a run: it keeps the journal, plans on, and takes up what people ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mophpc.experiment import Experiment
from mophpc.requests import Request, RequestBox
from mophpc.run.costing import write_costs
from mophpc.run.faults.halt import Halt, Muster
from mophpc.run.ports import Tracking
from mophpc.run.rank0.coordinator import Coordinator
from mophpc.run.rank0.director import Director
from mophpc.run.rank0.ledger import Ledger
from mophpc.run.rank0.planner import Planner
from mophpc.run.rank0.replayer import Replayer
from mophpc.run.rank0.searching import is_quick, said_if_long
from mophpc.run.rank0.wishes import grant
from mophpc.run.recovery.journal import Journal
from mophpc.run.recovery.resume import Resumption
from mophpc.run.rooms import Rooms
from mophpc.run.setup import Prepared
from mophpc.schedule.orders import Orders
from mophpc.schedule.pool import Pool
from mophpc.schedule.renewal import Renewal
from mophpc.search import room_of
from mophpc.search_settings import is_reference

Record = dict[str, Any]

FIXED = (
    "the plan of this run was fixed when it began (one that is replayed, or a schedule that is not "
    "renewed); leave schedule.policy and schedule.renew as they are by default"
)
ENDING = "the run is about to end, and takes nothing new"


class Chief:
    """Takes the records of all ranks, and says what they are to do next.

    Args:
        rooms: of rank 0.
        experiment: that is run.
        prepared: for the visits.
        tell: takes what each rank is told next.
        trackers: told of what goes on, if there are any.
        in_parts: whether ranks are told their visits in parts; else they know them all.
    """

    def __init__(
        self,
        rooms: Rooms,
        experiment: Experiment,
        prepared: Prepared,
        tell: Callable[[list[Orders]], None],
        trackers: Tracking | None = None,
        *,
        in_parts: bool,
    ) -> None:
        self._rooms = rooms
        self._experiment = experiment
        self._prepared = prepared
        self._tell = tell
        self._in_parts = in_parts
        self._has_warned = self._has_warned_of_left = False
        self._shown = -1
        self._granted: list[tuple[Request, str]] = []
        """What people are told when it is in the journal."""
        self._journal = Journal(rooms.folder.journal)
        self._muster: Muster | None = None
        self.ledger = Ledger(prepared.configs, rooms.folder, rooms.events.now)
        self.ledger.replay(prepared.changes, prepared.plan.num_shards)
        self.coordinator = Coordinator(
            prepared.plan, self.ledger, experiment.objective, rooms.folder, rooms.view, trackers
        )
        self.coordinator.space = experiment.model_dump(exclude_none=True)["space"]
        self._box = RequestBox(rooms.folder.requests, rooms.view.warn)
        self._planner: Planner | Director | Replayer
        plan, lookahead = prepared.plan, experiment.schedule.lookahead
        known = prepared.known
        if known.resumption is not None:
            self.coordinator.recall(known.resumption)
            self._planner = self._go_on(known.resumption)
        elif plan.spans is not None and known.search.method is None:
            self._planner = Replayer(plan, prepared.ends, self._promise)
        elif known.search.method is not None:
            self._planner = self._direct(Pool(plan, prepared.costs, lookahead=lookahead))
        else:
            renewal = Renewal(plan, prepared.costs, seed=experiment.seed, lookahead=lookahead)
            self._planner = Planner(renewal, self._promise, rooms.events.now)

    def follow(self, halt: Halt) -> None:
        """Be ready to stop all ranks, and to say when they may end."""
        self._muster = Muster(self._rooms.transport, halt, self._rooms.view.note)

    def part(self) -> None:
        """Let the ranks go: all is made."""
        if self._muster is not None:
            self._muster.end()

    def _newest(self) -> Iterator[tuple[int, int]]:
        """Yield (config, visit that its newest state is ready for) of those that are to go on."""
        if self._experiment.checkpoints.states == "off":
            return
        for config_id, step in self.coordinator.made():
            if self.coordinator.histories[config_id].final is None:
                yield config_id, step

    def begin(self) -> None:
        """Write the plan, and tell the ranks what to do first."""
        plan, goes_on = self._prepared.plan, self._prepared.known.resumption is not None
        configs = () if goes_on else tuple(self.ledger.configs)
        self._journal.part(plan, configs, self._rooms.events.begun_s)
        if not self._in_parts:
            self._journal.whole(plan)
        self.coordinator.write_plan()
        self._rooms.view.begin(self.coordinator.plan, tuple(self.ledger.configs))
        if self._in_parts:
            self._planner.begin()
            if isinstance(self._planner, Director):
                self._show(self._planner)
        self.coordinator.status.update()

    def handle(self, record: Record) -> None:
        """Take a rank's record."""
        if record["kind"] == "leave":  # the last word of a rank
            return
        if record["kind"] in ("signal", "paused", "written"):
            assert self._muster is not None
            if record["kind"] != "signal":
                self._muster.take(record)
            elif not self.coordinator.all_done:
                self._muster.begin(record["rank"], record["signal"])
            return
        self._planner.observe(record)
        if self._in_parts:
            self._rooms.view.expect(self._planner.left_s())
            self.coordinator.expect(self._planner.left_s())
        if record["kind"] == "final":
            self._journal.final(record)
        self.coordinator.handle(record)

    def poll(self) -> None:
        """Take up what was asked and decided; never waits."""
        for request in self._box.poll():
            director = self._director()
            if isinstance(director, str):
                self._box.answer(request, False, director)
                continue
            accepted, text = grant(
                request.wish, director, self._experiment, self._rooms.folder.path
            )
            if accepted:
                self._granted.append((request, text))
                director.hurry()
            else:
                self._answer(request, text, accepted=False)
        if self._in_parts:
            self._planner.poll()
            if isinstance(self._planner, Director):
                self._show(self._planner)
                self._warn_of(self._planner.undecided)
        self.coordinator.status.beat()
        if self._muster is not None:
            self._muster.poll(self._newest)

    def _answer(self, request: Request, text: str, *, accepted: bool) -> None:
        self._box.answer(request, accepted, text)
        self._rooms.view.note(f"{request}: {text}")

    @property
    def has_to_think(self) -> bool:
        """Whether `think` should be called, between two visits of this rank."""
        return isinstance(self._planner, Director) and self._planner.has_to_think

    def think(self) -> None:
        """Let a user's method or a sampler decide; not while this rank trains."""
        assert isinstance(self._planner, Director)
        with said_if_long(self._experiment, self._warn_once):
            self._planner.think()

    def _warn_of(self, undecided: int) -> None:
        """Say that a method of the user's own has left configs waiting."""
        if undecided and is_reference(self._experiment.method) and not self._has_warned_of_left:
            self._has_warned_of_left = True
            self._rooms.view.warn(
                f"search.method '{self._experiment.method}' has started nothing more and left "
                f"{undecided} configs without a decision; they are stopped"
            )

    def _warn_once(self, text: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._rooms.view.warn(text)

    def _show(self, director: Director) -> None:
        if director.pool.count != self._shown:
            self._shown = director.pool.count
            decided = self.coordinator.earlier_visits + director.pool.num_decided
            self.coordinator.planned_visits = decided
            self._rooms.view.decided(decided)

    def keep(self) -> None:
        """Put the schedule as it was run, the journals and the costs on disk."""
        self._box.close()
        coordinator, planner = self.coordinator, self._planner
        if self._in_parts:
            coordinator.replan(planner.plan, planner.predictions)
            if isinstance(planner, Director):
                coordinator.ends = planner.pool.ends
            elif isinstance(planner, Replayer):
                coordinator.ends = self._prepared.ends
        coordinator.write_plan()
        coordinator.close()
        self.ledger.close()
        self._journal.close()
        learned, prepared = planner.learned, self._prepared
        if learned is not None:
            write_costs(
                self._rooms.folder,
                self.ledger.configs,
                prepared.plan,
                learned,
                prepared.store.shard_rows,
                [prepared.trainer.nbytes(c.config_id) for c in self.ledger.configs],
                prepared.link,
            )

    def _promise(self, orders: list[Orders]) -> None:
        """Write down what the ranks are told, and tell them."""
        planner = self._planner
        if isinstance(planner, Director):
            granted, self._granted = self._granted, []
            self._journal.promise(
                orders,
                planner.pool,
                planner.take_calls(),
                planner.cuts,
                [(request.name, text) for request, text in granted],
            )
            for request, text in granted:
                self._answer(request, text, accepted=True)
        else:
            self._journal.promise(orders)
        self._tell(orders)

    def _go_on(self, earlier: Resumption) -> Director:
        """Return who decides in a run that was cut off, where it stood."""
        prepared, search = self._prepared, self._prepared.known.search
        lookahead = self._experiment.schedule.lookahead
        standings = earlier.standings()
        pool = Pool.resumed(
            prepared.plan,
            prepared.costs,
            standings,
            forks=earlier.forks,
            lookahead=lookahead,
            now_s=self._rooms.events.now(),
        )
        director = self._direct(pool, goes_on=True)
        first = [start.epochs for start in search.starts]
        for config_id, member in enumerate(pool.members):
            if member.is_over:
                continue
            goal = self._experiment.epochs if search.method is None else 0
            if config_id < len(first):
                goal = first[config_id]
                pool.set_group(config_id, search.starts[config_id].group)
            known = earlier.told.goals.get(config_id)
            if known is not None:
                goal = known.steps // prepared.plan.num_shards
            pool.set_goal(config_id, goal, 0 if known is None else known.then)
        director.cuts = earlier.told.cuts
        self._box.complete(earlier.told.answers)
        director.recall(earlier.told.calls, earlier.metrics, earlier.finals)
        return director

    def _direct(self, pool: Pool, *, goes_on: bool = False) -> Director:
        search = self._prepared.known.search
        self.coordinator.waits = pool.waits
        return Director(
            pool,
            self.ledger,
            epochs=self._experiment.epochs,
            num_shards=self._prepared.plan.num_shards,
            objective=self._experiment.objective,
            tell=self._promise,
            report=self.coordinator.handle,
            now=self._rooms.events.now,
            method=search.method,
            starts=search.starts,
            in_flight=room_of(self._experiment, self._prepared.plan.num_ranks),
            is_quick=is_quick(self._experiment),
            goes_on=goes_on,
        )

    def _director(self) -> Director | str:
        """Return who takes up what people ask; a sentence where nobody can any more."""
        if isinstance(self._planner, Replayer) or not self._in_parts:
            return FIXED
        if isinstance(self._planner, Planner):
            if self._planner.is_over:
                return ENDING
            director = self._direct(Pool.after(self._planner.renewal))
            director.know(self.coordinator.metrics())
            self._planner = director
        return ENDING if self._planner.is_closed else self._planner
