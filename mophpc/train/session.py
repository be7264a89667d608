"""One config bound to its state on one rank: train, evaluate, let go."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mophpc.train.arena import Arena, Home, Layout
from mophpc.train.batches import Clocked, Rows, batches
from mophpc.train.bind import clear_gradients, settle
from mophpc.train.cursor import Cursor, put_back, sparse_gradient, take
from mophpc.train.device import CPU, Device
from mophpc.train.evaluation import evaluate
from mophpc.train.hidden import Values, changed, look
from mophpc.train.seeds import EVALUATION, VISIT, sample_order, seed_generators
from mophpc.train.stage import Held, InPlace, Staging
from mophpc.train.task import Batch, Task
from mophpc.train.weights import Weights


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a visit did."""

    rows: int
    loss: float
    """Mean over the rows trained."""
    diverged: bool
    """A loss was not finite; training stopped before that batch's backward pass."""
    data_s: float = 0.0
    """Seconds in which batches were made ready, since this call began."""
    is_paused: bool = False
    """It was asked to stop before its last batch; `Session.cursor` says where it stands."""


def train_step(task: Task, batch: Batch, *, look: bool = True) -> Tensor | float | None:
    """Train one batch; return its loss.

    Args:
        task: what is trained.
        batch: on its device.
        look: at the loss, before the backward pass; return None where it is not finite.
    """
    loss: Tensor | float
    if task.training_step is not None:
        loss = task.training_step(task, batch)
        if not isinstance(loss, torch.Tensor | float | int):
            kind = type(loss).__name__
            raise TypeError(f"training_step returned a {kind}; it must return the loss")
        if isinstance(loss, torch.Tensor) and loss.numel() != 1:
            raise TypeError(
                f"training_step returned a tensor of shape {tuple(loss.shape)}; it must return the "
                f"loss, one number"
            )
        loss = loss.detach() if isinstance(loss, torch.Tensor) else float(loss)
        if look and not math.isfinite(loss):
            return None
    else:
        task.optimizer.zero_grad(set_to_none=True)
        with task.autocast():
            output = task.loss(task.model(batch[task.inputs]), batch[task.targets])
        loss = output.detach()
        if look and not math.isfinite(loss):
            return None
        _backward(task, output)
    if task.lr_scheduler is not None and task.scheduler_interval == "step":
        task.lr_scheduler.step()
    return loss


def _backward(task: Task, loss: Tensor) -> None:
    """Backward pass, clipping and optimizer step, with scaled gradients where there is a scaler."""
    scaler = task.scaler
    scaled = loss if scaler is None else scaler.scale(loss)
    scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if task.clip_grad_norm is not None:
        if scaler is not None:
            scaler.unscale_(task.optimizer)
        parameters = [p for group in task.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, task.clip_grad_norm)
    if scaler is None:
        task.optimizer.step()
    else:
        scaler.step(task.optimizer)
        scaler.update()


class _Losses:
    """The losses of a visit, looked at after each batch or, for a GPU's sake, many at once."""

    def __init__(self, look_every: int, cursor: Cursor | None = None) -> None:
        self._look_every = look_every
        self._unseen: list[tuple[Tensor | float, int]] = []
        self.batches = cursor.batches if cursor else 0
        self.loss_sum = cursor.loss_sum if cursor else 0.0
        self.rows = cursor.rows if cursor else 0
        self.is_finite = True

    def add(self, loss: Tensor | float, rows: int) -> None:
        """Take the mean loss over some rows."""
        self._unseen.append((loss, rows))
        self.batches += 1
        # Counted from the visit's first batch: one that diverges ends where it would have ended.
        if self.batches % self._look_every == 0:
            self.look()

    def look(self) -> None:
        """Add up, in order, until one is not finite."""
        for value, (_, rows) in zip(_values(self._unseen), self._unseen, strict=True):
            self.is_finite = self.is_finite and math.isfinite(value)
            if self.is_finite:
                self.loss_sum += value * rows
                self.rows += rows
        self._unseen.clear()

    def look_if_finite(self) -> bool:
        """Look now if all losses are finite; return whether they are."""
        if not all(math.isfinite(value) for value in _values(self._unseen)):
            return False
        self.look()
        return True


def _values(losses: list[tuple[Tensor | float, int]]) -> list[float]:
    """Return losses as numbers, with one copy from the device."""
    tensors = [loss for loss, _ in losses if isinstance(loss, torch.Tensor)]
    if len(tensors) < 2 or len(tensors) < len(losses):
        return [float(loss) for loss, _ in losses]
    return [float(value) for value in torch.stack([t.double().reshape(()) for t in tensors]).cpu()]


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
        device: Device = CPU,
        home: Home | None = None,
        staging: Staging | None = None,
    ) -> None:
        self.task = task
        self._layout = layout
        self._arena = arena
        self._device = device
        self._home = home or Home.of(arena)
        self._staging: Staging = staging or InPlace()
        self._seed = seed
        self._between = between
        # Of the epoch so far: sum of losses over rows, rows, seconds. It hops with the state.
        self._loss_sum, self._rows, self._seconds, *notes = progress or [0.0, 0.0, 0.0]
        self.notes = notes
        """Numbers of the rank program, which hop too."""
        self.cursor: Cursor | None = None
        """Where the visit stands, if it has been stopped before its last batch."""
        self.why_not_paused: str | None = None
        """Why the last visit did not stop when it was last asked to."""

    def train(
        self,
        epoch: int,
        shard: int,
        rows: Rows,
        look_every: int | None = None,
        *,
        should_stop: Callable[[], bool] | None = None,
        cursor: Cursor | None = None,
    ) -> Outcome:
        """Train one visit, every row of the shard once, or what is left of it.

        Args:
            epoch: counted from 0.
            shard: whose rows these are.
            rows: of the shard.
            look_every: look at losses after so many batches; None: as the device wants it.
            should_stop: asked after each batch but the last; where it says so, the visit stops,
                unless it has diverged or something cannot be carried (`why_not_paused`).
            cursor: where the visit stopped before; the session is bound to the state of then.

        Raises:
            StateError: the cursor is one of another visit.
        """
        start_s = time.perf_counter()
        task, self.cursor, self.why_not_paused = self.task, None, None
        before = look(task) if should_stop is not None else {}
        self._begin(epoch, shard, rows, cursor)
        every = self._device.look_every if look_every is None else look_every
        losses = _Losses(every, cursor)
        order = sample_order(self._seed, epoch, shard, rows.rows)
        left = order[losses.batches * task.batch_size :]
        last = -(-rows.rows // task.batch_size)
        clocked = Clocked(batches(rows, left, task.batch_size, self._device))
        for batch in clocked:
            size = len(batch[task.targets])
            if task.batch_transform is not None:
                batch = task.batch_transform(batch)  # noqa: PLW2901  # it stands for the batch
            loss = train_step(task, batch, look=every == 1)
            losses.add(math.nan if loss is None else loss, size)
            if not losses.is_finite:
                break
            self._between()
            asked = should_stop is not None and losses.batches < last and should_stop()
            if asked and self._can_stop(before) and losses.look_if_finite():
                break
        losses.look()
        is_paused = losses.is_finite and losses.batches < last
        seconds = time.perf_counter() - start_s + (cursor.seconds if cursor else 0.0)
        if is_paused:
            self.cursor = self._stop(epoch, shard, rows, losses, seconds)
        else:
            self._loss_sum += losses.loss_sum
            self._rows += losses.rows
            self._seconds += seconds
        mean = losses.loss_sum / max(1, losses.rows)
        return Outcome(losses.rows, mean, not losses.is_finite, clocked.seconds, is_paused)

    def _begin(self, epoch: int, shard: int, rows: Rows, cursor: Cursor | None) -> None:
        task = self.task
        if cursor is not None:
            cursor.check(epoch, shard, rows.rows, task.batch_size)
        seed_generators(self._seed, epoch, shard, VISIT)
        task.model.train()
        if isinstance(task.loss, torch.nn.Module):
            task.loss.train()
        clear_gradients(task)
        if cursor is not None:
            put_back(task, cursor, self._device)

    def _can_stop(self, before: Values) -> bool:
        """Return whether the visit can go on from here with what is carried."""
        self.why_not_paused = sparse_gradient(self.task)
        if self.why_not_paused is None:
            name = changed(before, self.task)
            self.why_not_paused = name and f"{name} has changed, which is no part of the state"
        return self.why_not_paused is None

    def _stop(self, epoch: int, shard: int, rows: Rows, losses: _Losses, seconds: float) -> Cursor:
        """Return where the visit stands; its losses are not yet those of the epoch."""
        tensors, flags = take(self.task, self._device)
        return Cursor(
            epoch,
            shard,
            shard_rows=rows.rows,
            batch_size=self.task.batch_size,
            batches=losses.batches,
            loss_sum=losses.loss_sum,
            rows=losses.rows,
            seconds=seconds,
            tensors=tensors,
            flags=flags,
        )

    def evaluate(self, epoch: int, rows: Rows) -> dict[str, float]:
        """End an epoch: evaluate, step the scheduler, return losses, metrics and seconds.

        `seconds` is the time that the epoch's visits took, on whichever ranks.
        """
        seed_generators(self._seed, epoch, 0, EVALUATION)
        found = {"train_loss": self._loss_sum / max(1, self._rows), "seconds": self._seconds}
        found |= evaluate(self.task, rows, self._between, self._device)
        step_epoch(self.task, found)
        self._loss_sum, self._rows, self._seconds = 0.0, 0.0, 0.0
        return found

    def release(self) -> tuple[bytes, Held]:
        """Bring the whole state together; return the rest of it, and what still has its arena."""
        clear_gradients(self.task)
        progress = (self._loss_sum, self._rows, self._seconds, *self.notes)
        rest = settle(self.task, self._layout, self._home, progress, self._device)
        return rest, self._staging.release(self._arena)

    def snapshot(self) -> Weights:
        """Return a copy of the model's weights, on the host, once they are computed."""
        return Weights(self.task)


def step_epoch(task: Task, metrics: dict[str, float]) -> None:
    """Step a per-epoch scheduler."""
    if task.lr_scheduler is None or task.scheduler_interval != "epoch":
        return
    if isinstance(task.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        task.lr_scheduler.step(metrics[task.scheduler_metric])
    else:
        task.lr_scheduler.step()
