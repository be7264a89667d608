"""One rank's part of a run, from the first word to the last: set up, walk, gather."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mophpc.data.store import open_store
from mophpc.errors import (
    CutOffError,
    InterruptError,
    LostError,
    UnreachableError,
    UserError,
)
from mophpc.events import EventLog
from mophpc.experiment import Experiment
from mophpc.hop.collectives import Group
from mophpc.hop.local import PeerError
from mophpc.hop.transport import Transport
from mophpc.report.results import Results, from_record
from mophpc.run.devices import Chosen, agree_on_devices
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.faults.watch import Watch
from mophpc.run.folder import RunFolder
from mophpc.run.known import PLAIN, Known, Wanted
from mophpc.run.logs import close_logger, rank_logger
from mophpc.run.ports import View
from mophpc.run.rank0.claim import claim
from mophpc.run.rooms import Rooms
from mophpc.run.setup import prepare_run
from mophpc.run.walking import Walk
from mophpc.schedule.plan import from_json
from mophpc.search.space import name_configs

ABORT_S = 0.7
"""When a rank aborts, Open MPI sends the others SIGTERM, and ends them half a second later. Then
that rank has said why, and it was no interruption."""

GRACE_S = 3.0
"""After a signal, the other ranks leave it to rank 0 for so long to end the run."""

CUT_GRACE_S = 1.0
"""The same where a host cannot be reached: the word of who aborts may not come through."""


def attend(
    experiment: Experiment,
    folder: RunFolder,
    transport: Transport,
    view: View,
    stop: StopFlag,
    chosen: Chosen,
    *,
    wanted: Wanted = PLAIN,
    turn: AbstractContextManager[Any] | None = None,
) -> Results:
    """Run this rank's part, until the run ends or a rank is lost. Collective.

    Raises:
        LostError: a rank is lost; only where others survive, else all ranks end.
        UnreachableError: likewise, of a message that failed.
    """
    group = Group(transport, stop.check)
    watch = Watch(transport, stop, survives=wanted.survive)
    known = Known()
    try:
        if turn is None:  # ranks that are threads end together
            watch.meet(group)
        bound = agree_on_devices(group, chosen, view)
        kind = bound.device.kind
        known.search.warn = view.warn
        begun = group.from_root(lambda: claim(experiment, folder, group.size, kind, wanted, known))
        if "results" in begun:
            if group.rank == 0:
                view.note(f"the run in {folder.path} has ended already")
            return from_record(begun["results"], str(folder.path))
        experiment = Experiment.model_validate(begun["experiment"])
        group.attempt(folder.make)
        rooms = group.attempt(
            lambda: Rooms(
                group=group,
                transport=transport,
                folder=folder,
                view=view,
                events=EventLog(folder.events(group.rank), group.rank, begun["time"]),
                log=rank_logger(folder, group.rank),
                bound=bound,
                turn=turn or nullcontext(),
                watch=watch,
            )
        )
        watch.begin(folder, rooms.log, experiment.faults.hang_s)
        return _walk(rooms, experiment, begun, stop, known, wanted)
    except LostError as error:  # every rank that sees it has said it, or left it to one that does
        if wanted.survive:
            raise
        # Launchers end all when a process dies, and most do it with fewer words than MPI_Abort.
        others_s = CUT_GRACE_S if isinstance(error, CutOffError) else GRACE_S
        time.sleep(ABORT_S if watch.speaks else others_s)
        watch.abort()
        raise
    except InterruptError as error:
        watch.close("interrupted")
        _stop(error, transport, view, stop, folder)
        raise
    finally:
        watch.close("failed")  # the first word counts
        if known.lock is not None:
            known.lock.close()


def _stop(
    error: InterruptError, transport: Transport, view: View, stop: StopFlag, folder: RunFolder
) -> None:
    """Say that the run was stopped, and end the ranks that do not end by themselves."""
    is_alone, is_root = transport.size == 1, transport.rank == 0
    if error.agreed or is_alone:
        if is_root:
            view.warn(f"mophpc: {error}; go on with --resume from {folder.path}")
        return
    if stop.is_terminated:
        time.sleep(ABORT_S)
    if is_root:
        view.warn(f"mophpc: {error}; what was written until then is in {folder.path}")
    else:
        time.sleep(GRACE_S)  # rank 0 has a journal to close, and the word
    transport.abort(error.exit_status)


def _walk(
    rooms: Rooms,
    experiment: Experiment,
    begun: dict[str, Any],
    stop: StopFlag,
    known: Known,
    wanted: Wanted,
) -> Results:
    """Set up and make the visits; an error that only this rank has ends all ranks."""
    walk, transport = Walk(rooms, stop, survives=wanted.survive), rooms.transport
    try:
        replay, directed = begun["replay"], begun["directed"]
        again = None if replay is None else from_json(replay)
        goes_on = "reach" in begun["again"]
        configs = name_configs(experiment, begun["configs"], directed or goes_on, begun["names"])
        where, digest = Path(experiment.data.store), begun["store"]
        prepared = prepare_run(
            rooms,
            experiment,
            rooms.group.attempt(lambda: open_store(where, digest)),
            configs,
            walk.between,
            again,
            known,
            begun["again"],
        )
        in_parts = directed or goes_on or experiment.schedule.is_renewed
        if again is not None:
            in_parts = again.spans is not None
        return walk.run(experiment, prepared, in_parts=in_parts)
    except (Exception, SystemExit, KeyboardInterrupt) as raised:  # user code may call sys.exit
        error = rooms.watch.instead_of(raised)
        walk.close("interrupted" if isinstance(error, InterruptError) else "failed")
        agreed = isinstance(error, UserError) and not walk.visiting
        agreed = agreed or (wanted.survive and isinstance(error, UnreachableError))
        if agreed or isinstance(error, InterruptError | PeerError | LostError):
            rooms.log.warning("ends: %s", error)
            is_lost = isinstance(error, LostError | UnreachableError)
            if rooms.is_root and not walk.visiting and not is_lost:
                rooms.folder.unclaim()
            raise error from (None if error is raised else raised)  # every rank has it
        failure = walk.fail(error)
        if transport.size > 1:
            transport.abort(failure.exit_status)
        raise failure from error
    finally:
        rooms.view.end()
        rooms.events.close()
        close_logger(rooms.log)
