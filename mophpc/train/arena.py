"""The arena: a config's whole state in one contiguous run of bytes, and its manifest.

A slot says where a tensor lies. Strides are part of it: a transposed or channels_last tensor
that came back contiguous would give other kernels and other rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mophpc.errors import StateError
from mophpc.train.tree import dtype_name, dtype_of

ALIGNMENT = 64
"""Bytes; a cache line, and enough for every vector load."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor lies in the arena; stride in elements, offset in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def fits(self, tensor: Tensor) -> bool:
        """Whether the tensor has this slot's dtype, shape and stride."""
        return (
            tuple(tensor.shape) == self.shape
            and tensor.stride() == self.stride
            and dtype_name(tensor.dtype) == self.dtype
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """The manifest of an arena of `nbytes` bytes."""

    slots: tuple[Slot, ...]
    nbytes: int
    template: str = ""
    """What the rest of such a state looks like; the rest travels compressed against it."""

    def to_json(self) -> list[Any]:
        """Return plain lists and numbers."""
        rows = [[s.name, s.dtype, list(s.shape), list(s.stride), s.offset] for s in self.slots]
        return [self.nbytes, rows, self.template]

    @classmethod
    def from_json(cls, value: list[Any]) -> Layout:
        """Read what `to_json` gave."""
        nbytes, rows, template = value
        slots = (Slot(n, d, tuple(sh), tuple(st), off) for n, d, sh, st, off in rows)
        return cls(tuple(slots), nbytes, template)


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many elements lie between a strided tensor's first and last, both counted."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def lay_out(tensors: Mapping[str, Tensor]) -> Layout:
    """Give every tensor a place, in order; tensors that share bytes share them in the arena too.

    Raises:
        StateError: a tensor is not a dense one on a real device.
    """
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise StateError(f"tensor '{name}' is sparse, quantized or without data; it cannot hop")
    runs = _runs(tensors)
    slots: list[Slot] = []
    offsets: dict[int, int] = {}  # by a run's address
    end = 0
    for name, tensor in tensors.items():
        start, stop = runs[name]
        if start not in offsets or start == stop:
            offsets[start] = -(-end // ALIGNMENT) * ALIGNMENT
            end = offsets[start] + stop - start
        inside = 0 if start == stop else tensor.data_ptr() - start
        if inside % tensor.element_size():
            raise StateError(f"tensor '{name}' overlaps another one between two of its elements")
        shape, stride = tuple(tensor.shape), tensor.stride()
        slots.append(Slot(name, dtype_name(tensor.dtype), shape, stride, offsets[start] + inside))
    return Layout(tuple(slots), max(ALIGNMENT, -(-end // ALIGNMENT) * ALIGNMENT))


def _runs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return for each tensor the run of addresses that it and those overlapping it take up.

    A weight tied to another's transpose is one run; empty tensors have an empty one each.
    """
    spans = []
    for name, tensor in tensors.items():
        size = extent(tuple(tensor.shape), tensor.stride()) * tensor.element_size()
        spans.append((tensor.data_ptr() if size else 0, size, name))
    found: dict[str, tuple[int, int]] = {}
    run: list[str] = []
    first = last = 0
    for start, size, name in sorted(spans):
        if start >= last:
            run, first, last = [], start, start
        run.append(name)
        if start + size > last:
            last = start + size
            found.update(dict.fromkeys(run, (first, last)))
        else:
            found[name] = (first, last)
    return found


def allocate(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return `nbytes` bytes, aligned; torch's allocator aligns to 64."""
    return torch.empty(nbytes, dtype=torch.uint8).numpy()


def views(
    layout: Layout, arena: np.ndarray[Any, np.dtype[np.uint8]], absent: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """Return the tensors that alias the arena, by name, without those in `absent`.

    `Tensor.set_` and not slicing: slices of one tensor share its version counter, and an in-place
    update of one (BatchNorm's running mean) would then break the backward pass of another.
    """
    storage = torch.from_numpy(arena).untyped_storage()
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for slot in layout.slots:
            if slot.name in absent:
                continue
            empty = torch.empty(0, dtype=dtype_of(slot.dtype))
            start = slot.offset // empty.element_size()
            found[slot.name] = empty.set_(storage, start, slot.shape, slot.stride)
    return found
