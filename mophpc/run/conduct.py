"""One rank's part of a run, from the first word to the last: set up, walk, gather."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from mophpc.errors import InterruptError, Place, RunError, UserError
from mophpc.events import EventLog
from mophpc.experiment import Experiment
from mophpc.files import write_json
from mophpc.hop.collectives import Group
from mophpc.hop.local import PeerError
from mophpc.hop.reports import ReportReceiver, ReportSender
from mophpc.hop.transport import Transport, wait_until
from mophpc.report.results import ConfigResult, Results, from_record
from mophpc.run.carrier import Carrier
from mophpc.run.coordinator import Coordinator
from mophpc.run.folder import RunFolder
from mophpc.run.logs import close_logger, rank_logger
from mophpc.run.memory import peak_rss_bytes
from mophpc.run.ports import View
from mophpc.run.rank import Equipment, RankProgram
from mophpc.run.setup import Prepared, Rooms, claim, prepare_run
from mophpc.run.stopping import StopFlag
from mophpc.schedule import stops

ADVANCE_EVERY_S = 1e-3
"""Least time between two looks at the messages while training."""

GRACE_S = 3.0
"""After a signal, the other ranks leave it to rank 0 for so long to end the run."""


def run_rank(
    experiment: Experiment,
    folder: RunFolder,
    transport: Transport,
    view: View,
    stop: StopFlag,
    *,
    turn: AbstractContextManager[Any] | None = None,
) -> Results:
    """Run this rank's part. Collective."""
    group = Group(transport, stop.check)
    try:
        begun = group.from_root(lambda: claim(experiment, folder, group.size))
        experiment = Experiment.model_validate(begun["experiment"])
        group.attempt(folder.make)
        rooms = group.attempt(
            lambda: Rooms(
                group=group,
                folder=folder,
                view=view,
                events=EventLog(folder.events(group.rank), group.rank, begun["time"]),
                log=rank_logger(folder, group.rank),
                turn=turn or nullcontext(),
            )
        )
        return _walk(rooms, experiment, transport, stop)
    except InterruptError as error:
        if group.rank == 0:
            view.note(f"mophpc: {error}; what was finished is in {folder.path}")
        elif group.size > 1:
            time.sleep(GRACE_S)  # rank 0 has a journal to close, and the word
        if group.size > 1:
            transport.abort(error.exit_status)
        raise


def _walk(rooms: Rooms, experiment: Experiment, transport: Transport, stop: StopFlag) -> Results:
    """Set up and make the visits; an error that only this rank has ends all ranks."""
    walk = _Walk(rooms, transport, stop)
    try:
        return walk.run(experiment, prepare_run(rooms, experiment, walk.between))
    except (Exception, SystemExit) as error:  # user code may call sys.exit
        agreed = isinstance(error, UserError) and not walk.visiting
        if agreed or isinstance(error, InterruptError | PeerError):
            rooms.log.warning("ends: %s", error)
            if rooms.is_root and not walk.visiting:
                rooms.folder.unclaim()
            raise  # every rank has it
        failure = walk.fail(error)
        if transport.size > 1:
            transport.abort(failure.exit_status)
        raise failure from error
    finally:
        rooms.view.end()
        rooms.events.close()
        close_logger(rooms.log)


class _Walk:
    """The visits of one rank, with messages looked after in between."""

    def __init__(self, rooms: Rooms, transport: Transport, stop: StopFlag) -> None:
        self._rooms = rooms
        self._transport = transport
        self._stop = stop
        self._advance: Callable[[], None] = lambda: None
        self._advanced_s = 0.0
        self._program: RankProgram | None = None
        self._place = Place(transport.rank, transport.size, socket.gethostname())

    @property
    def visiting(self) -> bool:
        """Whether the visits have begun, so that no rank waits for another's word any more."""
        return self._program is not None

    def between(self) -> None:
        """Called after each batch: let messages progress, notice signals."""
        self._stop.check()
        now = time.perf_counter()
        if now - self._advanced_s >= ADVANCE_EVERY_S:
            self._advanced_s = now
            self._advance()

    def run(self, experiment: Experiment, prepared: Prepared) -> Results:
        """Collective. Make this rank's visits; return the results."""
        rooms, plan = self._rooms, prepared.plan
        coordinator = None
        if rooms.is_root:
            coordinator = Coordinator(
                plan, prepared.configs, experiment.objective, rooms.folder, rooms.view
            )
            coordinator.write_plan()
            rooms.view.begin(plan, prepared.configs)
        try:
            self._visit_all(experiment, prepared, coordinator)
        except BaseException:
            with suppress(OSError):  # what ended the run says more than a full disk does
                _keep(coordinator)
            raise
        _keep(coordinator)
        rooms.view.end()
        record = rooms.group.share(
            None if coordinator is None else write_results(coordinator, experiment, rooms.folder)
        )
        return from_record(record, str(rooms.folder.path))

    def _visit_all(
        self, experiment: Experiment, prepared: Prepared, coordinator: Coordinator | None
    ) -> None:
        rooms, transport, plan = self._rooms, self._transport, prepared.plan
        own = stops(plan, transport.rank)
        sender = ReportSender(transport)
        receiver = None
        if coordinator is not None:
            receiver = ReportReceiver(transport, coordinator.handle)
        carrier = Carrier(
            own,
            transport,
            nbytes=prepared.trainer.nbytes,
            allocate=prepared.trainer.allocate,
            max_arenas=plan.max_arenas,
            lookahead=experiment.schedule.lookahead,
            events=rooms.events,
            check=lambda: self._look_after(sender, receiver),
        )

        def advance() -> None:
            carrier.advance()
            self._look_after(sender, receiver)

        self._advance = advance
        equipment = Equipment(
            configs=prepared.configs,
            shards=prepared.shards,
            valid=prepared.valid,
            num_shards=plan.num_shards,
            trainer=prepared.trainer,
            folder=rooms.folder,
            events=rooms.events,
            report=sender.send if coordinator is None else coordinator.handle,
            turn=rooms.turn,
            log=rooms.log,
        )
        before = peak_rss_bytes()
        self._program = RankProgram(own, carrier, equipment, self._place)
        self._program.run()
        most = {
            "most_arenas": carrier.pool.most,
            "start_rss_bytes": before,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        rooms.events.write("end", rooms.events.now(), rooms.events.now(), **most)
        equipment.report({"kind": "rank", "rank": transport.rank, "last": True, **most})
        self._part(sender, receiver, coordinator)

    def _look_after(self, sender: ReportSender, receiver: ReportReceiver | None) -> None:
        self._stop.check()
        sender.test()
        if receiver is not None:
            receiver.test()

    def fail(self, error: BaseException) -> RunError:
        """Say where an error happened, keep its traceback, and return the error that says both."""
        text = (str(error).strip().splitlines() or [""])[0]  # the log has all of it
        cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
        place = self._program.place if self._program else self._place
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

    def _part(
        self,
        sender: ReportSender,
        receiver: ReportReceiver | None,
        coordinator: Coordinator | None,
    ) -> None:
        """Wait politely until rank 0 has everything; MPI_Finalize would spin."""

        def done() -> bool:
            if receiver is not None and coordinator is not None:
                receiver.test()
                return coordinator.all_done
            return sender.test()

        wait_until(done, self._stop.check)
        self._rooms.group.barrier()


def _keep(coordinator: Coordinator | None) -> None:
    """Put the schedule as it was run, and the journal, on disk."""
    if coordinator is not None:
        coordinator.write_plan()
        coordinator.close()


def write_results(
    coordinator: Coordinator, experiment: Experiment, folder: RunFolder
) -> dict[str, Any]:
    """Write results.json and results.csv; return the former."""
    rows = []
    for config, history in zip(coordinator.configs, coordinator.histories, strict=True):
        final = history.final or {"status": "unfinished", "state_sha256": ""}
        metrics = history.epochs[-1] if history.epochs else {}
        rows.append(
            ConfigResult(
                config_id=config.config_id,
                config=config.name,
                status=final["status"],
                hyperparameters=dict(config.values),
                epochs=len(history.epochs),
                final={k: v for k, v in metrics.items() if k != "seconds"},
                best=history.best,
                best_epoch=history.best_epoch,
                state_sha256=final["state_sha256"],
                route=coordinator.route(config.config_id),
            )
        )
    objective = experiment.objective
    results = Results(objective.metric, objective.mode or "min", coordinator.best(), rows)
    results.write(folder.results, folder.table)
    return results.record()
