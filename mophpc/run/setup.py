"""What happens before the first visit: every step is agreed on by all ranks.

A mistake found on any rank is raised on all, so that none waits for one that has gone.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mophpc._version import __version__
from mophpc.data.shard import ShardReader, read_shard, read_valid
from mophpc.data.store import StoreInfo, open_store
from mophpc.errors import ExperimentError
from mophpc.events import EventLog
from mophpc.experiment import Experiment
from mophpc.hop.collectives import Group
from mophpc.run.folder import RunFolder
from mophpc.run.ports import View
from mophpc.schedule import assign_shards, bytes_moved, check_plan, digest, make_plan
from mophpc.schedule.plan import Plan, from_json, to_json
from mophpc.search.space import Config, make_configs
from mophpc.train.checks import check_objective, ordinary_builds
from mophpc.train.trainer import Probe, TorchTrainer, set_threads


@dataclass(frozen=True, slots=True)
class Rooms:
    """What one rank has of the run around it."""

    group: Group
    folder: RunFolder
    view: View
    events: EventLog
    log: logging.Logger
    turn: AbstractContextManager[Any]
    """Held while computing; only ranks of one process have to take turns."""

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0."""
        return self.group.rank == 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that the visits need."""

    configs: tuple[Config, ...]
    plan: Plan
    shards: dict[int, ShardReader]
    valid: ShardReader
    trainer: TorchTrainer


def claim(experiment: Experiment, folder: RunFolder, num_ranks: int) -> dict[str, Any]:
    """Check on rank 0 what can be checked before anything is read, and make the run folder.

    Raises:
        ExperimentError: `build` cannot be imported.
        StoreError: there is no usable store.
        LaunchError: there are more ranks than shards.
        RunFolderError: the folder cannot take a run.
    """
    experiment.load_build()
    store = open_store(Path(experiment.data.store))
    assign_shards(store.num_shards, num_ranks)
    folder.claim(experiment.resolved(versions() | {"store": store.digest}))
    return {"experiment": experiment.model_dump(), "time": time.time()}


def prepare_run(rooms: Rooms, experiment: Experiment, between: Callable[[], None]) -> Prepared:
    """Collective. Load shards, lay the configs' states out, plan.

    Raises:
        UserError: on all ranks, if any rank met one.
    """
    group = rooms.group
    set_threads(experiment.threads)
    configs = make_configs(experiment)
    store = group.attempt(lambda: open_store(Path(experiment.data.store)))
    if rooms.is_root:
        rooms.view.note(f"reading {store.num_shards} shards of {store.path.name}")
    shards, valid = group.attempt(lambda: _load(rooms, experiment, store))
    trainer = TorchTrainer(
        group.attempt(experiment.load_build),
        [(config.name, config.values) for config in configs],
        fields=tuple(field.name for field in store.fields),
        seed=experiment.seed,
        between=between,
    )
    first = shards[min(shards)]
    if rooms.is_root:
        rooms.view.note(f"trying {len(configs)} configs on a batch")
    own = group.attempt(lambda: _probe_own(rooms, trainer, len(configs), first, store.shard_rows))
    trainer.adopt(_share_probes(group, own, len(configs)))
    plan = from_json(group.from_root(lambda: _plan(rooms, experiment, store, configs, trainer)))
    rooms.log.info("plan %s, %d visits here", digest(plan), len(plan.visits_by_rank[group.rank]))
    return Prepared(configs, plan, shards, valid, trainer)


def _load(
    rooms: Rooms, experiment: Experiment, store: StoreInfo
) -> tuple[dict[int, ShardReader], ShardReader]:
    """Read the rank's own shards and the validation split."""
    rank = rooms.group.rank
    owners = assign_shards(store.num_shards, rooms.group.size)
    own = [shard for shard, owner in enumerate(owners) if owner == rank]
    data = experiment.data
    budget = None if data.memory_bytes is None else max(1, data.memory_bytes // len(own))
    stage = None if data.stage is None else Path(data.stage)
    shards = {}
    for shard in own:
        with rooms.events.timed("load", shard=shard) as facts:
            reader = read_shard(store, shard, memory_budget=budget, stage=stage)
            facts |= {"rows": reader.rows, "nbytes": reader.nbytes}
        shards[shard] = reader
    return shards, read_valid(store)


def _probe_own(
    rooms: Rooms,
    trainer: TorchTrainer,
    num_configs: int,
    rows: ShardReader,
    shard_rows: tuple[int, ...],
) -> list[Any]:
    """Probe every size-th config: the ranks share the work."""
    found = []
    for config_id in range(rooms.group.rank, num_configs, rooms.group.size):
        with rooms.turn, rooms.events.timed("probe", config=config_id):
            try:
                probe = trainer.probe(config_id, rows, shard_rows)
            except ExperimentError as error:
                if error.__cause__ is None:
                    raise
                log = os.path.relpath(rooms.folder.log(rooms.group.rank))
                rooms.log.warning("%s", error, exc_info=error)
                raise ExperimentError(f"{error} (traceback in {log})") from error
            found.append([config_id, probe.to_json()])
    return found


def _share_probes(group: Group, own: list[Any], num_configs: int) -> list[Probe]:
    """Collective. Give every rank every probe; equal ones travel once."""
    unique: list[Any] = []
    index = [0] * num_configs
    for config_id, probe in (pair for pairs in group.gather(own) for pair in pairs):
        if probe not in unique:
            unique.append(probe)
        index[config_id] = unique.index(probe)
    shared = group.share([unique, index])
    probes = [Probe.from_json(probe) for probe in shared[0]]
    return [probes[i] for i in shared[1]]


def _plan(
    rooms: Rooms,
    experiment: Experiment,
    store: StoreInfo,
    configs: tuple[Config, ...],
    trainer: TorchTrainer,
) -> dict[str, Any]:
    """Plan and check on rank 0, and write down what is about to happen."""
    names = [config.name for config in configs]
    check_objective(trainer, names, experiment.objective.metric)
    plan = make_plan(
        experiment.schedule.policy,
        num_configs=len(configs),
        num_shards=store.num_shards,
        num_ranks=rooms.group.size,
        num_epochs=experiment.epochs,
        seed=experiment.seed,
    )
    check_plan(plan, lookahead=experiment.schedule.lookahead)
    for line in ordinary_builds(trainer, names):
        rooms.view.note(line)
    moved = bytes_moved(plan, [trainer.nbytes(c.config_id) for c in configs])
    rooms.log.info("%d bytes of state to move", moved)
    return to_json(plan)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"python": platform.python_version(), "mophpc": __version__}
    return found | {name: version(name) for name in ("torch", "numpy", "zarr", "mpi4py")}
