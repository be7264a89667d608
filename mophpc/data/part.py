"""Read a stretch of a split from its files, with every byte checked, from the store or a copy."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mophpc.data.store import (
    MIB,
    Field,
    Split,
    StoreInfo,
    array_key,
    little_endian,
    object_key,
    open_array,
)
from mophpc.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

# Spans of a few inner chunks read two to four times faster than a whole object at once: the
# buffers are used again instead of being mapped anew.
SPAN_BYTES = 8 * MIB

MOST_LOOKS = 4
Mark = tuple[int, int, int] | None


class Part:
    """One shard of the training rows, or all validation rows, as files.

    Zarr reads a missing or an empty object as zeros, so the size of each file is compared with the
    store's record before it is read; what Zarr then raises means a damaged file. Whole objects
    that were put in the place of others have the right checksums: the digest of a shard's rows
    tells them.
    """

    def __init__(self, info: StoreInfo, split: Split, shard: int | None) -> None:
        """Name the rows; opens nothing.

        Args:
            info: the store.
            split: its training or validation split.
            shard: which shard, or None for all rows.
        """
        layout = split.layout
        self._info = info
        self._split = split
        self._start, self._stop = layout.bounds(shard) if shard is not None else (0, layout.rows)
        self._shards = range(layout.num_shards) if shard is None else range(shard, shard + 1)
        self._root = info.path
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._known: dict[Path, Mark] = {}
        """Files that had the right rows when they were as this says."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._stop - self._start

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return self._info.fields

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in memory."""
        return self.rows * self._info.row_nbytes

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of the largest inner chunk: no less can be read at once."""
        sizes = zip(self.fields, self._split.layout.chunk_rows, strict=True)
        return max(field.row_nbytes * chunk_rows for field, chunk_rows in sizes)

    def spans(self, field: Field, span_bytes: int = SPAN_BYTES) -> Iterator[tuple[int, int]]:
        """Yield (first row, row after the last) of stretches of whole chunks of one object."""
        layout = self._split.layout
        chunk_rows = layout.chunk_rows[self.fields.index(field)]
        step = max(span_bytes // (chunk_rows * field.row_nbytes), 1) * chunk_rows
        for index in self._objects():
            first = index * layout.object_rows
            stop = min(first + layout.object_rows, self._stop)
            for start in range(first, stop, step):
                yield start - self._start, min(start + step, stop) - self._start

    def read(self, field: Field, start: int, stop: int) -> NDArray[Any]:
        """Return the rows `start` to `stop` of `field`, a stretch that `spans` gave.

        Raises:
            StoreError: the file is missing, cut short or damaged; names array, shard and file.
        """
        start, stop = start + self._start, stop + self._start
        index = start // self._split.layout.object_rows
        self._check_size(self._root, field, index)
        array = self._open(field)
        try:
            return np.asarray(array[start:stop])
        except MemoryError:
            raise
        except OSError as error:
            raise self._error(field, index, f"cannot be read ({error.strerror})", "") from error
        except Exception as error:  # the codecs raise many types for bytes that they did not write
            reason = "crc32c mismatch" if "checksum" in str(error).lower() else repr(error)
            raise self._error(field, index, f"is damaged ({reason})") from error

    def read_checked(
        self, field: Field, span_bytes: int = SPAN_BYTES
    ) -> Iterator[tuple[int, int, NDArray[Any]]]:
        """Yield (first row, row after the last, rows) of all stretches, and check their digests.

        Where it ends all rows are what the store's record says.

        Raises:
            StoreError: as for `read`; or a shard has other rows than were prepared.
        """
        layout = self._split.layout
        marks = {path: _mark(path) for path in map(partial(self._path, field), self._objects())}
        content, shards = hashlib.sha256(), iter(self._shards)
        shard = next(shards)
        for start, stop in self.spans(field, span_bytes):
            if start + self._start == layout.bounds(shard)[1]:
                self._compare(field, shard, content.hexdigest())
                content, shard = hashlib.sha256(), next(shards)
            rows = self.read(field, start, stop)
            content.update(little_endian(rows))
            yield start, stop, rows
        self._compare(field, shard, content.hexdigest())
        self._known |= marks

    def check_rows(self, field: Field, span_bytes: int = SPAN_BYTES) -> None:
        """Read all rows of `field` and check their digests; see `read_checked`."""
        for _ in self.read_checked(field, span_bytes):
            pass

    def read_again(
        self, field: Field, start: int, stop: int, span_bytes: int = SPAN_BYTES
    ) -> NDArray[Any]:
        """Return rows as `read` does, of files that were checked; check what has changed since.

        Raises:
            StoreError: as for `read_checked`.
        """
        path = self._path(field, (start + self._start) // self._split.layout.object_rows)
        for _ in range(MOST_LOOKS):
            rows = self.read(field, start, stop)
            # Not before: a file may have been replaced in between.
            if _mark(path) == self._known.get(path):
                return rows
            self.check_rows(field, span_bytes)
        index = (start + self._start) // self._split.layout.object_rows
        raise self._error(field, index, "is written to again and again", "; let it be during a run")

    def _compare(self, field: Field, shard: int, found: str) -> None:
        if found != self._split.sha256[shard][self.fields.index(field)]:
            raise StoreError(
                f"store {self._info.path}: array {array_key(self._split.name, field.name)}, shard "
                f"{shard} holds other rows than were prepared (sha256 mismatch); run "
                f"'mophpc prepare' again"
            )

    def _path(self, field: Field, index: int) -> Path:
        return self._root / object_key(self._split.name, field, index)

    def check_metadata(self, field: Field) -> None:
        """Open the array of `field`.

        Raises:
            StoreError: its metadata is missing or damaged.
        """
        self._open(field)

    def stage(self, folder: Path, *, again: bool = False) -> None:
        """Copy the files of these rows to `folder` and read from there.

        What is there already, at its right size, is not copied again. Several ranks may stage the
        same files at once: each appears whole.

        Args:
            folder: a folder on this machine; each store gets one of its own inside.
            again: copy all files again.

        Raises:
            StoreError: a file of the store is missing, or the folder cannot be written.
        """
        root = folder / f"{self._info.path.name}.{self._info.digest[:12]}"
        for column, field in enumerate(self.fields):
            self._copy(f"{array_key(self._split.name, field.name)}/zarr.json", root)
            for index in self._objects():
                key = object_key(self._split.name, field, index)
                if again or _size(root / key) != self._split.object_nbytes[index][column]:
                    self._check_size(self._info.path, field, index)
                    self._copy(key, root)
        self._root = root
        self._arrays = {}
        self._known = {}

    def _copy(self, key: str, root: Path) -> None:
        target = root / key
        scratch = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(self._info.path / key, scratch)
                scratch.replace(target)
            finally:
                scratch.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"staging {key} of store '{self._info.path}' to '{root}' failed: {error}"
            ) from error

    def _objects(self) -> range:
        object_rows = self._split.layout.object_rows
        return range(self._start // object_rows, math.ceil(self._stop / object_rows))

    def _open(self, field: Field) -> zarr.Array[Any]:
        if field.name not in self._arrays:
            self._arrays[field.name] = open_array(
                self._root, self._split.name, field, self._split.layout
            )
        return self._arrays[field.name]

    def _check_size(self, root: Path, field: Field, index: int) -> None:
        nbytes = self._split.object_nbytes[index][self.fields.index(field)]
        found = _size(root / object_key(self._split.name, field, index))
        if found is None:
            raise self._error(field, index, "is missing")
        if found != nbytes:
            raise self._error(field, index, f"has {found} bytes instead of {nbytes}")

    def _error(
        self, field: Field, index: int, what: str, fix: str = "; run 'mophpc prepare' again"
    ) -> StoreError:
        layout = self._split.layout
        shard = index * layout.object_rows // layout.shard_rows
        return StoreError(
            f"store {self._info.path}: array {array_key(self._split.name, field.name)}, shard "
            f"{shard} (file {object_key(self._split.name, field, index)}) {what}{fix}"
        )


def _mark(path: Path) -> Mark:
    """Return what is another once a file was written to or replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    # The number of a file is not the same for ever on all file systems.
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None
