"""What a user's `build(config)` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mophpc.errors import ExperimentError

Batch = dict[str, Tensor]
"""Field name to the rows of a batch, (rows, *shape of the field)."""


SCALER = "scaler"
"""Name in `Task.extras` of what scales the gradients of `float16`."""

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What forward passes compute in; None: what the tensors are."""


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state can be taken and given back: an EMA copy, a gradient scaler."""

    def state_dict(self) -> Any:
        """Return the state as nested dicts, lists and tuples of tensors and plain values."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take over a state."""


@dataclass
class Task:
    """A config made concrete: what is trained, and how.

    All that must survive from visit to visit is in `model`, `loss` (where it is a module),
    `optimizer`, `lr_scheduler` and `extras`; everything else is built anew for each visit.
    Gradients do not hop: a visit starts with none.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Tensor], Tensor]
    """Called with the model's outputs and the targets of a batch; returns a scalar."""
    batch_size: int
    metrics: Mapping[str, Callable[[Any, Tensor], Any]] = field(default_factory=dict)
    """Each called once per evaluation with the outputs and targets of all validation rows; an
    object with `update`, `compute` and `reset` (torchmetrics) is fed batch by batch instead."""
    lr_scheduler: Any = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"
    """Step the scheduler after each evaluation, or after each batch."""
    scheduler_metric: str = "valid_loss"
    """What a `ReduceLROnPlateau` is given."""
    batch_transform: Callable[[Batch], Batch] | None = None
    """Applied to each training batch; randomness from torch, numpy and `random` is seeded."""
    eval_batch_transform: Callable[[Batch], Batch] | None = None
    """Applied to each validation batch."""
    training_step: Callable[[Task, Batch], Tensor] | None = None
    """Replaces the usual step (zero_grad, forward, loss, backward, clip, optimizer step);
    returns the loss. A per-step scheduler is stepped after it."""
    clip_grad_norm: float | None = None
    """Largest 2-norm of all gradients together, in the usual step."""
    extras: Mapping[str, Stateful] = field(default_factory=dict)
    """Further objects whose state hops too."""
    eval_model: nn.Module | None = None
    """What is evaluated instead of `model`: an EMA copy named in `extras`."""
    eval_batch_size: int | None = None
    inputs: str = "x"
    """Field that the model is called with."""
    targets: str = "y"
    """Field that loss and metrics are called with."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What model and loss are computed in, by `torch.autocast`; weights stay as they are. With
    `float16` gradients are scaled by `scaler`, whose state hops."""
    compile: bool | Mapping[str, Any] = False
    """Compile the model with `torch.compile`, once per rank and architecture; a mapping has further
    arguments of it. Shapes are never taken as dynamic: code would depend on what came before."""
    device: torch.device = field(default=torch.device("cpu"), init=False)
    """Where it is trained; `build` is called with it as torch's default device, and batches are
    there before they are transformed."""

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Scales the gradients of a `float16` Task; None with any other precision."""
        found = self.extras.get(SCALER)
        return found if isinstance(found, torch.amp.GradScaler) else None

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes in a `training_step` of your own."""
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def place(self, device: torch.device, *, moves: bool = True) -> None:
        """Say where it is trained, once it is built; with `moves` its modules go there."""
        self.device = device
        if self.precision == "float16" and self.scaler is None:
            self.extras = {**self.extras, SCALER: torch.amp.GradScaler(device.type)}
        if moves and device.type != "cpu":
            parts = (self.loss, self.eval_model, *self.extras.values(), *self.metrics.values())
            for part in (self.model, *parts):
                if isinstance(part, nn.Module):
                    part.to(device)


def check_task(task: Any, config_name: str, fields: tuple[str, ...]) -> Task:
    """Return `task` if it is a Task that can be trained on rows with `fields`.

    Raises:
        ExperimentError: it is not; the message names the config and what is allowed.
    """
    wrong = _fault(task, fields)
    if wrong:
        raise ExperimentError(f"config {config_name}: {wrong}")
    return task  # type: ignore[no-any-return]  # _fault has looked


def _fault(task: Any, fields: tuple[str, ...]) -> str | None:
    if not isinstance(task, Task):
        return f"build returned a {type(task).__name__}; it must return a mophpc.Task"
    kinds: list[tuple[str, type | tuple[type, ...]]] = [
        ("model", nn.Module),
        ("optimizer", torch.optim.Optimizer),
        ("metrics", Mapping),
        ("extras", Mapping),
        ("eval_model", (nn.Module, type(None))),
    ]
    for name, kind in kinds:
        if not isinstance(getattr(task, name), kind):
            allowed = getattr(kind, "__name__", "torch.nn.Module or None")
            return f"Task.{name} is a {type(getattr(task, name)).__name__}; allowed: {allowed}"
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(task, name)
        good = isinstance(size, int) and not isinstance(size, bool) and size >= 1
        if not good and (name == "batch_size" or size is not None):
            return f"Task.{name} is {size!r}; allowed: an integer of at least 1"
    if not callable(task.loss):
        return f"Task.loss is a {type(task.loss).__name__}; allowed: a function of outputs, targets"
    return _fault_in_rest(task, fields)


def _fault_in_rest(task: Task, fields: tuple[str, ...]) -> str | None:
    for name in ("batch_transform", "eval_batch_transform", "training_step"):
        value = getattr(task, name)
        if value is not None and not callable(value):
            return f"Task.{name} is a {type(value).__name__}; allowed: a function or None"
    clip = task.clip_grad_norm
    if clip is not None and not (isinstance(clip, int | float) and clip > 0):
        return f"Task.clip_grad_norm is {clip!r}; allowed: a positive number or None"
    if task.scheduler_interval not in ("epoch", "step"):
        return f"Task.scheduler_interval is {task.scheduler_interval!r}; allowed: 'epoch', 'step'"
    if task.lr_scheduler is not None and not isinstance(task.lr_scheduler, Stateful):
        return "Task.lr_scheduler has no state_dict and load_state_dict; its state could not hop"
    if task.precision not in PRECISIONS:
        return f"Task.precision is {task.precision!r}; allowed: {', '.join(PRECISIONS)}"
    fault = _fault_in_compile(task)
    if fault is not None:
        return fault
    known = ("train_loss", "valid_loss", *task.metrics)
    if task.scheduler_metric not in known:
        return f"Task.scheduler_metric is '{task.scheduler_metric}'; allowed: {', '.join(known)}"
    for name, extra in task.extras.items():
        if not isinstance(extra, Stateful):
            return f"Task.extras['{name}'] has no state_dict and load_state_dict"
    for name in ("inputs", "targets"):
        if getattr(task, name) not in fields:
            return (
                f"Task.{name} is '{getattr(task, name)}', which the store does not have; "
                f"it has {', '.join(fields)}"
            )
    return _fault_in_metrics(task.metrics)


def _fault_in_compile(task: Task) -> str | None:
    if not isinstance(task.compile, bool | Mapping):
        kind = type(task.compile).__name__
        return f"Task.compile is a {kind}; allowed: True, False or arguments of torch.compile"
    if isinstance(task.compile, Mapping) and "dynamic" in task.compile:
        return "Task.compile has 'dynamic', which mophpc sets to False; leave it out"
    graphs = ("reduce-overhead", "max-autotune")
    if isinstance(task.compile, Mapping) and task.compile.get("mode") in graphs:
        return (
            f"Task.compile has mode '{task.compile['mode']}', whose CUDA graphs need tensors that "
            f"stay where they are; allowed: 'default', 'max-autotune-no-cudagraphs'"
        )
    extra = task.extras.get(SCALER)
    if task.precision == "float16" and extra is not None and task.scaler is None:
        kind = type(extra).__name__
        return f"Task.extras['{SCALER}'] is a {kind}; with float16: a torch.amp.GradScaler"
    return None


def _fault_in_metrics(metrics: Mapping[str, Any]) -> str | None:
    for name, metric in metrics.items():
        if name in ("train_loss", "valid_loss", "seconds"):
            return f"Task.metrics has '{name}', a name that mophpc records itself"
        fed = all(hasattr(metric, method) for method in ("update", "compute", "reset"))
        if not fed and not callable(metric):
            return (
                f"Task.metrics['{name}'] is a {type(metric).__name__}; allowed: a function of "
                f"outputs, targets, or an object with update, compute and reset"
            )
    return None


def said(error: BaseException) -> str:
    """Return what kind of error a user's code raised, and the first line of what it says."""
    text = str(error).splitlines()
    found = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    if "use_deterministic_algorithms" in found:  # torch's words for an operation that is not
        found += " (or allow it with device.deterministic = false)"
    return found
