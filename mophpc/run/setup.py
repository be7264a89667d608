"""What happens before the first visit: every step is agreed on by all ranks.

A mistake found on any rank is raised on all, so that none waits for one that has gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mophpc.costs_file import LinkCosts
from mophpc.data.shard import ShardReader, read_shard, read_valid
from mophpc.data.store import StoreInfo
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment
from mophpc.hop.clock import compare_clocks
from mophpc.hop.collectives import Group
from mophpc.run.costing import find_costs
from mophpc.run.known import Known
from mophpc.run.planning import Planning
from mophpc.run.ports import Rows
from mophpc.run.recovery.resume import sound_states
from mophpc.run.rooms import Rooms
from mophpc.schedule import assign_shards, digest
from mophpc.schedule.costs import Costs
from mophpc.schedule.plan import Plan, from_json
from mophpc.search.space import Config
from mophpc.train.probe import Probe
from mophpc.train.trainer import TorchTrainer, set_threads


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that the visits need."""

    configs: list[Config]
    """Those that there are at the beginning; others may come."""
    store: StoreInfo
    plan: Plan
    costs: Costs
    """What the plan was made from; real on rank 0 only."""
    link: LinkCosts | None
    shards: dict[int, Rows]
    valid: Rows
    trainer: TorchTrainer
    checked: bool
    """Whether states are checked when they have arrived."""
    known: Known = field(default_factory=Known)
    changes: Sequence[dict[str, Any]] = ()
    """Copies of states, where a plan is walked again: what `Roster.learn` takes."""
    ends: Sequence[int] | None = None
    """By config, the step before which it ended at the latest, where a plan is walked again."""


def prepare_run(
    rooms: Rooms,
    experiment: Experiment,
    store: StoreInfo,
    configs: tuple[Config, ...],
    between: Callable[[], None],
    replay: Plan | None,
    known: Known,
    again: Mapping[str, Any] = MappingProxyType({}),
) -> Prepared:
    """Collective. Lay the configs' states out, find out what they cost, plan, load shards.

    Args:
        rooms: of this rank.
        experiment: that is run.
        store: that all ranks have opened.
        configs: that there are.
        between: called after each batch that is tried; it may raise.
        replay: the plan of an earlier run, to be walked again.
        known: what rank 0 keeps to itself.
        again: what is known of configs where a plan is walked again or a run goes on.

    Raises:
        UserError: on all ranks, if any rank met one.
    """
    group = rooms.group
    record_clock(rooms)
    set_threads(experiment.threads)
    if "reach" in again:
        find_states(rooms, configs, again["reach"], known)
    if rooms.is_root:
        rooms.view.note(f"reading {store.num_shards} shards of {store.path.name}")
    # The first shard of a rank's block is its own however the others are balanced.
    first = assign_shards(store.num_shards, group.size).index(group.rank)
    first_shard = group.attempt(lambda: _load(rooms, experiment, store, [first])[first])
    read = group.attempt(lambda: read_valid(store))
    trainer = TorchTrainer(
        group.attempt(experiment.load_build),
        [(config.name, config.values) for config in configs],
        fields=tuple(field.name for field in store.fields),
        seed=experiment.seed,
        between=between,
        device=rooms.bound.device,
        buffers=experiment.device.buffers,
    )
    spans = replay.spans if replay is not None and replay.spans else ()
    # Of a plan that is walked again: what failed fails again, and copies need no probe.
    skipped = [*again.get("unbuilt", ()), *again.get("copies", ())]
    skipped += [config_id for config_id, (begin, _) in enumerate(spans) if begin]
    probed = [c for c in range(len(configs)) if c not in skipped]
    late = range(again["first"], len(configs)) if "first" in again else ()
    failed = _lay_out(rooms, trainer, probed, len(configs), first_shard, store.shard_rows, late)
    if known.resumption is not None:
        known.resumption.fail(failed)
    trainer.learn(again.get("changes", ()))
    # States come first, then rows where there is room left.
    group.attempt(lambda: _make_room(rooms, trainer, experiment.device.buffers))
    placing = rooms.bound.placing(experiment.device.memory_bytes)
    rows, valid = group.attempt(lambda: (placing.place(first_shard), placing.place(read)))
    group.attempt(lambda: _prime(rooms, trainer, len(configs), rows, valid, store.shard_rows))
    wanted = replay is None and experiment.schedule.planner == "balanced"
    wanted = wanted and "reach" not in again  # what visits cost was measured
    pilot = find_costs(rooms, experiment, configs, trainer, rows, valid) if wanted else None
    planning = Planning(rooms, experiment, store, configs, trainer, pilot, replay, known)
    planned = group.from_root(planning.run)
    plan = from_json(planned["plan"])
    others = [shard for shard in plan.shards_of(group.rank) if shard != first]
    loaded = group.attempt(lambda: _load(rooms, experiment, store, others))
    shards = {first: rows} | {shard: placing.place(own) for shard, own in loaded.items()}
    rooms.log.info("plan %s, %d visits here", digest(plan), len(plan.visits_by_rank[group.rank]))
    if experiment.device.direct:
        _send_directly(rooms, trainer, checked=planned["checked"])
    link = None if pilot is None else pilot.costs.link
    return Prepared(
        list(configs),
        store,
        plan,
        planning.costs,
        link,
        shards,
        valid,
        trainer,
        planned["checked"],
        known,
        again.get("changes", ()),
        again.get("ends"),
    )


def find_states(
    rooms: Rooms, configs: Sequence[Config], reach: Sequence[int], known: Known
) -> None:
    """Collective. Find the newest sound state of each config of a run that goes on."""
    group = rooms.group
    mine = range(group.rank, len(configs), group.size)
    found = group.gather(group.attempt(lambda: sound_states(rooms.folder, configs, mine, reach)))
    if known.resumption is not None:
        for states, damaged in found:
            for text in damaged:
                rooms.view.warn(f"note: {text}")
            known.resumption.take_states(states)
    resumption = known.resumption
    group.attempt(lambda: None if resumption is None else resumption.find_copies(rooms.folder))
    if resumption is not None:
        resumption.tidy(rooms.folder)


def _lay_out(
    rooms: Rooms,
    trainer: TorchTrainer,
    probed: Sequence[int],
    num_configs: int,
    rows: Rows,
    shard_rows: tuple[int, ...],
    late: Container[int] = (),
) -> list[int]:
    """Collective. Find out how the states of some configs are laid out; return those that cannot.

    Of a config that came on the way, that is no mistake that ends a run.
    """
    if rooms.is_root:
        rooms.view.note(f"trying {num_configs} configs on a batch")
    own = rooms.group.attempt(lambda: _probe_own(rooms, trainer, probed, rows, shard_rows, late))
    probes = _share_probes(rooms.group, own, num_configs)
    trainer.adopt(probes, shard_rows)
    return [config_id for config_id in probed if probes[config_id] is None]


def _send_directly(rooms: Rooms, trainer: TorchTrainer, *, checked: bool) -> None:
    """Collective. Let states go out from the device's memory, if all can and none is checked."""
    if not checked:
        directly = rooms.bound.sends_directly(rooms.transport, rooms.group, rooms.view)
        trainer.staging.is_direct = directly
    elif rooms.is_root:
        rooms.view.note("note: hops have a checksum, so states are staged through the host")


def record_clock(rooms: Rooms) -> None:
    """Collective. Write down how far this rank's clock is from rank 0's."""
    with rooms.events.timed("clock") as facts:
        clock = compare_clocks(rooms.transport, rooms.group, rooms.events.now)
        facts |= {"offset_s": clock.offset_s, "error_s": clock.error_s}


def _load(
    rooms: Rooms, experiment: Experiment, store: StoreInfo, wanted: Sequence[int]
) -> dict[int, ShardReader]:
    """Read shards that the rank owns."""
    data = experiment.data
    most = -(-store.num_shards // rooms.group.size)  # shards of a rank, before they are balanced
    budget = None if data.memory_bytes is None else max(1, data.memory_bytes // most)
    stage = None if data.stage is None else Path(data.stage)
    shards = {}
    for shard in wanted:
        with rooms.events.timed("load", shard=shard) as facts:
            reader = read_shard(store, shard, memory_budget=budget, stage=stage)
            facts |= {"rows": reader.rows, "nbytes": reader.nbytes}
        shards[shard] = reader
    return shards


def _probe_own(
    rooms: Rooms,
    trainer: TorchTrainer,
    probed: Sequence[int],
    rows: Rows,
    shard_rows: tuple[int, ...],
    late: Container[int],
) -> list[Any]:
    """Probe every size-th config: the ranks share the work."""
    found = []
    for config_id in probed[rooms.group.rank :: rooms.group.size]:
        rooms.group.check()  # compiling takes seconds, and a signal should not
        with rooms.turn, rooms.events.timed("probe", config=config_id):
            try:
                probe = trainer.probe(config_id, rows, shard_rows)
            except ExperimentError as error:
                if config_id in late:
                    rooms.log.warning("%s", error, exc_info=error)
                    continue
                if error.__cause__ is None:
                    raise
                log = os.path.relpath(rooms.folder.log(rooms.group.rank))
                rooms.log.warning("%s", error, exc_info=error)
                raise ExperimentError(f"{error} (traceback in {log})") from error
            found.append([config_id, probe.to_json()])
    return found


def _make_room(rooms: Rooms, trainer: TorchTrainer, wanted: int) -> None:
    """Take memory on the device for states, before there are rows and activations."""
    found = trainer.make_room()
    if 0 < found < wanted:
        rooms.log.warning(
            "the device has room for %d states, of %d that it should have", found, wanted
        )


def _prime(
    rooms: Rooms,
    trainer: TorchTrainer,
    num_configs: int,
    rows: Rows,
    valid: Rows,
    shard_rows: tuple[int, ...],
) -> None:
    """Compile before the first visit what is to be compiled: visits then cost what they cost."""
    for config_id in range(num_configs):
        rooms.group.check()
        if trainer.knows(config_id) and trainer.compiles(config_id):
            with rooms.turn, rooms.events.timed("compile", config=config_id):
                trainer.prime(config_id, rows, valid, shard_rows)


def _share_probes(group: Group, own: list[Any], num_configs: int) -> list[Probe | None]:
    """Collective. Give every rank every probe; equal ones travel once."""
    unique: list[Any] = []
    index: list[int | None] = [None] * num_configs
    for config_id, probe in (pair for pairs in group.gather(own) for pair in pairs):
        if probe not in unique:
            unique.append(probe)
        index[config_id] = unique.index(probe)
    shared = group.share([unique, index])
    probes = [Probe.from_json(probe) for probe in shared[0]]
    return [None if i is None else probes[i] for i in shared[1]]
