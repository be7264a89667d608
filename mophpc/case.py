"""What is to be scheduled: sizes and costs, brought together without torch or MPI."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mophpc.costs_file import MOST_S, ConfigCosts, CostsFile, LinkCosts, load_costs
from mophpc.errors import CostsError, UserError
from mophpc.experiment import EQUAL, MEASURED, Experiment
from mophpc.schedule import lower_bound
from mophpc.schedule.costs import Costs, foreign_factors, given_costs, owners_for
from mophpc.schedule.policies import MOST_VISITS
from mophpc.search_settings import MOST_CONFIGS

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_EPOCHS = 2
"""Epochs where none are asked for: a turn, and what comes after it."""

_MOST_BANDWIDTH = 1e18

TAKEN_AS_EQUAL = "costs are taken as equal here; a pilot measures them when a run begins"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says of a schedule; None: not said."""

    ranks: int
    configs: int | None = None
    shards: int | None = None
    epochs: int | None = None
    costs: str | None = None
    """`equal`, `measured`, seconds of every visit, or a costs file."""
    bandwidth: float | None = None
    """Bytes per second of a hop."""
    state_nbytes: int | None = None
    """Of every config."""
    rows: int | None = None
    """Of every shard."""
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.configs is not None and self.configs > MOST_CONFIGS:
            raise UserError(f"--configs is {self.configs}; at most {MOST_CONFIGS} are allowed")
        bandwidth = self.bandwidth
        if bandwidth is not None and not 1.0 <= bandwidth <= _MOST_BANDWIDTH:
            raise UserError(
                f"--bandwidth is {bandwidth:g}; allowed: bytes per second from 1 to 1e18, as in "
                "1.25e9 for 10 Gbit/s"
            )

    def refuse_sizes(self) -> None:
        """Refuse sizes beside an experiment, which has its own.

        Raises:
            UserError: one is given.
        """
        sizes = {"--configs": self.configs, "--shards": self.shards, "--rows": self.rows}
        for option, size in sizes.items():
            if size is not None:
                raise UserError(
                    f"{option} is {size}, but the experiment says how many; leave either out"
                )


@dataclass(frozen=True, slots=True)
class Case:
    """What is to be scheduled."""

    names: tuple[str, ...]
    """Of the configs, by config_id."""
    owners: tuple[int, ...]
    num_ranks: int
    num_epochs: int
    seed: int
    costs: Costs
    costs_from: str
    """Where the costs come from, in words."""
    unit: str
    """What a second of the costs stands for."""
    state_nbytes: tuple[int, ...] | None
    """Bytes of each config's state, where known."""
    named: bool = True
    """Whether the names say more than the ids."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = {
            "config": len(self.names),
            "shard": len(self.owners),
            "rank": self.num_ranks,
            "epoch": self.num_epochs,
        }
        sizes = ", ".join(f"{n:,} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items())
        return f"{sizes}: {self.num_visits:,} visits; costs: {self.costs_from}"

    @property
    def num_visits(self) -> int:
        """Visits of all configs."""
        return len(self.names) * len(self.owners) * self.num_epochs

    @property
    def bound_s(self) -> float:
        """The seconds that no schedule can beat."""
        costs = self.costs
        return lower_bound(
            costs.visit_s, self.owners, self.num_epochs, eval_s=costs.eval_s, hop_s=costs.hop_s
        )

    def sizes(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "configs": list(self.names),
            "num_configs": len(self.names),
            "num_shards": len(self.owners),
            "num_ranks": self.num_ranks,
            "num_epochs": self.num_epochs,
            "costs": self.costs_from,
            "unit": self.unit,
        }


def standalone_case(asked: Asked) -> Case:
    """Return what is asked for without an experiment.

    Raises:
        UserError: something is missing or does not fit.
    """
    given = load_given(asked.costs)
    if asked.configs is None and given is None:
        raise UserError(
            "there are no configs to plan: give an EXPERIMENT, --configs N, or --costs with a "
            "costs file"
        )
    shards = asked.ranks if asked.shards is None else asked.shards
    if asked.ranks > shards:
        raise UserError(
            f"--ranks is {asked.ranks} and --shards is {shards}; every rank needs a shard, so "
            f"take at most {shards} ranks or at least {asked.ranks} shards"
        )
    if given is None:
        names = tuple(f"c{index:03d}" for index in range(asked.configs or 0))
    else:
        names = tuple(given.configs)
        if asked.configs not in (None, len(names)):
            raise UserError(
                f"--configs is {asked.configs}, but the costs file has {len(names)}; leave "
                "--configs out"
            )
    epochs = asked.epochs or DEFAULT_EPOCHS
    num_visits = len(names) * shards * epochs
    if num_visits > MOST_VISITS:  # before anything of that size is made
        raise UserError(
            f"{len(names)} configs x {shards} shards x {epochs} epochs are {num_visits} visits; "
            f"at most {MOST_VISITS} can be planned, so take fewer of one"
        )
    per_row = given is not None and any(c.visit_s is None for c in given.configs.values())
    if per_row and asked.rows is None:
        raise CostsError(f"{asked.costs}: costs are per row; say with --rows how many a shard has")
    if asked.rows is not None and not per_row:
        raise UserError("--rows is for costs per row, and these are not; leave it out")
    return make_case(
        asked,
        names,
        given,
        shard_rows=None if asked.rows is None else (asked.rows,) * shards,
        num_shards=shards,
        num_epochs=epochs,
        named=given is not None,
    )


def experiment_case(experiment: Experiment, asked: Asked) -> Case:
    """Return what an experiment asks for, from its file and its store alone.

    Raises:
        UserError: the experiment or its store is wrong, or something does not fit.
    """
    from mophpc.data import open_store
    from mophpc.search import make_configs

    asked.refuse_sizes()
    store = open_store(Path(experiment.data.store))
    asked = with_settings(asked, experiment)
    return make_case(
        asked,
        [config.name for config in make_configs(experiment)],
        load_given(asked.costs),
        shard_rows=store.shard_rows,
        num_shards=store.num_shards,
        num_epochs=asked.epochs or experiment.epochs,
    )


def with_settings(asked: Asked, experiment: Experiment) -> Asked:
    """Return what is asked, with the experiment's settings where nothing was said."""
    seed = experiment.seed if asked.seed is None else asked.seed
    return replace(asked, costs=asked.costs or experiment.schedule.costs, seed=seed)


def load_given(costs: str | None) -> CostsFile | None:
    """Return the costs file, or None where costs are not from a file.

    Raises:
        CostsError: it is missing or wrong.
    """
    if costs in (None, EQUAL, MEASURED) or _number(str(costs)) is not None:
        return None
    return load_costs(Path(str(costs)))


def make_case(
    asked: Asked,
    names: Sequence[str],
    given: CostsFile | None,
    *,
    num_shards: int,
    num_epochs: int,
    shard_rows: Sequence[int] | None,
    state_nbytes: Sequence[int] | None = None,
    named: bool = True,
    notes: Sequence[str] = (),
) -> Case:
    """Bring sizes and costs together.

    Args:
        asked: what was asked for.
        names: names of the configs.
        given: the costs file, if costs are from one.
        num_shards: shards.
        num_epochs: epochs.
        shard_rows: rows of each shard, where known.
        state_nbytes: bytes of each config's state, where measured.
        named: whether the names say more than the ids.
        notes: what people should know of it.

    Raises:
        UserError: something is missing or does not fit.
    """
    owners = owners_for(given, num_shards, asked.ranks, shard_rows)
    said = list(notes)
    if asked.costs == MEASURED:
        said.append(TAKEN_AS_EQUAL)
    speeds = foreign_factors(given, asked.ranks)
    if speeds is not None:
        said.append(speeds)
    timed = asked.costs not in (None, EQUAL, MEASURED)
    costs_from = str(asked.costs) if timed else EQUAL
    if given is None:
        visit_s = _seconds(asked.costs) if timed else 1.0
        costs_from = f"{visit_s:g} s a visit" if timed else EQUAL
        given = CostsFile(configs={name: ConfigCosts(visit_s=visit_s) for name in names})
    given.check_names(names)
    sizes = _sizes(asked, names, given, state_nbytes)
    link = _link(asked, given, known=sizes is not None)
    if asked.bandwidth is not None and not timed:
        said.append("hops are timed as if a visit took 1 s; --costs says what it takes")
    costs_file = _with_hops(given, names, sizes, link)
    costs = given_costs(costs_file, names, owners, asked.ranks, shard_rows)
    return Case(
        names=tuple(names),
        owners=owners,
        num_ranks=asked.ranks,
        num_epochs=num_epochs,
        seed=asked.seed or 0,
        costs=costs,
        costs_from=costs_from,
        unit="s" if timed or asked.bandwidth is not None else "visits",
        state_nbytes=sizes,
        named=named,
        notes=tuple(said),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _seconds(costs: str | None) -> float:
    number = _number(str(costs))
    if number is None or not (math.isfinite(number) and 0.0 < number <= MOST_S):
        raise UserError(
            f"--costs is '{costs}'; allowed: '{EQUAL}', seconds of a visit above 0 and at most "
            f"{MOST_S:g}, or a costs file"
        )
    return number


def _sizes(
    asked: Asked, names: Sequence[str], given: CostsFile, measured: Sequence[int] | None
) -> tuple[int, ...] | None:
    """Return the bytes of each config's state, where something says them."""
    if asked.state_nbytes is not None:
        return (asked.state_nbytes,) * len(names)
    if measured is not None:
        return tuple(measured)
    said = tuple(given.configs[name].state_nbytes for name in names)
    return said if any(said) else None


def _link(asked: Asked, given: CostsFile, *, known: bool) -> LinkCosts | None:
    if asked.bandwidth is None:
        return given.link
    if not known:
        raise UserError(
            f"--bandwidth is {asked.bandwidth:g}, but how large a state is, is not known; say it "
            "with --state-bytes"
        )
    latency_s = 0.0 if given.link is None else given.link.latency_s
    return LinkCosts(latency_s=latency_s, bandwidth_bytes_per_s=asked.bandwidth)


def _with_hops(
    given: CostsFile, names: Sequence[str], sizes: tuple[int, ...] | None, link: LinkCosts | None
) -> CostsFile:
    configs = {name: given.configs[name] for name in names}
    if sizes is not None:
        configs = {
            name: configs[name].model_copy(update={"state_nbytes": size})
            for name, size in zip(names, sizes, strict=True)
        }
    return given.model_copy(update={"configs": configs, "link": link})
