"""Start a run: choose a transport and a view."""

from __future__ import annotations

import os
from pathlib import Path

from mophpc.errors import ExperimentError, LaunchError
from mophpc.experiment import Experiment
from mophpc.report.live import LiveView
from mophpc.report.results import Results
from mophpc.run.devices import bind_device, local_rank_of
from mophpc.run.faults import startup
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.folder import RunFolder
from mophpc.run.known import Wanted
from mophpc.run.local import run_local
from mophpc.run.memory import keep_freed_memory
from mophpc.run.survive import run_rank

PROGRESS = ("auto", "bar", "lines", "off")


def run_experiment(
    experiment: Experiment,
    out: str | Path,
    *,
    transport: str = "mpi",
    ranks: int = 1,
    progress: str = "auto",
    replay: str | Path | None = None,
    resume: bool = False,
    survive: bool = False,
    is_last: bool = False,
) -> Results:
    """Train every config of an experiment. Collective: all ranks of the launcher call it.

    Args:
        experiment: what to train.
        out: the run folder to make.
        transport: `mpi`, or `local` for ranks that are threads of this process and take turns.
        ranks: how many, for `local`.
        progress: `auto`, `bar`, `lines` or `off`.
        replay: the `plan.json` of an earlier run, to be walked again as it is.
        resume: go on with the run that `out` holds, if it holds one that was cut off; return the
            results of one that has ended.
        survive: let the others go on when a rank dies; needs an MPI that does.
        is_last: nothing follows in this process, and signals are to change nothing after the run.

    Returns:
        The results, on every rank.

    Raises:
        UserError: the experiment, the store, the run folder or the launch is wrong; on all ranks.
        RunError: something failed inside the run. With more than one rank, MPI_Abort ends all.
        InterruptError: a signal came. With more than one rank, MPI_Abort ends all.
    """
    if not isinstance(experiment, Experiment):
        raise ExperimentError(
            f"run_experiment was given a {type(experiment).__name__}; allowed: an Experiment"
        )
    if progress not in PROGRESS:
        raise LaunchError(f"progress is '{progress}'; allowed: {', '.join(PROGRESS)}")
    folder = RunFolder(Path(out).resolve())
    if replay is not None and resume:
        raise LaunchError(f"replay is '{replay}' and resume is true; leave one out")
    wanted = Wanted(None if replay is None else Path(replay), resume, survive)
    view = LiveView(progress)
    with StopFlag(experiment.signals.also, is_last=is_last) as stop:
        if transport == "local":
            return run_local(experiment, folder, ranks, view, stop, wanted)
        if transport != "mpi":
            raise LaunchError(f"transport is '{transport}'; allowed: mpi, local")
        startup.begin(folder.path)
        keep_freed_memory()
        from mophpc.hop.mpi import start_mpi

        # An MPI that sends from GPU memory looks at the current device when it starts.
        local_rank = local_rank_of(os.environ, lambda: start_mpi().local_rank())
        chosen = bind_device(experiment.device, local_rank)
        return run_rank(experiment, folder, start_mpi(), view, stop, chosen, wanted=wanted)
