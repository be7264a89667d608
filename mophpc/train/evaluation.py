"""Evaluation of a Task on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mophpc.errors import ExperimentError
from mophpc.train.batches import Rows, batches
from mophpc.train.device import CPU, Device
from mophpc.train.task import Task


def evaluate(
    task: Task, rows: Rows, between: Callable[[], None] = lambda: None, device: Device = CPU
) -> dict[str, float]:
    """Return `valid_loss` (mean over rows) and the Task's metrics on all validation rows."""
    model = task.eval_model or task.model
    streaming: dict[str, Any] = {
        name: m for name, m in task.metrics.items() if hasattr(m, "compute")
    }
    whole = {name: m for name, m in task.metrics.items() if name not in streaming}
    for metric in streaming.values():
        metric.reset()
    kept: list[tuple[Any, Any]] = []
    losses: list[tuple[Any, int]] = []
    was_training = model.training
    model.eval()
    if isinstance(task.loss, torch.nn.Module):
        task.loss.eval()
    order = np.arange(rows.rows)
    with torch.no_grad():
        for batch in batches(rows, order, task.eval_batch_size or task.batch_size, device):
            size = len(batch[task.targets])
            if task.eval_batch_transform is not None:
                batch = task.eval_batch_transform(batch)  # noqa: PLW2901
            with task.autocast():
                outputs, targets = model(batch[task.inputs]), batch[task.targets]
                losses.append((task.loss(outputs, targets), size))
            for name, metric in streaming.items():
                with _naming(name):
                    metric.update(outputs, targets)
            if whole:
                kept.append((outputs, targets))
            between()
        # Only now, so that a GPU need not wait for Python after each batch.
        loss_sum = sum((float(loss) * size for loss, size in losses), 0.0)
        found = {"valid_loss": loss_sum / max(1, sum(size for _, size in losses))}
        if whole:
            outputs = concatenate([outputs for outputs, _ in kept])
            targets = concatenate([targets for _, targets in kept])
            for name, metric in whole.items():
                with _naming(name):
                    found[name] = _number(name, metric(outputs, targets))
    for name, metric in streaming.items():
        with _naming(name):
            found[name] = _number(name, metric.compute())
    model.train(was_training)
    return {name: found[name] for name in ("valid_loss", *task.metrics)}


_NOTE = "in metric "


@contextmanager
def _naming(metric: str) -> Iterator[None]:
    """Note on an error that it came from a metric."""
    try:
        yield
    except (Exception, SystemExit) as error:  # whatever the user's code does
        error.add_note(_NOTE + metric)
        raise


def metric_of(error: BaseException) -> str | None:
    """Return the metric that raised an error in `evaluate`; None where something else did."""
    notes = [n for n in getattr(error, "__notes__", []) if n.startswith(_NOTE)]
    return notes[0].removeprefix(_NOTE) if notes else None


def _number(name: str, value: Any) -> float:
    """Return what a metric returned as a float.

    Raises:
        ExperimentError: it is not one number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ExperimentError(
            f"metric '{name}' returned a {type(value).__name__}{shape}; it must return one number"
        ) from None


def concatenate(parts: list[Any]) -> Any:
    """Join the batches' outputs along rows, inside tuples, lists and dicts too."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.reshape(1) if part.ndim == 0 else part for part in parts])
    if isinstance(first, Mapping):
        return {key: concatenate([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple | list):
        joined = (concatenate(list(items)) for items in zip(*parts, strict=True))
        return type(first)(joined) if type(first) in (tuple, list) else type(first)(*joined)
    return parts
