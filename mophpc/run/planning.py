"""The first plan, made and checked on rank 0; or one of an earlier run, to be walked again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mophpc.data.store import StoreInfo
from mophpc.errors import LaunchError, PlanError, RequestError
from mophpc.experiment import Experiment
from mophpc.hop.checksum import BYTES_PER_S
from mophpc.overrides import check_values
from mophpc.run.costing import Pilot
from mophpc.run.known import Known
from mophpc.run.recovery.past import past_costs
from mophpc.run.rooms import Rooms
from mophpc.schedule import bytes_moved, check_plan, make_plan, predict
from mophpc.schedule.bounds import idle_advice
from mophpc.schedule.costs import Costs, foreign_factors, given_costs, owners_for
from mophpc.schedule.plan import Plan, from_json, to_json, untimed
from mophpc.schedule.walk import SPARE_ARENAS
from mophpc.search.checked import Shape
from mophpc.search.space import Config, check_name
from mophpc.train.checks import check_objective, ordinary_builds
from mophpc.train.trainer import TorchTrainer

CHECK_SHARE = 0.01
"""Of the visits' time: more than that is too much for a checksum that nobody asked for."""

_SIZES = ("configs", "ranks", "shards", "epochs")


class Planning:
    """Makes the first plan, on rank 0."""

    def __init__(
        self,
        rooms: Rooms,
        experiment: Experiment,
        store: StoreInfo,
        configs: Sequence[Config],
        trainer: TorchTrainer,
        pilot: Pilot | None,
        replay: Plan | None,
        known: Known,
    ) -> None:
        self._rooms = rooms
        self._experiment = experiment
        self._store = store
        self._configs = configs
        self._trainer = trainer
        self._pilot = pilot
        self._replay = replay
        self._is_open = bool(known.search.starts)  # what follows is decided on the way
        self._resumption = known.resumption
        self.costs = Costs.of(1.0, len(configs), store.num_shards)
        """What the plan was made from; a second for every visit where nothing is known."""
        self.checked = experiment.hop.checksum is not False
        """Whether states are checked when they have arrived."""

    def run(self) -> dict[str, Any]:
        """Plan and check, and say what is about to happen; return what all ranks must know.

        Raises:
            UserError: the objective's metric is not there, or there is too much to plan.
            PlanError: the plan breaks an invariant.
        """
        rooms, view = self._rooms, self._rooms.view
        names = [config.name for config in self._configs]
        check_objective(self._trainer, names, self._experiment.objective.metric)
        if self._resumption is not None:
            self.costs = past_costs(rooms.folder.path, len(names), self._store.shard_rows)
        if self._is_open or self._resumption is not None:
            return self._open(names)
        begin_s = time.perf_counter()
        plan = self._replay or self._make(names)
        check_plan(plan, lookahead=self._experiment.schedule.lookahead)
        took_s = time.perf_counter() - begin_s
        for line in ordinary_builds(self._trainer, names):
            view.note(line)
        if self._pilot is not None:
            self._report(plan, self._pilot, took_s)
        found = predict(plan, self.costs.visit_s, hop_s=self.costs.hop_s, eval_s=self.costs.eval_s)
        advice = idle_advice(plan.num_configs, plan.num_ranks, found.idle_share)
        if advice is not None:
            view.note(advice)
        moved = bytes_moved(plan, [self._trainer.nbytes(c.config_id) for c in self._configs])
        rooms.log.info("%d bytes of state to move", moved)
        if self._experiment.hop.checksum is None and self._pilot is not None:
            # Both ends of a hop read all of it.
            self.checked = 2 * moved / BYTES_PER_S < CHECK_SHARE * _visits_s(found.plan)
        return {"plan": to_json(found.plan), "checked": self.checked}

    def _open(self, names: Sequence[str]) -> dict[str, Any]:
        """Return a plan without visits, where they are decided on the way."""
        owners, store = self._find_costs(names), self._store
        begins = [0] * len(names) if self._resumption is None else self._resumption.steps
        for line in ordinary_builds(self._trainer, names):
            self._rooms.view.note(line)
        plan = Plan(
            num_configs=len(names),
            num_ranks=self._rooms.group.size,
            num_shards=store.num_shards,
            num_epochs=max(self._experiment.epochs, -(-max(self._ends()) // store.num_shards)),
            owners=owners,
            visits_by_rank=((),) * self._rooms.group.size,
            policy="pool",
            max_arenas=-(-len(names) // self._rooms.group.size) + SPARE_ARENAS,
            spans=tuple((step, step) for step in begins),
        )
        if self._experiment.hop.checksum is None and self._pilot is not None:
            moved = sum(self._trainer.nbytes(c.config_id) for c in self._configs)
            visits_s = float(self.costs.visit_s.mean(axis=1).sum())
            self.checked = 2 * moved / BYTES_PER_S < CHECK_SHARE * visits_s
        return {"plan": to_json(plan), "checked": self.checked}

    def _ends(self) -> list[int]:
        """Return steps that configs of a run that goes on have made, or may make."""
        found = self._resumption
        if found is None:
            return [0]
        return [*found.steps, *(goal.end for goal in found.told.goals.values())]

    def _make(self, names: Sequence[str]) -> Plan:
        owners = self._find_costs(names)
        return make_plan(
            self._experiment.schedule.planner,
            num_configs=len(self._configs),
            num_shards=self._store.num_shards,
            num_ranks=self._rooms.group.size,
            num_epochs=self._experiment.epochs,
            seed=self._experiment.seed,
            costs=self.costs,
            owners=owners,
        )

    def _find_costs(self, names: Sequence[str]) -> tuple[int, ...]:
        """Set what things are thought to cost; return the rank that owns each shard."""
        store, num_ranks = self._store, self._rooms.group.size
        given = None if self._pilot is None else self._pilot.costs
        speeds = foreign_factors(given, num_ranks)
        if speeds is not None:
            self._rooms.view.note(speeds)
        owners = owners_for(given, store.num_shards, num_ranks, store.shard_rows)
        if given is not None:
            self.costs = given_costs(given, names, owners, num_ranks, store.shard_rows)
        return owners

    def _report(self, plan: Plan, pilot: Pilot, planning_s: float) -> None:
        makespan_s = max(visit.predicted_end_s for visit in plan.visits())
        if makespan_s <= 0.0:
            return
        told = f"planned in {planning_s:.2g} s"
        if pilot.took_s > 0.0:
            share = pilot.took_s / makespan_s
            told = (
                f"timed a few batches of each config in {pilot.took_s:.2g} s ({share:.1%} of "
                f"the predicted {makespan_s:.3g} s), {told}"
            )
        else:
            told = f"{told}, {makespan_s:.3g} s predicted"
        self._rooms.view.note(told)
        self._rooms.events.write(
            "plan",
            self._rooms.events.now() - planning_s,
            self._rooms.events.now(),
            makespan_s=makespan_s,
            pilot_s=pilot.took_s,
        )


def _visits_s(plan: Plan) -> float:
    return sum(v.predicted_end_s - v.predicted_start_s for v in plan.visits())


def read_plan(path: Path) -> dict[str, Any]:
    """Return what the `plan.json` of an earlier run holds; not checked.

    Raises:
        LaunchError: it cannot be read, or is no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(
            f"plan '{path}' cannot be read: {error.strerror}; give a run's plan.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise LaunchError(
            f"'{path}' is no plan to replay: it is not JSON; give a run's plan.json"
        ) from error
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise LaunchError(
            f"'{path}' is no plan to replay: a plan is a JSON object, not {kind}; give a run's "
            f"plan.json"
        )
    try:
        names = record.get("configs", [])
        for name in names if isinstance(names, list) else [names]:
            check_name(name)
    except ValueError as error:
        raise LaunchError(
            f"'{path}' is no plan to replay: {error}; give a run's plan.json"
        ) from error
    for key in ("values", "changes"):
        rows = record.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise LaunchError(f"'{path}' is no plan to replay: {key} is no list of tables")
    return record


def again_of(record: dict[str, Any] | None) -> dict[str, Any]:
    """Return what ranks must know of an earlier run of decisions that is walked again.

    Args:
        record: its plan; None where none is walked again.
    """
    keys = ("changes", "unbuilt", "ends")
    return {} if record is None else {key: record[key] for key in keys if key in record}


def check_configs(path: Path, record: dict[str, Any], experiment: Experiment) -> None:
    """Check that the configs of an earlier run of decisions may be an experiment's.

    Its values may lie outside of the space, since people may have set them by hand; so the space
    that it was drawn from is compared, which the plan has.

    Args:
        path: the run's `plan.json`, for messages.
        record: what it holds.
        experiment: to be run.

    Raises:
        LaunchError: they are of another experiment.
    """
    of_another = f"the plan '{path}' is of another experiment"
    fix = "give the plan.json of a run of this one"
    shape = Shape(experiment.space, tuple(dict.fromkeys(n for c in experiment.configs for n in c)))
    now, before = experiment.model_dump(exclude_none=True)["space"], record.get("space", {})
    if not isinstance(before, dict):
        raise LaunchError(f"'{path}' is no plan to replay: space is no table")
    for name in now:
        if name in before and before[name] != now[name]:
            raise LaunchError(
                f"{of_another}: its space.{name} is {before[name]!r}, here it is {now[name]!r}; "
                f"{fix}"
            )
    rows = [*record.get("values", ()), *(c.get("values") for c in record.get("changes", ()))]
    for row in rows:
        if not isinstance(row, dict):
            raise LaunchError(f"'{path}' is no plan to replay: values is no list of tables")
        wrong = shape.wrong(row)
        if wrong is not None:
            raise LaunchError(f"{of_another}: one of its configs {wrong}; {fix}")
        try:
            check_values(row, experiment)
        except RequestError as error:
            raise LaunchError(f"{of_another}: {error}; {fix}") from error


def read_replay(
    path: Path, record: dict[str, Any], sizes: tuple[int, int, int, int], names: Sequence[str]
) -> Plan:
    """Return the plan of an earlier run, to be walked again.

    Args:
        path: its `plan.json`, for messages.
        record: what it holds.
        sizes: configs, ranks, shards and epochs of this run.
        names: names of its configs.

    Raises:
        LaunchError: there is no such plan, or it is one of another experiment.
    """
    try:
        plan = untimed(from_json(record))
    except (ValueError, PlanError) as error:
        raise LaunchError(
            f"'{path}' is no plan to replay: {error}; give a run's plan.json"
        ) from error
    if plan.brought:
        raise LaunchError(
            f"the plan '{path}' is of a run that was cut off and resumed, and begins with states "
            f"that were on disk; it cannot be replayed by itself: begin a new run without it"
        )
    found = (plan.num_configs, plan.num_ranks, plan.num_shards, plan.num_epochs)
    for what, its, ours in zip(_SIZES, found, sizes, strict=True):
        longer = what == "epochs" and plan.spans is not None and its > ours
        if its != ours and not longer:
            raise LaunchError(
                f"the plan '{path}' has {its} {what}, this run has {ours}; give the plan.json of a "
                f"run of as many"
            )
    if record.get("configs", list(names)) != list(names):
        raise LaunchError(
            f"the plan '{path}' is of other configs than this experiment's; "
            f"give the plan.json of a run of it"
        )
    try:
        check_plan(plan)
    except PlanError as error:
        raise LaunchError(f"the plan '{path}' cannot be walked: {error}") from error
    return plan
