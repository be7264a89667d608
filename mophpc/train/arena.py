"""The arena: a config's whole state in one contiguous run of bytes, and its manifest.

A slot says where a tensor lies. Strides are part of it: a transposed or channels_last tensor
that came back contiguous would give other kernels and other rounding.

Where a GPU trains, the tensors that it works on come first, and alias a copy of the arena in its
memory; what an optimizer keeps on the CPU even then (its step counts) follows, and aliases the
arena itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import (  # type: ignore[attr-defined]  # torch names no exports there
    from_dlpack,
    to_dlpack,
)

from mophpc.errors import StateError
from mophpc.train.device import ALIGNMENT, CPU, Device
from mophpc.train.tree import dtype_name, dtype_of

Arena = np.ndarray[Any, np.dtype[np.uint8]]


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
    device_nbytes: int
    """Bytes of the tensors that the training device works on: those before this offset."""
    template: str = ""
    """What the rest of such a state looks like; the rest travels compressed against it."""

    def to_json(self) -> list[Any]:
        """Return plain lists and numbers."""
        rows = [[s.name, s.dtype, list(s.shape), list(s.stride), s.offset] for s in self.slots]
        return [self.nbytes, self.device_nbytes, rows, self.template]

    @classmethod
    def from_json(cls, value: list[Any]) -> Layout:
        """Read what `to_json` gave."""
        nbytes, device_nbytes, rows, template = value
        slots = (Slot(n, d, tuple(sh), tuple(st), off) for n, d, sh, st, off in rows)
        return cls(tuple(slots), nbytes, device_nbytes, template)


@dataclass(frozen=True, slots=True)
class Home:
    """Memory in which a state's tensors live while it is trained, each (nbytes,) uint8."""

    device: Tensor
    """In front, up to `Layout.device_nbytes`, the tensors that the device works on."""
    host: Tensor
    """Behind that, those that stay on the CPU; the same memory where the CPU trains."""

    @classmethod
    def of(cls, memory: Home | Arena) -> Home:
        """Return the home that an arena is where the CPU trains; a home as it is."""
        if isinstance(memory, Home):
            return memory
        tensor = torch.from_numpy(memory)
        return cls(tensor, tensor)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's data begin in here."""
        for own in (self.device, self.host):
            begin = own.data_ptr()
            if own.device == tensor.device and begin <= tensor.data_ptr() < begin + len(own):
                return True
        return False


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many elements lie between a strided tensor's first and last, both counted."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def lay_out(tensors: Mapping[str, Tensor], device: Device = CPU) -> Layout:
    """Give every tensor a place, in order; tensors that share bytes share them in the arena too.

    Args:
        tensors: by name.
        device: where they are trained; those that it works on come first.

    Raises:
        StateError: a tensor is not a dense one on a real device.
    """
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
            raise StateError(f"tensor '{name}' is sparse, quantized or without data; it cannot hop")
    first = {name: tensor for name, tensor in tensors.items() if device.holds(tensor)}
    last = {name: tensor for name, tensor in tensors.items() if name not in first}
    slots, device_nbytes = _line_up(first, 0, device.alignment)
    on_host, nbytes = _line_up(last, device_nbytes, ALIGNMENT)
    return Layout(tuple(slots + on_host), max(ALIGNMENT, nbytes), device_nbytes)


def _line_up(tensors: Mapping[str, Tensor], begin: int, alignment: int) -> tuple[list[Slot], int]:
    """Return places from `begin` on, and where the last one ends; both offsets are aligned."""
    runs = _runs(tensors)
    slots: list[Slot] = []
    offsets: dict[int, int] = {}  # by a run's address
    end = begin
    for name, tensor in tensors.items():
        start, stop = runs[name]
        if start not in offsets or start == stop:
            offsets[start] = -(-end // alignment) * alignment
            end = offsets[start] + stop - start
        inside = 0 if start == stop else tensor.data_ptr() - start
        if inside % tensor.element_size():
            raise StateError(f"tensor '{name}' overlaps another one between two of its elements")
        shape, stride = tuple(tensor.shape), tensor.stride()
        slots.append(Slot(name, dtype_name(tensor.dtype), shape, stride, offsets[start] + inside))
    if slots and slots[-1].offset == end:
        end += 1  # an empty tensor lies before the end too
    return slots, -(-end // alignment) * alignment


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


def allocate(nbytes: int) -> Arena:
    """Return `nbytes` bytes, aligned; torch's allocator aligns to 64."""
    return torch.empty(nbytes, dtype=torch.uint8).numpy()


def views(
    layout: Layout,
    memory: Home | Arena,
    absent: frozenset[str] = frozenset(),
    *,
    separate: bool = False,
) -> dict[str, Tensor]:
    """Return the tensors that alias the memory, by name, without those in `absent`.

    `Tensor.set_` and not slicing: slices of one tensor share its version counter, and an in-place
    update of one (BatchNorm's running mean) would then break the backward pass of another.

    Args:
        layout: where they lie.
        memory: (layout.nbytes,) bytes.
        absent: names that are left out.
        separate: give those that do not overlap storages of their own, which takes longer:
            torch.compile takes tensors of one storage for views of each other.
    """
    home = Home.of(memory)
    starts = _run_starts(layout) if separate else {}
    whole = {own.data_ptr(): own.untyped_storage() for own in (home.device, home.host)}
    parts: dict[int, torch.UntypedStorage] = {}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for slot in layout.slots:
            if slot.name in absent:
                continue
            own = home.host if slot.offset >= layout.device_nbytes else home.device
            empty = torch.empty(0, dtype=dtype_of(slot.dtype), device=own.device)
            begin = starts.get(slot.name, 0)
            if separate and begin not in parts:
                parts[begin] = from_dlpack(to_dlpack(own[begin:])).untyped_storage()
            storage = parts[begin] if separate else whole[own.data_ptr()]
            start = (slot.offset - begin) // empty.element_size()
            found[slot.name] = empty.set_(storage, start, slot.shape, slot.stride)
    return found


def _run_starts(layout: Layout) -> dict[str, int]:
    """Return for each slot where the run of bytes begins that it and those overlapping it take."""
    found: dict[str, int] = {}
    begin = end = 0
    for slot in sorted(layout.slots, key=lambda slot: slot.offset):
        if slot.offset >= end:
            begin = slot.offset
        size = torch.empty(0, dtype=dtype_of(slot.dtype)).element_size()
        end = max(end, slot.offset + extent(slot.shape, slot.stride) * size)
        found[slot.name] = begin
    return found
