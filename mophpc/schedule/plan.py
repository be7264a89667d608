"""The plan: every visit of every config as data, and what follows from it.

A plan says for each rank which visits it makes, in order. Everything else is derived: the route of
a config, the hops between ranks and their tags, the digest that ranks compare before they start.
Nothing depends on time; predicted times are carried along for people and are never executed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mophpc.errors import PlanError
from mophpc.schedule.fields import field, items, lists, rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from numpy.typing import NDArray

    IntArray: TypeAlias = NDArray[np.int64]

# MPI promises that MPI_TAG_UB is at least 32767 (MPI 4.1, section 9.1.2, "Environmental
# Inquiries: Tag Values"), so tags 0 to 32767 work with every library.
TAG_SPAN = 32768

PLAN_FORMAT = 1

_TOKEN = re.compile(r"c(\d+)e(\d+)s(\d+)r(\d+)n(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Visit:
    """One config trained over one shard for one epoch, on the rank that owns the shard.

    `step` is the config's visit number over the whole plan, 0 to num_shards * num_epochs - 1. It
    orders the visits of a config without times, and is the cursor that travels with a hop.
    """

    config_id: int
    epoch: int
    shard: int
    rank: int
    step: int
    predicted_start_s: float = 0.0
    predicted_end_s: float = 0.0

    def __str__(self) -> str:
        """Return the one-token form, `c3e0s2r1n5`: config, epoch, shard, rank, step; no times."""
        return f"c{self.config_id}e{self.epoch}s{self.shard}r{self.rank}n{self.step}"

    @classmethod
    def parse(cls, token: str, start_s: float = 0.0, end_s: float = 0.0) -> Visit:
        """Read the one-token form back.

        Raises:
            PlanError: the text is not such a token.
        """
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise PlanError(f"{token!r} is not a visit; one looks like c3e0s2r1n5")
        config_id, epoch, shard, rank, step = map(int, match.groups())
        return cls(config_id, epoch, shard, rank, step, start_s, end_s)


@dataclass(frozen=True, slots=True)
class Hop:
    """The move of a config's state from `source` to `dest`, where it makes visit `step`.

    The tag is the config's id. Two hops of a config between the same ranks keep their order, since
    the config makes its steps in order and both ranks post in that order (MPI 4.1, section 3.5);
    so a hop is named without knowing the other hops of the plan.
    """

    config_id: int
    step: int
    source: int
    dest: int

    @property
    def tag(self) -> int:
        """The message tag of the hop."""
        return self.config_id


@dataclass(frozen=True, slots=True)
class Fork:
    """Before its visit `step`, a config gets a copy of the state of another one, `source`.

    The source has made its visit `step` - 1, and goes on by itself. A state that the config had
    before is dropped.
    """

    config_id: int
    step: int
    source: int


@dataclass(frozen=True, slots=True)
class Brought:
    """A state that no visit of the plan made, ready for a config's visit `step`.

    It is read from a file of `source`, which may be another config; or it was in a rank's memory
    when the plan began. `done` are the shards of that epoch which it has seen.
    """

    config_id: int
    step: int
    source: int
    done: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """A visit as its rank sees it: where the state comes from and where it goes.

    `receive` is None when the state is made here (`creates`), read from a file (`loads`) or was
    kept from the config's previous visit; `send` is None when the state is kept for the next visit,
    when this is the last (`is_last`), when the state gives way to another's (`is_dropped`), or when
    the next is not decided (`is_open`).
    """

    visit: Visit
    receive: Hop | None
    send: Hop | None
    is_last: bool
    is_open: bool = False
    """Where the config goes next has not been decided yet."""
    is_dropped: bool = False
    """Nobody needs the state after this visit: the config gets a copy of another's."""
    loads: int | None = None
    """The config whose file for this step the state is read from."""

    @property
    def creates(self) -> bool:
        """Whether the config's state is made here: its very first visit."""
        return self.visit.step == 0

    @property
    def takes_arena(self) -> bool:
        """Whether the visit needs an arena that the rank does not hold yet for this config."""
        return self.receive is not None or self.visit.step == 0 or self.loads is not None


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule: for each rank its visits, in the order in which it makes them.

    `owners` maps shard to rank; `max_arenas` is how many config states a rank may hold at a time.
    `spans` has for each config its first step and the one after its last; None where every config
    makes all epochs. `forks` are the copies of states. `brought` are the states from before the
    plan, where it goes on with others.
    """

    num_configs: int
    num_ranks: int
    num_shards: int
    num_epochs: int
    owners: tuple[int, ...]
    visits_by_rank: tuple[tuple[Visit, ...], ...]
    policy: str
    max_arenas: int
    spans: tuple[tuple[int, int], ...] | None = None
    forks: tuple[Fork, ...] = ()
    brought: tuple[Brought, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_configs", "num_ranks", "num_shards", "num_epochs", "max_arenas"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if len(self.owners) != self.num_shards:
            raise PlanError(f"owners names {len(self.owners)} shards; there are {self.num_shards}")
        for shard, rank in enumerate(self.owners):
            if not 0 <= rank < self.num_ranks:
                raise PlanError(
                    f"owners puts shard {shard} on rank {rank} of {self.num_ranks} ranks"
                )
        if len(self.visits_by_rank) != self.num_ranks:
            raise PlanError(
                f"visits_by_rank has {len(self.visits_by_rank)} lists for {self.num_ranks} ranks"
            )
        if self.spans is not None and len(self.spans) != self.num_configs:
            raise PlanError(f"spans has {len(self.spans)} of {self.num_configs} configs")
        for begin, end in self.spans or ():
            if not 0 <= begin <= end <= self.num_steps:
                raise PlanError(f"spans has {begin} to {end}; the plan has {self.num_steps} steps")
        for one in self.brought:
            begin, end = self.all_spans[one.config_id] if self._has(one.config_id) else (0, 0)
            if not begin <= one.step < end:
                raise PlanError(f"brought has step {one.step} of config {one.config_id}, not made")

    def _has(self, config_id: int) -> bool:
        return self.spans is not None and 0 <= config_id < self.num_configs

    @property
    def num_visits(self) -> int:
        """Visits over all ranks."""
        return sum(map(len, self.visits_by_rank))

    @property
    def num_steps(self) -> int:
        """Visits that a config makes at most."""
        return self.num_shards * self.num_epochs

    @property
    def all_spans(self) -> tuple[tuple[int, int], ...]:
        """The first step of each config and the one after its last."""
        return self.spans or ((0, self.num_steps),) * self.num_configs

    def visits(self) -> Iterator[Visit]:
        """Yield every visit, rank by rank, each rank's in order."""
        for visits in self.visits_by_rank:
            yield from visits

    def route(self, config_id: int) -> tuple[Visit, ...]:
        """Return the visits of one config in the order in which it makes them.

        This reads the whole plan; use `routes` for many configs.
        """
        own = [visit for visit in self.visits() if visit.config_id == config_id]
        return tuple(sorted(own, key=lambda visit: visit.step))

    def shards_of(self, rank: int) -> tuple[int, ...]:
        """Return the shards that a rank owns, ascending."""
        return tuple(shard for shard, owner in enumerate(self.owners) if owner == rank)


@dataclass(frozen=True, slots=True)
class Columns:
    """A plan as arrays, one entry per visit, rank by rank and each rank's in order.

    Checks and simulations of large plans run on these; an entry's index names the visit.
    """

    config: IntArray
    epoch: IntArray
    shard: IntArray
    rank: IntArray  # the rank whose list holds the visit, not the visit's own claim
    step: IntArray
    first: tuple[int, ...]  # where each rank's visits begin; one more entry than ranks

    def links(self, plan: Plan) -> tuple[IntArray, IntArray]:
        """Return for each visit where its state comes from, and the config's next visit; -1: none.

        A state comes from the config's previous visit, or from its source's where it is copied; one
        that is brought comes from none.

        Raises:
            PlanError: a config lacks a step or makes one twice.
        """
        begin, end = np.array(plan.all_spans, np.int64).reshape(-1, 2).T
        offset = np.concatenate(([0], np.cumsum(end - begin)))
        total = int(offset[-1])
        at = np.full(total + 1, -1, np.int64)
        config = np.clip(self.config, 0, plan.num_configs - 1)
        key = offset[config] + self.step - begin[config]
        inside = (self.config == config) & (self.step >= begin[config]) & (self.step < end[config])
        at[key[inside]] = np.flatnonzero(inside)
        missing = np.flatnonzero(at[:total] < 0)
        if missing.size:
            config_id = int(np.searchsorted(offset, missing[0], side="right")) - 1
            step = int(missing[0] - offset[config_id] + begin[config_id])
            raise PlanError(f"config {config_id} has no visit with step {step}")
        if len(key) != total:
            raise PlanError(f"the plan has {len(key)} visits; {total} are due")
        after = np.where(self.step == end[config] - 1, -1, at[np.minimum(key + 1, total)])
        before = np.where(self.step == begin[config], -1, at[np.maximum(key - 1, 0)])
        for fork in plan.forks:
            to, of = offset[fork.config_id], offset[fork.source]
            index = at[to + fork.step - begin[fork.config_id]]
            if before[index] >= 0:
                after[before[index]] = -1
            before[index] = at[of + fork.step - 1 - begin[fork.source]]
        for one in plan.brought:
            index = at[offset[one.config_id] + one.step - begin[one.config_id]]
            if before[index] >= 0:
                after[before[index]] = before[index] = -1
        return before, after


def columns(plan: Plan) -> Columns:
    """Return the plan as arrays."""
    visits = tuple(plan.visits())
    lengths = [len(own) for own in plan.visits_by_rank]
    first = np.concatenate(([0], np.cumsum(lengths)))
    return Columns(
        config=np.array([visit.config_id for visit in visits], np.int64),
        epoch=np.array([visit.epoch for visit in visits], np.int64),
        shard=np.array([visit.shard for visit in visits], np.int64),
        rank=np.repeat(np.arange(plan.num_ranks), lengths),
        step=np.array([visit.step for visit in visits], np.int64),
        first=tuple(first.tolist()),
    )


def untimed(plan: Plan) -> Plan:
    """Return the plan without predicted times."""
    return replace(
        plan,
        visits_by_rank=tuple(
            tuple(replace(v, predicted_start_s=0.0, predicted_end_s=0.0) for v in own)
            for own in plan.visits_by_rank
        ),
    )


def routes(plan: Plan) -> tuple[tuple[Visit, ...], ...]:
    """Return for each config its visits in the order in which it makes them.

    Raises:
        PlanError: a config lacks a step or makes one twice.
    """
    table = columns(plan)
    table.links(plan)  # raises unless every step is there, once
    found: list[list[Visit]] = [[] for _ in range(plan.num_configs)]
    visits = tuple(plan.visits())
    for index in np.lexsort((table.step, table.config)).tolist():
        found[visits[index].config_id].append(visits[index])
    return tuple(map(tuple, found))


def hops(plan: Plan) -> tuple[Hop, ...]:
    """Return every hop, source by source, each source's in the order in which it sends.

    Raises:
        PlanError: a config lacks a step or makes one twice.
    """
    links = _Links.of(plan)
    comes = (links.before >= 0) & (links.table.rank[links.before] != links.table.rank)
    into = np.flatnonzero(comes)
    order = np.argsort(links.before[into], kind="stable")
    return tuple(links.hop_to(index) for index in into[order].tolist())


def stops(plan: Plan, rank: int) -> tuple[Stop, ...]:
    """Return the visits of a rank with the hops that lead to and away from each.

    Raises:
        PlanError: a config lacks a step or makes one twice.
    """
    links = _Links.of(plan)
    first = links.table.first[rank]
    dropped = {(fork.config_id, fork.step - 1) for fork in plan.forks}
    result = []
    for index, visit in enumerate(plan.visits_by_rank[rank], first):
        before, after = int(links.before[index]), int(links.after[index])
        comes = before >= 0 and links.table.rank[before] != rank
        gives_way = (visit.config_id, visit.step) in dropped
        result.append(
            Stop(
                visit=visit,
                receive=links.hop_to(index) if comes else None,
                send=links.hop_to(after) if links.moves[index] else None,
                is_last=after < 0 and not gives_way,
                is_dropped=gives_way,
            )
        )
    return tuple(result)


@dataclass(frozen=True, slots=True)
class _Links:
    """Per visit the config's previous and next one, and whether the config hops after it."""

    table: Columns
    before: IntArray
    after: IntArray
    moves: NDArray[np.bool_]

    @classmethod
    def of(cls, plan: Plan) -> _Links:
        table = columns(plan)
        before, after = table.links(plan)
        return cls(table, before, after, (after >= 0) & (table.rank[after] != table.rank))

    def hop_to(self, index: int) -> Hop:
        """Return the hop that leads to a visit."""
        table = self.table
        return Hop(
            config_id=int(table.config[index]),
            step=int(table.step[index]),
            source=int(table.rank[self.before[index]]),
            dest=int(table.rank[index]),
        )


def digest(plan: Plan) -> str:
    """Return the SHA-256 (hex) of all that ranks execute: sizes, owners, arenas, visits in order.

    The policy's name and the predicted times are left out, since no rank acts on them.
    """
    head: tuple[str, ...] = (
        f"mophpc-plan {PLAN_FORMAT}",
        f"configs {plan.num_configs} ranks {plan.num_ranks}",
        f"shards {plan.num_shards} epochs {plan.num_epochs} arenas {plan.max_arenas}",
        "owners " + " ".join(map(str, plan.owners)),
    )
    if plan.spans is not None:
        head += ("spans " + " ".join(f"{begin}-{end}" for begin, end in plan.spans),)
        head += ("forks " + " ".join(f"c{f.config_id}n{f.step}c{f.source}" for f in plan.forks),)
    if plan.brought:
        head += ("brought " + " ".join(map(str, _rows(plan.brought))),)
    sha = hashlib.sha256("\n".join(head).encode())
    for visits in plan.visits_by_rank:
        sha.update(("\nrank " + " ".join(map(str, visits))).encode())
    return sha.hexdigest()


def _rows(brought: tuple[Brought, ...]) -> list[list[int]]:
    return [[one.config_id, one.step, one.source, *one.done] for one in brought]


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as values that JSON can hold, with its digest."""
    ragged: dict[str, Any] = (
        {}
        if plan.spans is None
        else {
            "spans": [list(span) for span in plan.spans],
            "forks": [[fork.config_id, fork.step, fork.source] for fork in plan.forks],
        }
    )
    if plan.brought:
        ragged["brought"] = _rows(plan.brought)
    return ragged | {
        "format": PLAN_FORMAT,
        "policy": plan.policy,
        "digest": digest(plan),
        "num_configs": plan.num_configs,
        "num_ranks": plan.num_ranks,
        "num_shards": plan.num_shards,
        "num_epochs": plan.num_epochs,
        "max_arenas": plan.max_arenas,
        "owners": list(plan.owners),
        "visits_by_rank": [[str(visit) for visit in own] for own in plan.visits_by_rank],
        "predicted_start_s": [[v.predicted_start_s for v in own] for own in plan.visits_by_rank],
        "predicted_end_s": [[v.predicted_end_s for v in own] for own in plan.visits_by_rank],
    }


def from_json(record: Any) -> Plan:
    """Read what `to_json` gave; other keys are ignored, and the schedule itself is not checked.

    Raises:
        PlanError: a field is missing or of the wrong kind, the format is not known, or the digest
            is not that of the visits.
    """
    if not isinstance(record, dict):
        raise PlanError(f"a plan is a JSON object, not {type(record).__name__}")
    version = field(record, "format", int)
    if version != PLAN_FORMAT:
        raise PlanError(f"format is {version}; this mophpc reads {PLAN_FORMAT}")
    tokens = lists(record, "visits_by_rank", str)
    starts = lists(record, "predicted_start_s", float)
    ends = lists(record, "predicted_end_s", float)
    for name, times in (("predicted_start_s", starts), ("predicted_end_s", ends)):
        if [len(own) for own in times] != [len(own) for own in tokens]:
            raise PlanError(f"{name} does not have one number per visit of visits_by_rank")
    plan = Plan(
        num_configs=field(record, "num_configs", int),
        num_ranks=field(record, "num_ranks", int),
        num_shards=field(record, "num_shards", int),
        num_epochs=field(record, "num_epochs", int),
        owners=tuple(items(field(record, "owners", list), "owners", int)),
        visits_by_rank=tuple(
            tuple(map(Visit.parse, own, begin, end))
            for own, begin, end in zip(tokens, starts, ends, strict=True)
        ),
        policy=field(record, "policy", str),
        max_arenas=field(record, "max_arenas", int),
        spans=tuple((begin, end) for begin, end in rows(record, "spans", 2))
        if "spans" in record
        else None,
        forks=tuple(Fork(*row) for row in rows(record, "forks", 3)) if "forks" in record else (),
        brought=tuple(map(_brought, lists(record, "brought", int))) if "brought" in record else (),
    )
    if field(record, "digest", str) != digest(plan):
        raise PlanError("digest is not that of the visits: the plan was changed after it was made")
    return plan


def _brought(row: list[int]) -> Brought:
    if len(row) < 3:
        raise PlanError(f"brought has {row}; it takes config, step and source, then shards")
    return Brought(row[0], row[1], row[2], tuple(row[3:]))
