"""A run whose ranks are threads of this process: to try an experiment without MPI.

Ranks take turns to compute, so that each visit has torch's generators to itself; what comes out
is the same as with MPI, to the byte.
"""

from __future__ import annotations

import threading

from mophpc.errors import InterruptError, LaunchError, MophpcError
from mophpc.experiment import Experiment
from mophpc.hop.local import LocalTransport, LocalWorld, PeerError
from mophpc.report.results import Results
from mophpc.run.devices import bind_device
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.folder import RunFolder
from mophpc.run.known import PLAIN, Wanted
from mophpc.run.ports import View
from mophpc.run.survive import run_rank


def run_local(
    experiment: Experiment,
    folder: RunFolder,
    ranks: int,
    view: View,
    stop: StopFlag,
    wanted: Wanted = PLAIN,
) -> Results:
    """Run with `ranks` threads.

    Raises:
        MophpcError: what the first rank to fail raised.
    """
    if ranks < 1:
        raise LaunchError(f"ranks is {ranks}; allowed: 1 or more")
    world = LocalWorld(ranks)
    chosen = bind_device(experiment.device, 0)
    results: dict[int, Results] = {}
    failures: list[BaseException] = []

    def body(rank: int) -> None:
        transport = LocalTransport(world, rank)
        try:
            results[rank] = run_rank(
                experiment, folder, transport, view, stop, chosen, wanted=wanted, turn=world.turn
            )
        except BaseException as error:  # raised again in the caller's thread
            failures.append(error)
            world.failed = True

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.1)  # in pieces, so that a signal is noticed
    if failures:
        raise _first_cause(failures)
    return results[0]


def _first_cause(failures: list[BaseException]) -> BaseException:
    """Return the failure that made the others fail."""
    for kind in (InterruptError, MophpcError, Exception):
        for error in failures:
            if (
                isinstance(error, kind)
                and not isinstance(error.__cause__, PeerError)
                and not isinstance(error, PeerError)
            ):
                return error
    return failures[0]
