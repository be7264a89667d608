"""From an experiment to the method that decides on its configs."""

from __future__ import annotations

from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment
from mophpc.search.asha import Asha
from mophpc.search.checked import Checked, Shape
from mophpc.search.draw import draw_endlessly, every_combination
from mophpc.search.halving import Halving, hyperband_sizes, make_rungs
from mophpc.search.method import Method
from mophpc.search.own import Brief, Drawn, Own, load_method
from mophpc.search.plain import Plain
from mophpc.search.population import Explorer, Population
from mophpc.search.rules import Ruled
from mophpc.search.sources import Rows, Source
from mophpc.search.space import (
    careful,
    count_said,
    num_configs,
    rows_of,
)
from mophpc.search_settings import (
    FIXED,
    MOST_CONFIGS,
    RUNGS,
    combinations_of,
    explored,
    interval_of,
    is_reference,
)

IN_FLIGHT = 2
"""Configs in training at a time, by ranks, where they come one after another."""
IN_FLIGHT_ASHA = 4
"""The same under ASHA, whose last config to be promoted trains when no more come: the more configs
are in training then, the longer they fill the other ranks."""


def make_method(experiment: Experiment, room: int) -> Method:
    """Return the method that decides on the experiment's configs.

    Args:
        experiment: with its search settings.
        room: configs in training at a time that keep all ranks busy.

    Raises:
        ExperimentError: configs cannot be made as asked, or the method cannot be had.
    """
    search = experiment.search
    source, most = make_source(experiment)
    if is_reference(experiment.method):
        return _own(experiment, room, source)
    if experiment.method in RUNGS:
        return _of_rungs(experiment, source, most)
    if experiment.method == "population":
        return _population(experiment, source, most)
    plain = Plain(source, experiment.epochs, most)
    if search.patience is None and search.median is None:
        return plain
    return Ruled(plain, experiment.epochs, patience=search.patience, grace=search.median)


def room_of(experiment: Experiment, num_ranks: int) -> int:
    """Return how many configs are in training at a time, where they come one after another."""
    by_ranks = IN_FLIGHT_ASHA if experiment.method == "asha" else IN_FLIGHT
    return experiment.search.in_flight or by_ranks * num_ranks


def make_source(experiment: Experiment) -> tuple[Source, int]:
    """Return where configs come from, and how many there are at most.

    Raises:
        ExperimentError: the constraint is wrong or leaves nothing, there are too few, or the
            sampler cannot be had.
    """
    count = num_configs(experiment)
    if experiment.sampler == "random" and count is None:
        constraint = careful(experiment.load_constraint())
        return Rows(draw_endlessly(experiment.space, experiment.seed, constraint)), MOST_CONFIGS
    if experiment.sampler in FIXED:
        rows = rows_of(experiment)
        return Rows(rows), len(rows)
    from mophpc.search.samplers import OptunaSource

    constraint = careful(experiment.load_constraint())
    combinations = combinations_of(experiment.space)
    if count is not None and combinations is not None and combinations <= MOST_CONFIGS:
        there = sum(1 for _ in every_combination(experiment.space, constraint))
        if there < count:
            raise ExperimentError(
                f"{count_said(experiment)}, but there are {there} combinations; ask for fewer, or "
                f"for a larger space"
            )
    # A user's own method has the options for itself.
    options = {} if is_reference(experiment.method) else experiment.search.options
    source = OptunaSource(
        experiment.sampler, experiment.space, experiment.seed, constraint, options
    )
    return source, MOST_CONFIGS if count is None else count


def _of_rungs(experiment: Experiment, source: Source, most: int) -> Method:
    reduction = experiment.search.reduction
    rungs = make_rungs(experiment.search.min_epochs, reduction, experiment.epochs)
    if experiment.method == "asha":
        return Asha(source, rungs, most, reduction)
    is_one = experiment.method == "halving"
    sizes = [most] if is_one else hyperband_sizes(len(rungs), reduction)
    return Halving(source, rungs, sizes, reduction)


def _population(experiment: Experiment, source: Source, most: int) -> Method:
    search = experiment.search
    if most < 2:
        raise ExperimentError(
            'search.method is "population", which needs 2 configs or more; there is 1'
        )
    explorer = Explorer(
        experiment.space,
        tuple(explored(search, experiment.space)),
        tuple(search.factors),
        careful(experiment.load_constraint()),
    )
    return Population(
        source,
        most,
        epochs=experiment.epochs,
        interval=interval_of(search, experiment.epochs),
        quantile=search.quantile,
        explorer=explorer,
        seed=experiment.seed,
    )


def _own(experiment: Experiment, room: int, source: Source) -> Method:
    drawn = Drawn(source)
    brief = Brief(
        space=experiment.space,
        epochs=experiment.epochs,
        seed=experiment.seed,
        room=room,
        draw=drawn.draw,
        options=experiment.search.options,
    )
    names = dict.fromkeys(name for row in experiment.configs for name in row)
    method = load_method(experiment.method, brief)
    shape = Shape(experiment.space, tuple(names))
    title = f"search.method '{experiment.method}'"
    return Own(Checked(method, experiment.epochs, shape, title), drawn)
