"""One config bound to its state on one rank: train, evaluate, let go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mophpc.train.arena import Layout
from mophpc.train.batches import Clocked, Rows, batches
from mophpc.train.bind import Arena, clear_gradients, settle
from mophpc.train.evaluation import evaluate
from mophpc.train.seeds import EVALUATION, VISIT, sample_order, seed_generators
from mophpc.train.task import Batch, Task
from mophpc.train.weights import save_weights


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a visit did."""

    rows: int
    loss: float
    """Mean over the rows trained."""
    diverged: bool
    """A loss was not finite; training stopped before that batch's backward pass."""
    data_s: float = 0.0
    """Seconds in which batches were made ready."""


def train_step(task: Task, batch: Batch) -> float | None:
    """Train one batch; return its loss, or None where that is not finite."""
    if task.training_step is not None:
        loss = task.training_step(task, batch)
        if not isinstance(loss, torch.Tensor | float | int):
            kind = type(loss).__name__
            raise TypeError(f"training_step returned a {kind}; it must return the loss")
        value = loss.item() if isinstance(loss, torch.Tensor) else float(loss)
        if not math.isfinite(value):
            return None
    else:
        task.optimizer.zero_grad(set_to_none=True)
        loss = task.loss(task.model(batch[task.inputs]), batch[task.targets])
        value = loss.item()
        if not math.isfinite(value):
            return None
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if task.clip_grad_norm is not None:
            parameters = [p for group in task.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, task.clip_grad_norm)
        task.optimizer.step()
    if task.lr_scheduler is not None and task.scheduler_interval == "step":
        task.lr_scheduler.step()
    return value


class Session:
    """A Task bound to an arena."""

    def __init__(
        self,
        task: Task,
        layout: Layout,
        arena: Arena,
        *,
        seed: int,
        progress: list[float],
        between: Callable[[], None],
    ) -> None:
        self.task = task
        self._layout = layout
        self._arena = arena
        self._seed = seed
        self._between = between
        # Of the epoch so far: sum of losses over rows, rows, seconds. It hops with the state.
        self._loss_sum, self._rows, self._seconds = progress or [0.0, 0.0, 0.0]

    def train(self, epoch: int, shard: int, rows: Rows) -> Outcome:
        """Train one visit: every row of the shard once."""
        start_s = time.perf_counter()
        task = self.task
        seed_generators(self._seed, epoch, shard, VISIT)
        task.model.train()
        if isinstance(task.loss, torch.nn.Module):
            task.loss.train()
        clear_gradients(task)
        loss_sum, trained, diverged = 0.0, 0, False
        order = sample_order(self._seed, epoch, shard, rows.rows)
        clocked = Clocked(batches(rows, order, task.batch_size))
        for batch in clocked:
            size = len(batch[task.targets])
            if task.batch_transform is not None:
                batch = task.batch_transform(batch)  # noqa: PLW2901  # it stands for the batch
            value = train_step(task, batch)
            if value is None:
                diverged = True
                break
            loss_sum += value * size
            trained += size
            self._between()
        self._loss_sum += loss_sum
        self._rows += trained
        self._seconds += time.perf_counter() - start_s
        return Outcome(trained, loss_sum / max(1, trained), diverged, clocked.seconds)

    def evaluate(self, epoch: int, rows: Rows) -> dict[str, float]:
        """End an epoch: evaluate, step the scheduler, return losses, metrics and seconds.

        `seconds` is the time that the epoch's visits took, on whichever ranks.
        """
        seed_generators(self._seed, epoch, 0, EVALUATION)
        found = {"train_loss": self._loss_sum / max(1, self._rows), "seconds": self._seconds}
        found |= evaluate(self.task, rows, self._between)
        step_epoch(self.task, found)
        self._loss_sum, self._rows, self._seconds = 0.0, 0.0, 0.0
        return found

    def release(self) -> bytes:
        """Bring the whole state into the arena; return the rest of it."""
        clear_gradients(self.task)
        return settle(
            self.task, self._layout, self._arena, (self._loss_sum, self._rows, self._seconds)
        )

    def save(self, path: Path) -> int:
        """Write the model's weights as safetensors; return the bytes written."""
        return save_weights(self.task, path)


def step_epoch(task: Task, metrics: dict[str, float]) -> None:
    """Step a per-epoch scheduler."""
    if task.lr_scheduler is None or task.scheduler_interval != "epoch":
        return
    if isinstance(task.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        task.lr_scheduler.step(metrics[task.scheduler_metric])
    else:
        task.lr_scheduler.step()
