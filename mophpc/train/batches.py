"""Rows in the order of a visit, cut into batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mophpc.train.device import CPU, Copy, Device, Memory
from mophpc.train.task import Batch

MOST_UPLOADED = 4
"""Batches on the device that are not trained yet."""

Array = np.ndarray[Any, Any]
Blocks = Iterator[tuple[dict[str, Any], Array]]
"""Arrays or tensors by field, (rows, *shape of the field), and which rows of them are next."""


class Rows(Protocol):
    """The rows of a shard or of the validation split."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    def blocks(self, order: Array, batch_size: int) -> Blocks:
        """Yield (arrays, positions): together they deliver the rows of `order`, in order."""


class Readable(Rows, Protocol):
    """Rows of a store."""

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""

    @property
    def in_memory(self) -> bool:
        """Whether one block has them all."""


class InMemory:
    """Rows that are tensors already, best on the device that trains."""

    def __init__(self, fields: Batch) -> None:
        self.fields = fields

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.fields.values())))

    def blocks(self, order: Array, batch_size: int) -> Blocks:  # noqa: ARG002
        """Yield everything at once."""
        yield self.fields, order


class Placing:
    """Puts rows on the device while they fit.

    Args:
        device: that trains.
        budget_bytes: for all rows together.
    """

    def __init__(self, device: Device, budget_bytes: int) -> None:
        self._device = device
        self._left = budget_bytes

    def place(self, rows: Readable) -> Rows:
        """Return rows on the device; as they are where they do not fit, or the CPU trains."""
        if self._device.memory is None or not rows.in_memory or rows.nbytes > self._left:
            return rows
        self._left -= rows.nbytes
        ((arrays, _),) = rows.blocks(np.arange(rows.rows), max(1, rows.rows))
        where = self._device.where
        return InMemory({name: torch.from_numpy(a).to(where) for name, a in arrays.items()})


def batches(rows: Rows, order: Array, batch_size: int, device: Device = CPU) -> Iterator[Batch]:
    """Yield the rows of `order` on the device, in batches; the last may be short."""
    for arrays, positions in rows.blocks(order, batch_size):
        fields = {n: a if isinstance(a, Tensor) else torch.from_numpy(a) for n, a in arrays.items()}
        made = _cut(fields, positions, batch_size)
        is_there = all(isinstance(a, Tensor) and a.device == device.where for a in arrays.values())
        yield from made if device.memory is None or is_there else _uploaded(made, device.memory)


def _cut(fields: Batch, positions: Array, batch_size: int) -> Iterator[Batch]:
    index = torch.from_numpy(positions).to(next(iter(fields.values())).device)
    for start in range(0, len(index), batch_size):
        chosen = index[start : start + batch_size]
        yield {name: field.index_select(0, chosen) for name, field in fields.items()}


def _uploaded(made: Iterator[Batch], memory: Memory) -> Iterator[Batch]:
    """Copy batches to the device, each while the one before it is trained on."""
    ahead: _Upload | None = None
    trained: deque[Copy] = deque()
    for batch in made:
        following = _Upload(batch, memory)
        if ahead is not None:
            yield ahead.batch()
            # Python runs ahead of the device, and each batch takes memory until it is trained.
            trained.append(memory.mark())
            if len(trained) > MOST_UPLOADED:
                trained.popleft().wait()
        ahead = following
    if ahead is not None:
        yield ahead.batch()


class _Upload:
    """A batch on its way to the device."""

    def __init__(self, batch: Batch, memory: Memory) -> None:
        # Kept until the copies are done: they read it.
        self._sources = {name: _pinned(tensor, memory) for name, tensor in batch.items()}
        self._coming: dict[str, tuple[Tensor, Copy]] = {
            name: memory.copy_in(source) for name, source in self._sources.items()
        }

    def batch(self) -> Batch:
        for _, copy in self._coming.values():
            copy.wait()
        return {name: tensor for name, (tensor, _) in self._coming.items()}


def _pinned(tensor: Tensor, memory: Memory) -> Tensor:
    found = memory.pinned(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
    return found.copy_(tensor)


class Clocked:
    """Batches, and the `seconds` that it took to make them."""

    def __init__(self, made: Iterator[Batch]) -> None:
        self._made = made
        self.seconds = 0.0

    def __iter__(self) -> Clocked:
        return self

    def __next__(self) -> Batch:
        begin_s = time.perf_counter()
        try:
            return next(self._made)
        finally:
            self.seconds += time.perf_counter() - begin_s
