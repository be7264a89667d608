"""The first thing that rank 0 does: it looks at what is asked, and makes the run folder its own."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mophpc._version import __version__
from mophpc.costs_file import load_costs
from mophpc.data.store import StoreInfo, open_store
from mophpc.errors import LaunchError, RunFolderError
from mophpc.experiment import Experiment, with_device
from mophpc.report.results import read_results
from mophpc.report.trackers.feed import check_installed
from mophpc.run.folder import RunFolder
from mophpc.run.inside import check_inside
from mophpc.run.known import Known, Wanted
from mophpc.run.planning import again_of, check_configs, read_plan, read_replay
from mophpc.run.rank0.searching import begin_search, is_directed
from mophpc.run.recovery.lock import Lock
from mophpc.run.recovery.resume import has_begun, read_run
from mophpc.schedule import assign_shards
from mophpc.schedule.plan import to_json
from mophpc.search.space import name_configs

Record = dict[str, Any]

PATIENCE_S = 120.0
"""The rank that died may have had the run folder's lock; NFS lets go of it after 90 s."""


def claim(
    experiment: Experiment,
    folder: RunFolder,
    num_ranks: int,
    device: str,
    wanted: Wanted,
    known: Known,
) -> Record:
    """Check on rank 0 what can be checked before anything is read, and make the run folder.

    Args:
        experiment: as given.
        folder: of the run.
        num_ranks: that train.
        device: that they train on.
        wanted: what is to be done.
        known: gets the method, if there is one, and what is known of a run that goes on.

    Returns:
        What all ranks must know; only `results` where the run has ended already.

    Raises:
        ExperimentError: `build` cannot be imported.
        StoreError: there is no usable store.
        LaunchError: there are more ranks than shards, or the plan to replay is for other sizes.
        CostsError: the costs file cannot be read, or lacks a config.
        RunFolderError: the folder cannot take a run, or holds that of another experiment.
    """
    experiment = with_device(experiment, device)  # what it is told to be automatically
    experiment.load_build()
    check_installed(experiment.track)
    store = open_store(Path(experiment.data.store))
    assign_shards(store.num_shards, num_ranks)
    settings = experiment.resolved(versions() | {"store": store.digest})
    goes_on = wanted.resume and folder.experiment.exists()
    if goes_on:
        check_inside(folder.path)
        known.lock = Lock(folder.lock, PATIENCE_S if wanted.is_recovery else 0.0)
        for failure in folder.path.glob("failure-rank-*.json"):
            failure.unlink(missing_ok=True)
        if has_begun(folder, settings):
            return _go_on(experiment, folder, settings, store, known)
    record = None if wanted.replay is None else read_plan(wanted.replay)
    rows = None if record is None else record.get("values")
    if wanted.replay is not None and record is not None and rows is not None:
        check_configs(wanted.replay, record, experiment)
    directed = rows is not None or is_directed(experiment)
    if rows is None:  # once: a constraint is the user's code
        rows = begin_search(experiment, num_ranks, known.search)
    names = None if record is None or "values" not in record else record.get("configs")
    configs = name_configs(experiment, rows, directed, names)
    if experiment.schedule.costs_file is not None:
        load_costs(experiment.schedule.costs_file).check_names(c.name for c in configs)
    plan = None
    if wanted.replay is not None and record is not None:
        if known.search.method is not None:
            raise LaunchError(
                f"the plan '{wanted.replay}' has no decisions in it, and search.method is "
                f'"{experiment.method}"; give the plan.json of a run of this experiment'
            )
        sizes = (len(configs), num_ranks, store.num_shards, experiment.epochs)
        names_now = [config.name for config in configs]
        plan = to_json(read_replay(wanted.replay, record, sizes, names_now))
    if not goes_on:
        folder.claim(settings)
        known.lock = Lock(folder.lock)
    return {
        "experiment": experiment.model_dump(),
        "store": store.digest,
        "configs": rows,
        "names": [config.name for config in configs],
        "directed": directed,
        "again": again_of(record),
        "time": time.time(),
        "replay": plan,
    }


def _go_on(
    experiment: Experiment,
    folder: RunFolder,
    settings: Mapping[str, Any],
    store: StoreInfo,
    known: Known,
) -> Record:
    """Take over a run that was cut off."""
    known.resumption = found = read_run(folder, settings, store.num_shards)
    if folder.results.exists():
        return {"results": read_results(folder.path).record()}
    if not os.access(folder.path, os.W_OK):
        raise RunFolderError(
            f"the run folder '{folder.path}' cannot be written; make it writable, or give a copy"
        )
    directed, told = is_directed(experiment), found.told
    if directed:  # the method begins as it did: told again what it was told, it will decide alike
        begin_search(experiment, told.num_ranks, known.search)
    return {
        "experiment": experiment.model_dump(),
        "store": store.digest,
        "configs": [values for _, values in told.configs],
        "names": [name for name, _ in told.configs],
        "directed": directed,
        "again": {
            "changes": told.changes,
            "unbuilt": found.unbuilt,
            "copies": found.copies,
            "first": told.num_first,
            "reach": [max(visits, default=-1) + 1 for visits in told.visits],
        },
        "time": told.time_s,
        "replay": None,
    }


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"python": platform.python_version(), "mophpc": __version__}
    return found | {name: version(name) for name in ("torch", "numpy", "zarr", "mpi4py")}
