"""The part of one rank, again and again where ranks die and the others are to go on.

When a rank is lost, those that live write the states that they have, connect anew without it, and
go on as a run does that was cut off: the journal says what was promised, and the newest state of
each config is on disk. The lowest of them leads; the shards of the lost one are theirs now.
"""

from __future__ import annotations

import gc
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from mophpc.errors import HopError, LaunchError, LostError, UnreachableError
from mophpc.experiment import Experiment
from mophpc.hop.transport import Transport
from mophpc.report.results import Results
from mophpc.run.conduct import attend
from mophpc.run.devices import Chosen
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.folder import RunFolder
from mophpc.run.known import PLAIN, Wanted
from mophpc.run.ports import View


def run_rank(
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
    """Run this rank's part. Collective.

    Raises:
        LaunchError: ranks are to survive, and the MPI ends them all when one dies.
        HopError: messages fail, and no rank has died.
    """
    if not wanted.survive:
        return attend(experiment, folder, transport, view, stop, chosen, wanted=wanted, turn=turn)
    check_survival(experiment, transport)
    launched = transport.launched_as()
    while True:
        said, results = "a rank has died", None
        try:
            results = attend(
                experiment, folder, transport, view, stop, chosen, wanted=wanted, turn=turn
            )
        except (LostError, UnreachableError) as error:
            if transport.size == 1:
                raise
            said = str(error)
        # One rank may have all results while another waits for one that has died; all of them
        # are needed to connect anew, so none leaves before all have ended well.
        begin_s = time.monotonic()
        if transport.all_well(is_well=results is not None) and results is not None:
            return results
        before, transport = transport, transport.survivors()
        if transport.size == before.size:  # it would fail again, and again
            raise HopError(f"no rank has died, and yet: {said}")
        gc.collect()  # states and rows of before, in cycles of objects
        stop.go_on()
        wanted = replace(wanted, resume=True, is_recovery=True)
        if transport.rank == 0:
            took_s, now = time.monotonic() - begin_s, transport.launched_as()
            gone = ", ".join(str(rank) for rank in launched if rank not in now)
            view.warn(
                f"mophpc: {said}; {transport.size} go on, connected in {took_s:.2g} s; they are "
                f"numbered anew, without {gone} of the {len(launched)} that were launched"
            )


def check_survival(experiment: Experiment, transport: Transport) -> None:
    """Return if ranks can go on when one dies.

    Raises:
        LaunchError: they cannot.
    """
    text = None
    if not transport.survives:
        text = (
            "--survive needs an MPI that goes on when a process dies: start with Open MPI's "
            "'mpirun --with-ft ulfm'"
        )
    elif experiment.checkpoints.states == "off":
        text = (
            'checkpoints.states is "off", and --survive needs states to go on from; allowed: '
            '"epoch" or minutes'
        )
    if text is not None:
        error = LaunchError(text)
        error.agreed = True  # every rank finds the same
        raise error
