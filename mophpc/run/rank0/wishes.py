"""What people ask of a run that goes on, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

from mophpc.dimensions import Value
from mophpc.errors import RequestError, RunFolderError
from mophpc.experiment import Experiment
from mophpc.overrides import added, cloned
from mophpc.requests import Add, Clone, Stop, Wish, find_config
from mophpc.run.rank0.director import Director
from mophpc.run.recovery.journal import Cut


def grant(wish: Wish, director: Director, experiment: Experiment, run: Path) -> tuple[bool, str]:
    """Do what somebody asks; return whether it is done, and a sentence about it.

    Args:
        wish: what is asked.
        director: of the run.
        experiment: that is run.
        run: the run folder, for the sentence.
    """
    try:
        if isinstance(wish, Add):
            return _add(director, added(wish.set, experiment), wish.epochs)
        configs = director.ledger.configs
        config_id = find_config(wish.config, [config.name for config in configs], run)
        if isinstance(wish, Stop):
            return _stop(director, config_id)
        values = cloned(configs[config_id].values, wish.set, experiment)
        if wish.fresh:
            return _add(director, values, wish.epochs)
        return _clone(director, config_id, wish, values)
    except (RunFolderError, RequestError) as error:
        return False, str(error)


def _add(director: Director, values: dict[str, Value], epochs: int | None) -> tuple[bool, str]:
    epochs = director.epochs if epochs is None else epochs
    config = director.ledger.add(values)
    director.pool.add(epochs=epochs)
    director.pool.set_goal(config.config_id, epochs)
    director.ledger.note("start", config.config_id, epochs=epochs, by="people", values=values)
    return True, f"{config.name} begins, to make {epochs} epochs"


def _stop(director: Director, config_id: int) -> tuple[bool, str]:
    pool, name = director.pool, director.ledger.configs[config_id].name
    if pool.members[config_id].is_over:
        return False, f"{name} has ended already"
    if pool.waits(config_id) or pool.rank_of(config_id) < 0:
        director.stop_waiting(config_id)
        return True, f"{name} is stopped, after {director.epochs_of(config_id)} epochs"
    if pool.is_finished(config_id):
        return False, f"{name} is about to end: it makes its last epoch"
    _cut(director, config_id).stops = True
    epochs = pool.goal_of(config_id)
    director.settle(config_id)
    return True, f"{name} stops after {epochs} epochs"


def _clone(
    director: Director, config_id: int, wish: Clone, values: dict[str, Value]
) -> tuple[bool, str]:
    pool, ledger = director.pool, director.ledger
    source = ledger.configs[config_id]
    again = f"--fresh begins it from initial weights: mophpc clone ... {wish.config} --fresh"
    if pool.members[config_id].is_over:
        return False, f"{source.name} has ended, and its state is gone; {again}"
    if pool.is_finished(config_id):
        return False, f"{source.name} makes its last epoch, after which its state goes; {again}"
    if pool.rank_of(config_id) < 0 and pool.members[config_id].goal == 0:
        return False, f"{source.name} has no state yet; {again}"
    waits = pool.waits(config_id)
    made = director.epochs_of(config_id) if waits else max(1, pool.boundary(config_id))
    epochs = director.epochs if wish.epochs is None else wish.epochs
    if epochs <= made:
        return False, (
            f"{source.name} will have made {made} epochs by then, and --epochs is {epochs}, those "
            f"included; give more"
        )
    clone = ledger.add(values)
    pool.add(is_laid_out=True, epochs=epochs)
    copy = (clone.config_id, values, epochs)
    if waits:
        director.copy([copy], config_id)
    else:
        _cut(director, config_id).clones.append(copy)
        director.settle(config_id)
    return True, f"{clone.name} goes on from {source.name} after its epoch {made}"


def _cut(director: Director, config_id: int) -> Cut:
    """Let a config wait as soon as it can: after the epoch of which a part is promised."""
    pool = director.pool
    if config_id not in director.cuts:
        goal, then = pool.goal_of(config_id), pool.members[config_id].then
        director.cuts[config_id] = Cut(goal, then)
        pool.set_goal(config_id, min(goal, max(1, pool.boundary(config_id))), then)
    return director.cuts[config_id]
