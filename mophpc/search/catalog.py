"""From an experiment to the method that decides on its configs."""

from __future__ import annotations

from mophpc.experiment import Experiment
from mophpc.search.asha import Asha
from mophpc.search.halving import Halving, hyperband_sizes, make_rungs
from mophpc.search.method import Method
from mophpc.search.plain import Plain
from mophpc.search.sources import Rows, Source
from mophpc.search.space import make_rows


def make_method(experiment: Experiment, room: int) -> Method:  # noqa: ARG001
    """Return the method that decides on the experiment's configs.

    Args:
        experiment: with its search settings.
        room: configs in training at a time that keep all ranks busy.

    Raises:
        ExperimentError: configs cannot be made as asked, or the method cannot be had.
    """
    search, epochs = experiment.search, experiment.epochs
    source, most = make_source(experiment)
    if experiment.method == "halving":
        rungs = make_rungs(search.min_epochs, search.reduction, epochs)
        return Halving(source, rungs, [most], search.reduction)
    if experiment.method == "hyperband":
        rungs = make_rungs(search.min_epochs, search.reduction, epochs)
        sizes = hyperband_sizes(len(rungs), search.reduction)
        return Halving(source, rungs, sizes, search.reduction)
    if experiment.method == "asha":
        rungs = make_rungs(search.min_epochs, search.reduction, epochs)
        return Asha(source, rungs, most, search.reduction)
    return Plain(source, epochs, most)


def make_source(experiment: Experiment) -> tuple[Source, int]:
    """Return where configs come from, and how many there are at most.

    Raises:
        ExperimentError: the constraint is wrong or leaves nothing, or there are too few.
    """
    rows = make_rows(experiment)
    return Rows(rows), len(rows)
