"""Makes sessions: builds Tasks, lays their state out, and proves that lean builds are safe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mophpc.errors import ExperimentError, MophpcError
from mophpc.train.arena import Layout, allocate
from mophpc.train.batches import InMemory, Rows, batches
from mophpc.train.bind import Arena, Draft, bind, bind_new, layout_of, settle
from mophpc.train.digest import state_sha256
from mophpc.train.evaluation import evaluate
from mophpc.train.seeds import seed_all
from mophpc.train.session import Session, train_step
from mophpc.train.task import Batch, Task, check_task


@dataclass(frozen=True, slots=True)
class Probe:
    """What two batches of a config told about its state."""

    layout: Layout
    ordinary: str | None
    """Why it must be built with its initial weights at every visit; None where it need not."""
    metrics: tuple[str, ...] = ()
    """Names of the Task's metrics."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, to be shared with all ranks."""
        return {
            "layout": self.layout.to_json(),
            "ordinary": self.ordinary,
            "metrics": list(self.metrics),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Probe:
        """Read what `to_json` gave."""
        return cls(Layout.from_json(value["layout"]), value["ordinary"], tuple(value["metrics"]))


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """The state after a batch, and the metrics of that batch, or why there are none."""

    arena: Arena
    rest: bytes
    metrics: dict[str, float]
    failure: str | None = None


class TorchTrainer:
    """Builds configs and binds them to their states.

    Args:
        build: the user's function.
        configs: (name, hyperparameters) of each config, by config_id.
        fields: the store's field names.
        seed: of the experiment.
        between: called after each batch; it may raise to stop.
    """

    def __init__(
        self,
        build: Callable[[dict[str, Any]], Any],
        configs: Sequence[tuple[str, Mapping[str, Any]]],
        *,
        fields: tuple[str, ...],
        seed: int,
        between: Callable[[], None] = lambda: None,
    ) -> None:
        self._build_config = build
        self._configs = configs
        self._fields = fields
        self._seed = seed
        self._between = between
        self._probes: Sequence[Probe] = ()

    def adopt(self, probes: Sequence[Probe]) -> None:
        """Take over what the probes of all configs told, by config_id."""
        self._probes = probes

    def name(self, config_id: int) -> str:
        """Return a config's name."""
        return self._configs[config_id][0]

    def nbytes(self, config_id: int) -> int:
        """Return the bytes of a config's arena."""
        return self._probes[config_id].layout.nbytes

    def metrics(self, config_id: int) -> tuple[str, ...]:
        """Return the names of a config's metrics."""
        return self._probes[config_id].metrics

    def ordinary(self, config_id: int) -> str | None:
        """Return why a config must be built with its initial weights at every visit, or None."""
        return self._probes[config_id].ordinary

    def allocate(self, nbytes: int) -> Arena:
        """Return memory for an arena."""
        return allocate(nbytes)

    def start(self, config_id: int, arena: Arena) -> Session:
        """Build a config with its initial weights, in `arena`.

        Raises:
            ExperimentError: the user's `build` raised or returned the wrong thing.
        """
        layout = self._probes[config_id].layout
        task = bind_new(self._build(config_id), layout, arena)
        return self._session(task, layout, arena, [])

    def draft(self, config_id: int, arena: Arena) -> Draft:
        """Build a config around a state that is on its way to `arena`.

        Raises:
            ExperimentError: the user's `build` raised or returned the wrong thing.
            StateError: what it built has another layout.
        """
        probe = self._probes[config_id]
        lean = probe.ordinary is None
        return Draft(lambda: self._build(config_id), probe.layout, arena, lean=lean)

    def resume(
        self, config_id: int, arena: Arena, rest: bytes, draft: Draft | None = None
    ) -> Session:
        """Bind a config to a state that arrived, with the draft made for it if there is one.

        Raises:
            ExperimentError: the user's `build` raised or returned the wrong thing.
            StateError: the state is not this config's.
        """
        draft = self.draft(config_id, arena) if draft is None else draft
        task, progress = draft.finish(rest)
        return self._session(task, self._probes[config_id].layout, arena, progress)

    def digest(self, config_id: int, arena: Arena, rest: bytes) -> str:
        """Return the state's `state_sha256`."""
        return state_sha256(self._probes[config_id].layout, arena, rest)

    def probe(self, config_id: int, rows: Rows, shard_rows: Sequence[int] = ()) -> Probe:
        """Train two batches on the side to learn a config's layout and whether lean builds work.

        The second batch is trained twice from the same state, once around an ordinary build and
        once around one on the meta device, and both are evaluated on it. Only if every byte
        and every metric agree are visits built lean.

        Args:
            config_id: the config.
            rows: a shard, from which the batch is taken.
            shard_rows: rows of all shards, to try the shortest last batch that there will be.

        Raises:
            ExperimentError: `build` or a batch failed; the message names the config.
        """
        name = self._configs[config_id][0]
        task = self._build(config_id)
        try:
            batch = next(batches(rows, np.arange(min(task.batch_size, rows.rows)), task.batch_size))
            self._step(task, batch)
            layout = layout_of(task)
            arena = allocate(layout.nbytes)
            arena[:] = 0  # bytes between tensors are compared too
            rest = settle(task, layout, arena)
            metrics = tuple(task.metrics)
            self._try_short(name, task, batch, shard_rows)
            del task
            other = allocate(layout.nbytes)
            other[:] = arena
            ordinary = self._rehearse(config_id, layout, other, rest, batch, lean=False)
        except MophpcError as error:
            named = str(error).startswith(f"config {name}: ")
            raise ExperimentError(str(error) if named else f"config {name}: {error}") from (
                error.__cause__ or error
            )
        except (Exception, SystemExit) as error:  # whatever the user's code does
            raise ExperimentError(
                f"config {name}: training on the first batch raised {said(error)}"
            ) from error
        reason = None
        try:
            lean = self._rehearse(config_id, layout, arena, rest, batch, lean=True)
            if lean.rest != ordinary.rest or not np.array_equal(lean.arena, ordinary.arena):
                reason = "a build on the meta device trains differently"
            elif ordinary.failure is not None:
                reason = f"its evaluation cannot be tried on a batch: {ordinary.failure}"
            elif lean.failure is not None:
                reason = f"evaluating a build on the meta device fails: {lean.failure}"
            elif repr(lean.metrics) != repr(ordinary.metrics):
                reason = "a build on the meta device is evaluated differently"
        except (Exception, SystemExit) as error:  # any failure means: build it the ordinary way
            # Without the config's name: many configs may fail alike, which is said once.
            cause = error.__cause__ if isinstance(error, ExperimentError) else error
            reason = f"building on the meta device fails: {said(cause or error)}"
        return Probe(layout, reason, metrics)

    def _try_short(self, name: str, task: Task, batch: Batch, shard_rows: Sequence[int]) -> None:
        """Train the shortest last batch: BatchNorm, for one, cannot be trained on a single row."""
        size = min((rows % task.batch_size or task.batch_size for rows in shard_rows), default=0)
        if not 0 < size < len(batch[task.targets]):
            return
        try:
            self._step(task, {field: rows[:size] for field, rows in batch.items()})
        except (Exception, SystemExit) as error:
            raise ExperimentError(
                f"config {name}: the last batch of a shard has {size} of {task.batch_size} rows, "
                f"and training on so few raised {said(error)}; choose another batch_size"
            ) from error

    def _rehearse(
        self, config_id: int, layout: Layout, arena: Arena, rest: bytes, batch: Batch, *, lean: bool
    ) -> _Rehearsal:
        task, _ = bind(lambda: self._build(config_id), layout, arena, rest, lean=lean)
        self._step(task, batch)
        rest = settle(task, layout, arena)
        try:
            # Metrics and transforms may hold tensors of their own, which a lean build empties.
            return _Rehearsal(arena, rest, evaluate(task, InMemory(batch)))
        except (Exception, SystemExit) as error:  # a metric may well want more than a batch
            if isinstance(error, ExperimentError) and not lean:
                raise  # one that returns no number will not return one later
            return _Rehearsal(arena, rest, {}, said(error))

    def _step(self, task: Task, batch: Batch) -> None:
        seed_all(self._seed)
        task.model.train()
        batch = dict(batch)
        train_step(task, task.batch_transform(batch) if task.batch_transform else batch)

    def _build(self, config_id: int) -> Task:
        name, values = self._configs[config_id]
        seed_all(self._seed)
        try:
            task = self._build_config(dict(values))
        except (Exception, SystemExit) as error:
            raise ExperimentError(f"config {name}: build raised {said(error)}") from error
        return check_task(task, name, self._fields)

    def _session(self, task: Task, layout: Layout, arena: Arena, progress: list[float]) -> Session:
        return Session(
            task, layout, arena, seed=self._seed, progress=progress, between=self._between
        )


def said(error: BaseException) -> str:
    """Return what kind of error it is, and the first line of what it says."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def set_threads(threads: int) -> None:
    """Set how many threads torch uses in this process; part of what makes results equal."""
    torch.set_num_threads(threads)
