"""A config's whole state as files: between two visits, or in the middle of one.

The tensors are those of `state_sha256`, by name and in row-major order, in the safetensors format;
`mophpc.state_folder` says which files there are. They are written and read here, since all
tensors share the arena, which the library refuses, and so that they can be read into it at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mophpc.errors import RunFolderError, StateError
from mophpc.state_folder import (
    FORMAT,
    check_tensors,
    new_digest,
    read_manifest,
    said,
    stem_of,
    sync_folder,
    write_manifest,
)
from mophpc.train.arena import Arena, Layout, Slot, extent, views
from mophpc.train.bind import unpack
from mophpc.train.cursor import Cursor
from mophpc.train.rest import pack, read_template
from mophpc.train.tree import Tensors, dtype_name, dtype_of

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Those that every safetensors library reads; all other tensors are there as their bytes."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
"""Copied as these, nothing is done to the bits of an element of so many bytes."""
_LENGTH_BYTES = 8
_MOST_LATE_BYTES = 1 << 30
_DAMAGES = (ValueError, KeyError, TypeError, RuntimeError, IndexError, OverflowError, MemoryError)
"""What reading a manifest that somebody has made up may raise."""

Row = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape of a tensor in the file."""


class StateCopy:
    """A copy of a whole state in memory, whatever its config learns meanwhile.

    Args:
        layout: where the tensors lie.
        arena: (layout.nbytes,) bytes, which are copied.
        rest: what `settle` returned.
        name: of the config.
        config_id: of the config.
        cursor: where the visit stands, if the state is one of the middle of a visit.
    """

    def __init__(
        self,
        layout: Layout,
        arena: Arena,
        rest: bytes,
        *,
        name: str,
        config_id: int,
        cursor: Cursor | None = None,
    ) -> None:
        self._layout = layout
        self._arena = arena.copy()
        self._rest = rest
        self._about = {"config": name, "config_id": config_id}
        self._cursor = cursor

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        own = self._cursor.tensors.values() if self._cursor else ()
        return self._arena.nbytes + len(self._rest) + sum(tensor.nbytes for tensor in own)

    def manifest(self, folder: Path, step: int) -> Path:
        """Return the file that `write` writes last."""
        batches = self._cursor.batches if self._cursor else 0
        return folder / f"{stem_of(step, batches)}.json"

    def write(self, folder: Path, step: int, facts: Any = None) -> int:
        """Write the state, whole or not at all; return the bytes written. Any thread may.

        Args:
            folder: of the config's states.
            step: visits made.
            facts: JSON values that come back with the state.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
            StateError: `rest` is not one of the layout.
        """
        path = self.manifest(folder, step)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, rest = unpack(self._layout, self._arena, self._rest)
        late = rest["late"]
        rest = {key: value for key, value in rest.items() if key != "late"}
        cursor = self._cursor
        tensors = tensors | (cursor.tensors if cursor else {})
        target = path.with_suffix(".safetensors")
        rows, nbytes, digest = write_tensors(target, tensors)
        slots = [[s.name, s.dtype, s.shape, s.stride] for s in self._layout.slots]
        body = {
            "format": FORMAT,
            **self._about,
            "step": step,
            "facts": facts,
            "tensors_file": {"name": target.name, "nbytes": nbytes, "digest": digest},
            "slots": slots,
            "tensors": rows,
            "rest": rest,
            "late": late,
            "cursor": cursor and cursor.to_json(),
        }
        return nbytes + write_manifest(path, body)


@dataclass(frozen=True, slots=True)
class LoadedState:
    """What a state has besides the arena's bytes."""

    rest: bytes
    """As `settle` returns it."""
    cursor: Cursor | None
    step: int
    config: str
    config_id: int
    facts: Any


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[list[Row], int, str]:
    """Write tensors as safetensors, whole; return what there is in order, bytes and digest.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    # As the library does it: large elements first, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    rows = [(n, dtype_name(tensors[n].dtype), tuple(tensors[n].shape)) for n in names]
    head, end = {}, 0
    for (name, dtype, shape), tensor in zip(rows, (tensors[n] for n in names), strict=True):
        begin, end = end, end + tensor.numel() * tensor.element_size()
        code = _CODES.get(dtype)
        kept = list(shape) if code else [*shape, tensor.element_size()]
        head[name] = {"dtype": code or "U8", "shape": kept, "data_offsets": [begin, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    digest = new_digest()
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    try:
        with scratch.open("xb") as file:
            for part in (len(text).to_bytes(_LENGTH_BYTES, "little"), text):
                file.write(part)
                digest.update(part)
            for name in names:
                raw = _bytes_of(tensors[name])
                file.write(raw)
                digest.update(raw)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)
    return rows, _LENGTH_BYTES + len(text) + end, said(digest)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def read_state(manifest: Path, layout: Layout, arena: Arena) -> LoadedState:
    """Read a state's tensors into an arena; return everything else.

    Args:
        manifest: of the state.
        layout: where the tensors are to lie.
        arena: (layout.nbytes,) bytes; of no use where this raises.

    Raises:
        StateError: the state is damaged or cannot be read; the message names the file.
        RunFolderError: it is one of another model, or of a newer version.
    """
    body = read_manifest(manifest)
    _check_layout(manifest, body, layout)
    path = check_tensors(manifest, body)
    try:
        late = None if body["late"] is None else _late_layout(body["late"], path)
        return _read(path, body, layout, arena, late)
    except OSError as error:
        raise StateError(f"state '{path}' cannot be read: {error.strerror or error}") from error
    except _DAMAGES as error:
        raise StateError(f"state '{manifest}' cannot be used: {error}") from error


def _check_layout(manifest: Path, body: Mapping[str, Any], layout: Layout) -> None:
    """Return if the state has the tensors that the config's Task has now."""
    known = {s.name: [s.dtype, list(s.shape), list(s.stride)] for s in layout.slots}
    try:
        found = {name: [dtype, shape, stride] for name, dtype, shape, stride in body["slots"]}
    except (ValueError, TypeError) as error:
        raise StateError(f"state '{manifest}' cannot be used: its slots are damaged") from error
    if found == known:
        return
    config = body["config"]
    for name in sorted(known.keys() | found.keys(), key=str):
        was, now = (_described(about.get(name)) for about in (found, known))
        if was != now:
            raise RunFolderError(
                f"state '{manifest}' is not one of the model that config {config} has now: "
                f"'{name}' was {was} and is {now}; undo the change, or begin in a new folder"
            )


def _described(about: list[Any] | None) -> str:
    if about is None:
        return "not there"
    dtype, shape, stride = about
    return f"{dtype} {shape} with strides {stride}"


def _read(
    path: Path, body: Mapping[str, Any], layout: Layout, arena: Arena, late: Layout | None
) -> LoadedState:
    rest = body["rest"]
    _check_rest(rest, layout)
    absent = frozenset(rest["absent"])
    places = views(layout, arena, absent)
    tail = None if late is None else np.zeros(late.nbytes, dtype=np.uint8)
    if late is not None and tail is not None:
        places = places | views(late, tail)
    loose = {row[0] for row in body["cursor"]["tensors"]} if body["cursor"] else set()
    rows = [_row(row) for row in body["tensors"]]
    names = [name for name, _, _ in rows]
    if len(set(names)) < len(names) or set(names) != places.keys() | loose:
        raise ValueError("its list of tensors is not that of its slots")
    found: Tensors = {}
    with path.open("rb") as file:
        _to_data(file, sum(_nbytes(row) for row in rows))
        for row in rows:
            name, dtype, shape = row
            if name in places:
                place = places[name]
                if dtype_name(place.dtype) != dtype or tuple(place.shape) != shape:
                    raise ValueError(f"'{name}' is not as its slot says")
                _fill(place, file)
            else:
                found[name] = torch.empty(shape, dtype=dtype_of(dtype))
                _fill(found[name], file)
    cursor = Cursor.from_json(body["cursor"], found) if body["cursor"] else None
    raw = pack(rest | {"late": late and late.to_json()}, layout.template)
    raw += b"" if tail is None else tail.tobytes()
    return LoadedState(
        raw, cursor, body["step"], body["config"], body["config_id"], body.get("facts")
    )


def _check_rest(rest: Mapping[str, Any], layout: Layout) -> None:
    if rest.keys() != read_template(layout.template).keys() - {"late"}:
        raise ValueError(f"it has {', '.join(sorted(rest))} besides its tensors")
    absent, progress = rest["absent"], rest["progress"]
    if not isinstance(absent, list) or not all(isinstance(name, str) for name in absent):
        raise ValueError("its list of absent tensors is damaged")
    if not isinstance(progress, list) or len(progress) in (1, 2):
        raise ValueError("its progress is damaged")
    if not all(type(number) in (int, float) for number in progress):
        raise ValueError("its progress is damaged")


def _row(value: Any) -> Row:
    name, dtype, shape = value
    if not isinstance(name, str) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("its list of tensors is damaged")
    return name, dtype, tuple(shape)


def _nbytes(row: Row) -> int:
    _, dtype, shape = row
    return math.prod(shape) * dtype_of(dtype).itemsize


def _to_data(file: BinaryIO, nbytes: int) -> None:
    """Go to where the tensors begin, one right behind the other up to the end of the file."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if _LENGTH_BYTES + length + nbytes != os.fstat(file.fileno()).st_size:
        raise ValueError("its tensors take other space than their file has")
    file.seek(_LENGTH_BYTES + length)


def _fill(place: Tensor, file: BinaryIO) -> None:
    """Read a tensor in row-major order, whatever its strides."""
    is_plain = place.is_contiguous()
    target = place if is_plain else torch.empty(place.shape, dtype=place.dtype)
    raw = _bytes_of(target)
    count = file.readinto(raw) if len(raw) else 0  # type: ignore[attr-defined]  # BinaryIO lacks it
    if count < len(raw):
        raise ValueError("the file with its tensors ends too early")
    if not is_plain:
        bits = _BITS[place.element_size()]
        place.view(bits).copy_(target.view(bits))


def _late_layout(value: list[Any], path: Path) -> Layout:
    """Return a layout of which nothing lies beside its bytes, and which takes no absurd memory."""
    layout = Layout.from_json(value)
    most = _MOST_LATE_BYTES + 16 * path.stat().st_size
    counts = (layout.nbytes, layout.device_nbytes)
    if any(type(count) is not int for count in counts):
        raise ValueError("its late tensors are damaged")
    if not 0 <= layout.device_nbytes <= layout.nbytes <= most or layout.template != "":
        raise ValueError("its late tensors take too many bytes")
    for slot in layout.slots:
        _check_slot(slot, layout.nbytes)
    return layout


def _check_slot(slot: Slot, nbytes: int) -> None:
    numbers = (*slot.shape, *slot.stride, slot.offset)
    if not isinstance(slot.name, str) or len(slot.shape) != len(slot.stride):
        raise ValueError("its late tensors are damaged")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"late tensor '{slot.name}' is damaged")
    size = extent(slot.shape, slot.stride) * dtype_of(slot.dtype).itemsize
    if slot.offset + size > nbytes:
        raise ValueError(f"late tensor '{slot.name}' lies beside its bytes")
