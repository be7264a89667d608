"""What visits, evaluations and hops cost: from a file, or measured before the first visit.

Afterwards a run writes what it has learned, as a costs file for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mophpc.costs_file import ConfigCosts, CostsFile, LinkCosts, load_costs
from mophpc.experiment import EQUAL, Experiment
from mophpc.hop.link import Link, measure_link
from mophpc.run.folder import RunFolder
from mophpc.run.ports import Rows
from mophpc.run.rooms import Rooms
from mophpc.schedule.costs import Costs
from mophpc.schedule.plan import Plan
from mophpc.search.space import Config
from mophpc.train.pilot import Timing, time_config
from mophpc.train.trainer import TorchTrainer

PILOT_BATCHES, PILOT_S = 6, 0.2
"""Of each config at most so many batches are timed, and for so many seconds."""

ALIKE, PILOT_ALIKE = 1.15, 1.5
"""Ranks whose times for the same work differ by less than this factor are taken as equally fast;
after a few batches only if they differ much, since shards are given to ranks by it once for all."""


@dataclass(frozen=True, slots=True)
class Pilot:
    """What is known before the first visit, on rank 0."""

    costs: CostsFile
    took_s: float
    """Seconds that it took to find out."""


def find_costs(
    rooms: Rooms,
    experiment: Experiment,
    configs: Sequence[Config],
    trainer: TorchTrainer,
    rows: Rows,
    valid: Rows,
) -> Pilot | None:
    """Collective. Return what things cost, on rank 0; None where they are told to be equal.

    Raises:
        CostsError: the costs file cannot be read, or lacks a config; on all ranks.
        ExperimentError: a config cannot be trained; on all ranks.
    """
    if experiment.schedule.costs == EQUAL:
        return None
    path = experiment.schedule.costs_file
    if path is None:
        return _pilot(rooms, configs, trainer, rows, valid)
    names = [config.name for config in configs]

    def read() -> dict[str, object]:
        found = load_costs(path)
        found.check_names(names)
        return found.model_dump()

    found = rooms.group.from_root(read)
    return Pilot(CostsFile.model_validate(found), 0.0)


def _pilot(
    rooms: Rooms,
    configs: Sequence[Config],
    trainer: TorchTrainer,
    rows: Rows,
    valid: Rows,
) -> Pilot | None:
    """Collective. Time a few batches of each config, each on one rank, all ranks at once.

    Every rank times the first config too, which tells how fast the ranks are.
    """
    group, begin_s = rooms.group, rooms.events.now()
    own = sorted({0, *range(group.rank, len(configs), group.size)})

    def measure() -> list[tuple[int, dict[str, float]]]:
        return [(c, _timed(rooms, trainer, c, rows, valid).to_json()) for c in own]

    found = group.gather(group.attempt(measure))
    sizes = sorted(trainer.nbytes(config.config_id) for config in configs)
    with rooms.events.timed("link") as facts:
        link = measure_link(rooms.transport, group, sizes[len(sizes) // 2])
        facts.update(link.to_json())
    if not rooms.is_root:
        return None
    timings = [{c: Timing.from_json(t) for c, t in of_rank} for of_rank in found]
    factors = rank_factors([of_rank[0].seconds_per_row for of_rank in timings], PILOT_ALIKE)
    costs = {}
    for config in configs:
        rank = config.config_id % group.size
        timing, factor = timings[rank][config.config_id], factors[rank]
        costs[config.name] = ConfigCosts(
            seconds_per_row=timing.seconds_per_row / factor,
            overhead_s=timing.overhead_s / factor,
            eval_s=timing.eval_seconds_per_row * valid.rows / factor,
            state_nbytes=trainer.nbytes(config.config_id),
        )
    found_costs = CostsFile(configs=costs, rank_factors=tuple(factors), link=_link_costs(link))
    return Pilot(found_costs, rooms.events.now() - begin_s)


def _timed(rooms: Rooms, trainer: TorchTrainer, config_id: int, rows: Rows, valid: Rows) -> Timing:
    with rooms.turn, rooms.events.timed("pilot", config=config_id):
        return time_config(
            trainer, config_id, rows, valid, budget_s=PILOT_S, most_batches=PILOT_BATCHES
        )


def _link_costs(link: Link) -> LinkCosts:
    return LinkCosts(**link.to_json())


def rank_factors(seconds: Sequence[float], alike: float = ALIKE) -> list[float]:
    """Return what seconds are multiplied by on each rank, 1 in the middle.

    Args:
        seconds: of the same work on each rank.
        alike: ranks that differ by less than this factor are equally fast.
    """
    least, most = min(seconds), max(seconds)
    if least <= 0.0 or most < alike * least:
        return [1.0] * len(seconds)
    middle = float(np.median(seconds))
    return [own / middle for own in seconds]


def write_costs(
    folder: RunFolder,
    configs: Sequence[Config],
    plan: Plan,
    costs: Costs,
    shard_rows: Sequence[int],
    state_nbytes: Sequence[int],
    link: LinkCosts | None,
) -> None:
    """Write `costs.json`: what the run has learned of its costs."""
    per_row = np.maximum(costs.visit_s, 1e-12) / np.array(shard_rows, np.float64)
    logs = np.log(per_row)
    own = logs.mean(axis=1, keepdims=True)
    by_rank = np.zeros(plan.num_ranks)
    np.add.at(by_rank, np.array(plan.owners), (logs - own).mean(axis=0))
    shards = np.bincount(plan.owners, minlength=plan.num_ranks)
    factors = rank_factors(np.exp(by_rank / np.maximum(shards, 1)).tolist())
    base = np.exp((logs - np.log(factors)[np.array(plan.owners)]).mean(axis=1))
    found = CostsFile(
        configs={
            config.name: ConfigCosts(
                seconds_per_row=float(base[config.config_id]),
                eval_s=float(costs.eval_s[config.config_id]),
                state_nbytes=state_nbytes[config.config_id],
            )
            for config in configs
        },
        rank_factors=tuple(factors),
        link=link,
    )
    folder.write_costs(found.model_dump(exclude_none=True))
