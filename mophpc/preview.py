"""What a run would do, found out without MPI and before any queue."""

from __future__ import annotations

from pathlib import Path

from mophpc.case import Asked, Case, load_given, make_case, with_settings
from mophpc.data import open_store, read_shard
from mophpc.experiment import Experiment
from mophpc.schedule import assign_shards
from mophpc.search import make_method, room_of
from mophpc.search.space import make_configs
from mophpc.search_settings import FIXED, is_reference
from mophpc.train.checks import check_objective, ordinary_builds
from mophpc.train.trainer import TorchTrainer, set_threads

PROBE_BYTES = 256 << 20
"""Memory for the rows of the first shard, of which a batch is trained."""


def preview(experiment: Experiment, asked: Asked) -> Case:
    """Check an experiment as a run would, and return what it asks for.

    Raises:
        UserError: what a run would raise before its first visit, or something does not fit.
    """
    asked.refuse_sizes()
    asked = with_settings(asked, experiment)
    given = load_given(asked.costs)
    build = experiment.load_build()
    store = open_store(Path(experiment.data.store))
    assign_shards(store.num_shards, asked.ranks)
    if is_reference(experiment.method) or experiment.sampler not in FIXED:
        # None of its configs is known, which is said below; what is wrong with it comes first.
        make_method(experiment, room_of(experiment, asked.ranks))
    configs = make_configs(experiment)
    names = [config.name for config in configs]
    set_threads(experiment.threads)
    trainer = TorchTrainer(
        build,
        [(config.name, config.values) for config in configs],
        fields=tuple(field.name for field in store.fields),
        seed=experiment.seed,
    )
    rows = read_shard(store, 0, memory_budget=PROBE_BYTES)
    trainer.adopt([trainer.probe(config.config_id, rows, store.shard_rows) for config in configs])
    check_objective(trainer, names, experiment.objective.metric)
    return make_case(
        asked,
        names,
        given,
        num_shards=store.num_shards,
        num_epochs=asked.epochs or experiment.epochs,
        shard_rows=store.shard_rows,
        state_nbytes=[trainer.nbytes(config.config_id) for config in configs],
        notes=ordinary_builds(trainer, names),
    )
