"""Makes sessions: builds Tasks, lays their state out, and proves that lean builds are safe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mophpc.errors import ExperimentError, MophpcError
from mophpc.train.arena import Layout, allocate
from mophpc.train.batches import Rows, batches
from mophpc.train.bind import Arena, bind, bind_new, layout_of, settle
from mophpc.train.digest import state_sha256
from mophpc.train.seeds import seed_all
from mophpc.train.session import Session, train_step
from mophpc.train.task import Batch, Task, check_task

_log = logging.getLogger(__name__)


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

    def resume(self, config_id: int, arena: Arena, rest: bytes) -> Session:
        """Build a config around a state that arrived.

        Raises:
            ExperimentError: the user's `build` raised or returned the wrong thing.
            StateError: the state is not this config's.
        """
        probe = self._probes[config_id]
        task, progress = bind(
            lambda: self._build(config_id), probe.layout, arena, rest, lean=probe.ordinary is None
        )
        return self._session(task, probe.layout, arena, progress)

    def digest(self, config_id: int, arena: Arena, rest: bytes) -> str:
        """Return the state's `state_sha256`."""
        return state_sha256(self._probes[config_id].layout, arena, rest)

    def probe(self, config_id: int, rows: Rows) -> Probe:
        """Train two batches on the side to learn a config's layout and whether lean builds work.

        The second batch is trained twice from the same state, once around an ordinary build and
        once around one on the meta device. Only if every byte agrees are visits built lean.

        Raises:
            ExperimentError: `build` or the first batch failed; the message names the config.
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
            del task
            ordinary = self._trial(config_id, layout, arena.copy(), rest, batch, lean=False)
        except MophpcError as error:
            raise ExperimentError(f"config {name}: {error}") from error
        except Exception as error:  # whatever the user's code raises
            raise ExperimentError(
                f"config {name}: training on the first batch raised {_said(error)}"
            ) from error
        reason = None
        try:
            lean = self._trial(config_id, layout, arena, rest, batch, lean=True)
            if lean[1] != ordinary[1] or not np.array_equal(lean[0], ordinary[0]):
                reason = "a build on the meta device trains differently"
        except Exception as error:  # any failure means: build it the ordinary way
            reason = f"building on the meta device fails: {_said(error)}"
        return Probe(layout, reason, metrics)

    def _trial(
        self, config_id: int, layout: Layout, arena: Arena, rest: bytes, batch: Batch, *, lean: bool
    ) -> tuple[Arena, bytes]:
        task, _ = bind(lambda: self._build(config_id), layout, arena, rest, lean=lean)
        self._step(task, batch)
        if not lean and layout_of(task).nbytes != layout.nbytes:
            _log.info("config %s: its state grows as it trains", self._configs[config_id][0])
        return arena, settle(task, layout, arena)

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
        except Exception as error:
            raise ExperimentError(f"config {name}: build raised {_said(error)}") from error
        return check_task(task, name, self._fields)

    def _session(self, task: Task, layout: Layout, arena: Arena, progress: list[float]) -> Session:
        return Session(
            task, layout, arena, seed=self._seed, progress=progress, between=self._between
        )


def _said(error: Exception) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def set_threads(threads: int) -> None:
    """Set how many threads torch uses in this process; part of what makes results equal."""
    torch.set_num_threads(threads)
