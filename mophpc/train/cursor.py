"""Where a visit stands between two of its batches.

Besides the state that hops, these are counts, the generators' states, and gradients where the
user's own step may add them up over batches. What a user's code keeps elsewhere is looked for in
`hidden`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mophpc.errors import StateError
from mophpc.train.bind import modules_of
from mophpc.train.device import Device
from mophpc.train.task import Task
from mophpc.train.tree import Tensors, dtype_name, dtype_of

_NUMBERS = ("epoch", "shard", "shard_rows", "batch_size", "batches", "rows")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A visit that stopped between two of its batches."""

    epoch: int
    shard: int
    shard_rows: int
    """Rows that the whole visit trains."""
    batch_size: int
    batches: int
    """How many are trained."""
    loss_sum: float
    """Over the rows trained."""
    rows: int
    seconds: float
    """That training them took."""
    tensors: Tensors
    """`generator.*` and `gradient.*`, on the host."""
    flags: Mapping[str, Any]
    """Generators' numbers, parameters that are not trained, modules that evaluate."""

    def to_json(self) -> dict[str, Any]:
        """Return all but the tensors' bytes, as plain values."""
        rows = [
            [name, dtype_name(tensor.dtype), list(tensor.shape), list(tensor.stride())]
            for name, tensor in self.tensors.items()
        ]
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        sums = {"loss_sum": self.loss_sum, "seconds": self.seconds}
        return numbers | sums | {"tensors": rows, "flags": dict(self.flags)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], tensors: Tensors) -> Cursor:
        """Read what `to_json` gave; the tensors, in row-major order, get their strides again.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: it is not that.
        """
        numbers = {name: value[name] for name in _NUMBERS}
        if any(type(number) is not int or number < 0 for number in numbers.values()):
            raise ValueError("a count of the cursor is not one")
        if numbers["batch_size"] < 1:
            raise ValueError("the cursor's batch_size is 0")
        if any(type(value[name]) not in (int, float) for name in ("loss_sum", "seconds")):
            raise ValueError("a sum of the cursor is no number")
        found: Tensors = {}
        for name, dtype, shape, stride in value["tensors"]:
            tensor = tensors[name]
            if tensor.dtype != dtype_of(dtype) or list(tensor.shape) != shape:
                raise ValueError(f"'{name}' is of another shape")
            found[name] = _with_stride(tensor, tuple(stride))
        return cls(
            **numbers,
            loss_sum=float(value["loss_sum"]),
            seconds=float(value["seconds"]),
            tensors=found,
            flags=dict(value["flags"]),
        )

    def check(self, epoch: int, shard: int, shard_rows: int, batch_size: int) -> None:
        """Return if this is a cursor of that visit.

        Raises:
            StateError: it is one of another.
        """
        own = (self.epoch, self.shard, self.shard_rows, self.batch_size)
        if own != (epoch, shard, shard_rows, batch_size):
            names = "(epoch, shard, rows of the shard, batch_size)"
            raise StateError(
                f"the state was written in the middle of another visit: {names} was {own}, and is "
                f"{(epoch, shard, shard_rows, batch_size)} now"
            )


def _with_stride(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    if tensor.stride() == stride:
        return tensor
    # Only a permutation of the axes: no element twice, and no gap that takes memory.
    axes = sorted(range(tensor.ndim), key=lambda axis: (-stride[axis], axis))
    found = torch.empty_permuted(tensor.shape, axes, dtype=tensor.dtype)
    found.copy_(tensor)
    return found


def sparse_gradient(task: Task) -> str | None:
    """Return why a Task's gradients cannot be carried, or None."""
    if task.training_step is not None:
        for name, parameter in _parameters(task):
            if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                return f"the gradient of {name} is sparse"
    return None


def take(task: Task, device: Device) -> tuple[Tensors, dict[str, Any]]:
    """Return tensors and flags of a visit between two batches."""
    tensors, flags = _generators(device)
    if task.training_step is not None:
        for name, parameter in _parameters(task):
            if parameter.grad is not None:
                tensors[f"gradient.{name}"] = parameter.grad.detach().to("cpu", copy=True)
    flags["still"] = [name for name, p in _parameters(task) if not p.requires_grad]
    flags["evaluating"] = [name for name, part in _parts(task) if not part.training]
    return tensors, flags


def put_back(task: Task, cursor: Cursor, device: Device) -> None:
    """Bring a Task whose visit is about to begin to where it stopped.

    Raises:
        StateError: the cursor is not one of this Task.
    """
    try:
        still, evaluating = set(cursor.flags["still"]), set(cursor.flags["evaluating"])
        for name, part in _parts(task):
            part.training = name not in evaluating
        for name, parameter in _parameters(task):
            parameter.requires_grad_(name not in still)
            gradient = cursor.tensors.get(f"gradient.{name}")
            if gradient is not None:
                parameter.grad = gradient.to(parameter.device, copy=True)
        _seed(cursor, device)
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, OverflowError) as error:
        raise StateError(f"the state's place in its visit cannot be used: {error}") from error


def _parameters(task: Task) -> list[tuple[str, nn.Parameter]]:
    """Return all parameters by name; a tied one once."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in modules_of(task):
        for name, parameter in module.named_parameters():
            found.setdefault(id(parameter), (f"{prefix}.{name}", parameter))
    return list(found.values())


def _parts(task: Task) -> list[tuple[str, nn.Module]]:
    return [
        (f"{prefix}.{name}", part)
        for prefix, module in modules_of(task)
        for name, part in module.named_modules()
    ]


def _generators(device: Device) -> tuple[Tensors, dict[str, Any]]:
    tensors = {"generator.torch": torch.get_rng_state()}
    if device.where.type != "cpu":
        of_device = torch.get_device_module(device.where)
        tensors["generator.device"] = of_device.get_rng_state(device.where)
    state: Any = np.random.get_state(legacy=False)
    keys = state["state"]["key"].astype(np.int64)
    tensors["generator.numpy"] = torch.from_numpy(keys)
    version, words, spare = random.getstate()
    tensors["generator.random"] = torch.tensor(words, dtype=torch.int64)
    numpy = [int(state["state"]["pos"]), int(state["has_gauss"]), float(state["gauss"])]
    return tensors, {"numpy": numpy, "random": [version, spare]}


def _seed(cursor: Cursor, device: Device) -> None:
    tensors, flags = cursor.tensors, cursor.flags
    torch.set_rng_state(tensors["generator.torch"])
    if device.where.type != "cpu" and "generator.device" in tensors:
        of_device = torch.get_device_module(device.where)
        of_device.set_rng_state(tensors["generator.device"], device.where)
    position, has_gauss, gauss = flags["numpy"]
    keys = tensors["generator.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    version, spare = flags["random"]
    random.setstate((version, tuple(tensors["generator.random"].tolist()), spare))
