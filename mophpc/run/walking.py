"""The visits of one rank, with messages and signals looked after in between."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mophpc.errors import (
    InterruptError,
    Place,
    PlanError,
    RunError,
    UnreachableError,
)
from mophpc.experiment import Experiment
from mophpc.files import write_json
from mophpc.hop.progress import Progress
from mophpc.hop.records import RecordReceiver, RecordSender, take_arrived
from mophpc.hop.transport import KEPT, ORDERS, REPORTS, wait_until
from mophpc.report.results import Results, from_record
from mophpc.report.trackers.feed import open_trackers
from mophpc.run.faults.halt import Halt
from mophpc.run.faults.heartbeat import Heartbeat
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.memory import peak_rss_bytes
from mophpc.run.outcome import write_results
from mophpc.run.rank.carrier import Carrier
from mophpc.run.rank.keeper import Keeper
from mophpc.run.rank.program import Equipment, RankProgram
from mophpc.run.rank.states import StateKeeper
from mophpc.run.rank0.chief import Chief
from mophpc.run.rank0.ledger import learn_configs
from mophpc.run.rooms import Rooms
from mophpc.run.setup import Prepared, record_clock
from mophpc.run.writer import Writer
from mophpc.schedule.orders import Orders, whole
from mophpc.status_file import State

PAUSE_S = 1e-3
"""Between two looks at what others do, when nothing is left to train."""


class Walk:
    """The visits of one rank, with messages looked after in between."""

    def __init__(self, rooms: Rooms, stop: StopFlag, *, survives: bool = False) -> None:
        transport = rooms.transport
        self._rooms = rooms
        self._transport = transport
        self._stop = stop
        self._sender = RecordSender(transport, REPORTS)
        self._orders = RecordSender(transport, ORDERS)
        self._receivers: list[RecordReceiver] = []
        self._chief: Chief | None = None
        self._progress: Progress | None = None
        self._program: RankProgram | None = None
        self._writer = Writer(rooms.events, rooms.log, self._meanwhile)
        self._halt: Halt | None = None
        self._survives = survives
        self._kept: RecordSender | None = None
        self._heartbeat: Heartbeat | None = None
        self._place = Place(transport.rank, transport.size, socket.gethostname())
        self._aside: BaseException | None = None  # raised while messages were looked after

    @property
    def visiting(self) -> bool:
        """Whether the visits have begun, so that no rank waits for another's word any more."""
        return self._program is not None

    def between(self) -> None:
        """Called after each batch: let messages progress, notice signals."""
        self._rooms.watch.sign.batches += 1
        self._notice()
        if self._progress is not None:
            self._progress.between()

    def run(self, experiment: Experiment, prepared: Prepared, *, in_parts: bool) -> Results:
        """Collective. Make this rank's visits; return the results."""
        rooms = self._rooms
        try:
            self._visit_all(experiment, prepared, in_parts)
        except BaseException:
            with suppress(OSError, PlanError):  # what ended the run says more than a full disk does
                if self._chief is not None:
                    self._chief.keep()
            raise
        finally:
            if self._progress is not None:
                self._progress.end()
            self._writer.close()
        if self._chief is not None:
            self._chief.keep()
        rooms.view.end()
        found = None if self._chief is None else self._chief.coordinator
        if found is not None:
            rooms.view.spent(found.usage)
        record = rooms.group.share(
            None if found is None else write_results(found, experiment, rooms.folder)
        )
        self.close("ended")
        results = from_record(record, str(rooms.folder.path))
        if found is not None and (trackers := found.telling.trackers) is not None:
            best = None if results.best is None else results.configs[results.best].config
            trackers.end("done", best)
        return results

    def close(self, state: State) -> None:
        """Tell people outside, and the other ranks, how the run ended."""
        self._rooms.watch.close(state)
        if self._chief is not None:
            self._chief.coordinator.status.end(state)
            if state != "ended" and (trackers := self._chief.coordinator.telling.trackers):
                trackers.abandon()

    def _visit_all(self, experiment: Experiment, prepared: Prepared, in_parts: bool) -> None:
        rooms, transport, plan = self._rooms, self._transport, prepared.plan
        carrier = Carrier(
            transport,
            nbytes=prepared.trainer.nbytes,
            allocate=prepared.trainer.allocate,
            lookahead=experiment.schedule.lookahead,
            checked=prepared.checked,
            events=rooms.events,
            check=self._look_after,
        )
        self._connect(experiment, prepared, carrier, in_parts)

        def step() -> bool:
            if self._halt is not None and self._halt.loss is not None:
                return False
            try:
                carrier.advance()
                if self._program is not None:
                    self._program.look_ahead()
                self._exchange()
            except UnreachableError as error:
                if self._halt is None:
                    raise
                self._halt.lose(error)
            return carrier.flows

        # One rank has no messages, and its training needs no thread beside it.
        threaded = transport.threaded and transport.size > 1
        threaded = threaded and experiment.hop.progress != "between"
        bound = rooms.bound
        self._progress = progress = Progress(
            step, threaded=threaded, begin=bound.device.use, crowding=bound.crowding
        )
        send = self._sender.send if self._chief is None else self._chief.handle

        def report(record: dict[str, Any]) -> None:
            with progress.lock, self._messages():
                send(record)

        limit_s, survives = experiment.signals.limit_s, self._survives
        self._halt = halt = Halt(transport, self._stop, limit_s, report, survives=survives)
        carrier.is_stopping = lambda: halt.is_asked
        if self._chief is not None:
            self._chief.follow(halt)
        self._stop.is_orderly = True

        equipment = Equipment(
            configs=prepared.configs,
            shards=prepared.shards,
            valid=prepared.valid,
            num_shards=plan.num_shards,
            trainer=prepared.trainer,
            keeper=Keeper(rooms.folder, experiment.checkpoints, experiment.objective, self._writer),
            states=StateKeeper(rooms.folder, experiment.checkpoints, self._writer),
            events=rooms.events,
            report=report,
            turn=rooms.turn,
            log=rooms.log,
            progress=progress,
            halt=halt,
            pause=self._pause,
            between=self._think,
            sign=rooms.watch.sign,
        )
        before = peak_rss_bytes()
        self._program = RankProgram(carrier, equipment, self._place)
        try:
            try:
                self._make_visits(equipment, carrier, before)
            except UnreachableError as error:
                halt.lose(error)
                self._program.put_away()
        except InterruptError as error:
            with progress.lock:
                error.agreed = self._give_up(carrier)
            raise

    def _make_visits(self, equipment: Equipment, carrier: Carrier, start_rss_bytes: int) -> None:
        """Make them, and wait until all have made theirs.

        Raises:
            InterruptError: the run was asked to stop; on all ranks.
        """
        assert self._program is not None
        rooms, transport = self._rooms, self._transport
        self._program.run()
        most = {
            "most_arenas": carrier.pool.most,
            "start_rss_bytes": start_rss_bytes,
            "peak_rss_bytes": peak_rss_bytes(),
            "spent": self._program.spent,
        }
        rooms.events.write("end", rooms.events.now(), rooms.events.now(), **most)
        equipment.report({"kind": "rank", "rank": transport.rank, **most})
        self._part()

    def _give_up(self, carrier: Carrier) -> bool:
        """Take no more messages; return whether MPI can end as it should. Collective.

        It cannot where a state is leaving that nobody takes, or a rank came too late.
        """
        halt = self._halt
        if halt is None or not halt.is_over or halt.loss is not None:
            return False
        for receiver in self._receivers:
            receiver.cancel()
        is_done = carrier.cancel() and self._sender.test() and self._orders.test()
        is_done = is_done and (self._kept is None or self._kept.test())
        is_done = (self._heartbeat is None or self._heartbeat.cancel()) and is_done
        group = self._rooms.group
        return all(group.share(group.gather(is_done)))

    def _connect(
        self, experiment: Experiment, prepared: Prepared, carrier: Carrier, in_parts: bool
    ) -> None:
        """Open the ways of reports and orders, and tell the ranks what to do first."""
        transport, plan = self._transport, prepared.plan

        def obey(orders: Orders) -> None:
            prepared.trainer.learn(orders.news)
            for item in orders.news:
                if "retires_at" in item and item["config_id"] % transport.size == transport.rank:
                    carrier.retire(item["config_id"], item["retires_at"])
            carrier.tell(orders)

        def take(record: dict[str, Any]) -> None:
            orders = Orders.from_json(record)
            learn_configs(prepared.configs, orders.news)
            obey(orders)

        def tell(orders: list[Orders]) -> None:
            obey(orders[0])
            for rank, own in enumerate(orders[1:], 1):
                if not own.is_nothing:
                    self._orders.send(own.to_json() | {"last": own.is_last}, rank)

        if not self._rooms.is_root:
            if in_parts:
                self._receivers.append(RecordReceiver(transport, ORDERS, [0], take))
        else:
            rooms = self._rooms
            trackers = open_trackers(experiment, rooms.folder.path, rooms.view.warn)
            self._chief = chief = Chief(
                rooms, experiment, prepared, tell, trackers, in_parts=in_parts
            )
            others = range(1, transport.size)
            self._receivers.append(RecordReceiver(transport, REPORTS, others, chief.handle))
            chief.begin()
        if self._survives and transport.size > 1:
            self._keep_copies(carrier)
        self._heartbeat = self._rooms.watch.listen(experiment.faults.silent_s)
        if not in_parts:
            carrier.tell(whole(plan, transport.rank))

    def _keep_copies(self, carrier: Carrier) -> None:
        """Keep states that have left until they were trained elsewhere, which others then say."""

        def let_go(record: dict[str, Any]) -> None:
            if "config" in record:
                carrier.let_go(record["config"], record["step"])

        transport = self._transport
        self._kept = RecordSender(transport, KEPT)
        others = [rank for rank in range(transport.size) if rank != transport.rank]
        self._receivers.append(RecordReceiver(transport, KEPT, others, let_go))
        carrier.acknowledge = self._acknowledge

    def _acknowledge(self, source: int, config_id: int, step: int) -> None:
        assert self._kept is not None
        with self._messages():
            self._kept.send({"config": config_id, "step": step}, source)

    def _look_after(self) -> None:
        """Let records progress; notice signals."""
        self._rooms.watch.sign.waits += 1
        self._notice()
        self._exchange()
        self._think()

    def _notice(self) -> None:
        """Look whether a signal came."""
        if self._halt is None:
            self._stop.check()
        else:
            self._halt.notice()

    def _check(self) -> None:
        """Look whether a rank is lost; a signal comes too late."""
        self._stop.check()
        if self._halt is not None and self._halt.loss is not None:
            raise self._halt.loss

    def _all_said(self) -> bool:
        """Whether no message of a record is under way, so that MPI can end."""
        self._exchange()
        all_left = self._sender.test() and (self._kept is None or self._kept.test())
        all_left = all_left and (self._heartbeat is None or self._heartbeat.is_closed)
        return all_left and not any(receiver.is_open for receiver in self._receivers)

    def _pause(self) -> None:
        """Wait for what other ranks do."""
        self._exchange()
        time.sleep(PAUSE_S)

    def _think(self) -> None:
        """Between two visits: let a method decide that may disturb training, or take long."""
        if self._chief is not None and self._progress is not None and self._chief.has_to_think:
            with self._progress:
                self._chief.think()

    def _meanwhile(self) -> None:
        """Called while this rank waits for its disk: the others must not."""
        self.between()
        if self._progress is not None:
            with self._progress.lock:
                self._exchange()

    def _exchange(self) -> None:
        """Let records progress."""
        if self._halt is not None and self._halt.loss is not None:
            return
        with self._messages():
            if self._kept is not None:
                self._kept.test()
            if self._heartbeat is not None:
                self._heartbeat.test()
            self._sender.test()
            self._orders.test()
            stops = [] if self._halt is None else self._halt.receivers
            take_arrived([*stops, *self._receivers])
            if self._chief is not None:
                self._chief.poll()

    @contextmanager
    def _messages(self) -> Iterator[None]:
        """Note that an error has nothing to do with the config that is being trained here.

        Where others go on without a rank that is lost, this one stops at its next safe point: what
        it trains must not be lost with it.
        """
        try:
            yield
        except BaseException as error:
            self._aside = error
            if self._halt is None or not isinstance(error, UnreachableError):
                raise
            self._halt.lose(error)

    def fail(self, error: BaseException) -> RunError:
        """Say where an error happened, keep its traceback, and return the error that says both."""
        text = (str(error).strip().splitlines() or [""])[0]  # the log has all of it
        cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
        place = self._program.place if self._program else self._place
        if self._aside is not None and self._aside in (error, error.__cause__):
            place = self._place
        folder, rank = self._rooms.folder, self._transport.rank
        failure = RunError(place, cause)
        log = os.path.relpath(folder.log(rank))
        self._rooms.log.error("%s (traceback in %s)", failure, log, exc_info=error)
        facts = {"place": str(place), "cause": cause}
        try:
            write_json(folder.path / f"failure-rank-{rank:04d}.json", facts)
        except OSError as unwritten:  # the disk may be why; the other ranks must still be ended
            self._rooms.log.warning("%s", unwritten)
        return failure

    def _part(self) -> None:
        """Wait politely until rank 0 has everything; MPI_Finalize would spin."""
        assert self._halt is not None
        assert self._program is not None
        halt = self._halt

        def done() -> bool:
            self._exchange()
            if self._chief is not None and self._chief.coordinator.all_done:
                self._chief.part()
            all_left = self._sender.test() and self._orders.test()
            return halt.is_asked or (all_left and halt.is_over)

        wait_until(done, self._notice)
        if halt.is_asked or not halt.is_over:  # once they are asked to, all stop, done or not
            self._program.put_away()
        if self._transport.rank > 0:
            self._sender.send({"kind": "leave", "last": True})
        if self._heartbeat is not None:
            self._heartbeat.end()
        if self._kept is not None:
            for rank in range(self._transport.size):
                if rank != self._transport.rank:
                    self._kept.send({"last": True}, rank)
        wait_until(self._all_said, self._check)
        self._rooms.group.barrier()
        record_clock(self._rooms)  # clocks drift apart in a long run
