"""Write a store: shuffle the rows once, cut them into shards, and let every rank write its own."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np

from mophpc.data.sources import open_source
from mophpc.data.store import (
    GIB,
    Field,
    Layout,
    Split,
    StoreInfo,
    create_arrays,
    is_store,
    little_endian,
    object_key,
    open_array,
    open_store,
    partial_path,
    plan_layout,
    write_record,
    write_unfinished,
)
from mophpc.errors import SourceError, StoreError
from mophpc.files import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mophpc.data.rows import Rows, Source
    from mophpc.data.sources import ImageSize

_SUMS = "sums"  # folders inside the unfinished store
_UNPACKED = "unpacked"
T = TypeVar("T")


class Group(Protocol):
    """The ranks that prepare a store together."""

    @property
    def rank(self) -> int:
        """Index of this rank."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def agree(self, error: Exception | None) -> None:
        """Collective. Raise the lowest rank's error on every rank, or wait for all of them.

        Args:
            error: what went wrong on this rank, if anything did.
        """
        ...


class _Alone:
    """A group of one."""

    rank = 0
    size = 1

    def agree(self, error: Exception | None) -> None:
        if error is not None:
            raise error


@dataclass(frozen=True, slots=True)
class _SplitPlan:
    """Which rows of a source, in which order, become a split, and how they are cut."""

    name: str
    rows: Rows
    order: NDArray[np.int64]
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Settings:
    num_shards: int
    seed: int
    valid_fraction: float
    image_size: ImageSize | None
    max_object_bytes: int


@dataclass(frozen=True, slots=True)
class _Summary:
    """What the record says of the rows; holds none of them, so that the source can be let go."""

    description: str
    class_names: tuple[str, ...] | None
    fields: tuple[Field, ...]
    layouts: tuple[tuple[str, Layout], ...]


def prepare(
    source: str,
    store: Path,
    *,
    num_shards: int,
    seed: int = 0,
    valid_fraction: float = 0.1,
    image_size: ImageSize | None = None,
    max_object_bytes: int = GIB,
    overwrite: bool = False,
    group: Group | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoreInfo:
    """Make a store out of a source. Collective over `group`.

    The training rows are shuffled by `PCG64(SeedSequence([seed]))`; where the source has no
    validation split, the last `valid_fraction` of the shuffled rows become one. The store's bytes
    do not depend on the number of ranks. Memory holds one object, raw and compressed, and 8 bytes
    for each row of the source.

    Args:
        source: see `open_source`.
        store: folder to write; it appears when it is whole.
        num_shards: shards of the training rows.
        seed: seed of the shuffle.
        valid_fraction: share of the rows, from 0 (none) to below 1; a validation split that the
            source already has is used as it is.
        image_size: side, or (height, width), to which images are resized.
        max_object_bytes: bound for one Zarr object before compression.
        overwrite: replace the store that is there, at the end.
        group: the ranks that write together; alone by default.
        progress: called with (objects written, objects to write) of this rank.

    Raises:
        SourceError: the source cannot be read, or its rows cannot be stored.
        StoreError: the store exists, cannot be written, or would have an empty shard.
    """
    group = group or _Alone()
    store = Path(store)
    if not store.name or store.name == "..":
        raise StoreError(f"'{store}' cannot be a store; give the name of a new folder")
    partial = partial_path(store)
    root = group.rank == 0
    _together(group, store, lambda: _begin(store, overwrite) if root else None)
    finished = False
    try:
        settings = _Settings(num_shards, seed, valid_fraction, image_size, max_object_bytes)
        summary = _fill(group, store, source, settings, progress)
        _together(group, store, lambda: _finish(store, summary, seed) if root else None)
        finished = True
    finally:
        if root and not finished:
            shutil.rmtree(partial, ignore_errors=True)
    return open_store(store)


def _together(group: Group, store: Path, step: Callable[[], T], nbytes: int | None = None) -> T:
    """Run `step` and agree on its error. Collective."""
    error: Exception | None = None
    result: T | None = None
    try:
        result = step()
    except OSError as problem:
        error = _write_error(store, problem, nbytes)
        error.__cause__ = problem
    except (Exception, SystemExit) as problem:  # shared with all ranks, and raised there and here
        error = problem if isinstance(problem, Exception) else _left(problem)
    group.agree(error)
    return cast("T", result)


def _left(problem: BaseException) -> SourceError:
    return SourceError(f"the source's code left the process: SystemExit: {problem}")


def _write_error(store: Path, problem: OSError, nbytes: int | None) -> StoreError:
    if problem.errno in {errno.ENOSPC, errno.EDQUOT}:
        need = "" if nbytes is None else f" of up to {nbytes} bytes"
        free = shutil.disk_usage(_existing(store)).free
        return StoreError(
            f"there is no room for the store '{store}'{need}: {problem.strerror}, {free} bytes are "
            f"free there; make room or choose another folder"
        )
    return StoreError(f"the store '{store}' cannot be written: {problem}")


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _begin(store: Path, overwrite: bool) -> None:
    """Make the unfinished store's folder, in place of an older one."""
    if store.exists():
        if not overwrite:
            raise StoreError(f"'{store}' exists; give --overwrite to replace it, or another path")
        if not is_store(store):
            raise StoreError(
                f"'{store}' exists and is not a store of mophpc, so --overwrite leaves it alone; "
                f"give another path"
            )
    partial = partial_path(store)
    if partial.exists():
        if not is_store(partial) and any(partial.iterdir()):
            raise StoreError(f"'{partial}' is in the way and was not made by mophpc; move it away")
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_unfinished(partial)
    (partial / _SUMS).mkdir()


def _fill(
    group: Group,
    store: Path,
    source: str,
    settings: _Settings,
    progress: Callable[[int, int], None] | None,
) -> _Summary:
    """Open the source on every rank and write all rows. Collective."""
    partial = partial_path(store)
    root = group.rank == 0
    with contextlib.ExitStack() as stack:

        def unpack() -> Source:
            opened = open_source(
                source, image_size=settings.image_size, scratch=partial / _UNPACKED
            )
            return stack.enter_context(opened)

        # Rank 0 first: what it unpacks, the others find. It lies beside the data, where there is
        # room for it, and not in a /tmp of unknown size.
        first = _together(group, store, unpack if root else lambda: None)
        opened = _together(group, store, unpack if not root else lambda: None) or first
        assert opened is not None  # rank 0 has the first, all others the second
        splits = _together(group, store, lambda: _plan(opened, settings))
        fields = opened.train.fields
        row_nbytes = sum(field.row_nbytes for field in fields)

        def create() -> None:
            for split in splits:
                create_arrays(partial, split.name, fields, split.layout)

        _together(group, store, create if root else lambda: None)
        _together(
            group,
            store,
            lambda: _write(partial, splits, group, progress),
            nbytes=row_nbytes * sum(split.layout.rows for split in splits),
        )
        return _Summary(
            opened.description,
            opened.class_names,
            fields,
            tuple((split.name, split.layout) for split in splits),
        )


def _plan(source: Source, settings: _Settings) -> list[_SplitPlan]:
    """Shuffle the rows and cut them; the same on every rank."""
    seed, valid_fraction = settings.seed, settings.valid_fraction
    if seed < 0:
        raise StoreError(f"the seed is {seed}; it must be 0 or more")
    if not 0 <= valid_fraction < 1:
        raise StoreError(f"the validation fraction is {valid_fraction}; it must be in [0, 1)")
    fields = source.train.fields
    rows = len(source.train)
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed])))
    order = generator.permutation(rows)
    valid, valid_order = source.valid, None
    if valid is not None:
        if valid.fields != fields:
            raise SourceError(
                f"the training rows have the fields {_listed(fields)}, and the validation rows "
                f"{_listed(valid.fields)}; they must be the same"
            )
        valid_order = np.arange(len(valid))
    elif valid_fraction > 0:
        taken = max(round(rows * valid_fraction), 1)
        if taken >= rows:
            raise SourceError(
                f"the source has {rows} rows; with {taken} of them for validation none are left "
                f"for training, so give more rows or --valid 0"
            )
        valid, valid_order, order = source.train, order[-taken:], order[:-taken]
    layout = plan_layout(len(order), settings.num_shards, fields, settings.max_object_bytes)
    splits = [_SplitPlan("train", source.train, order, layout)]
    if valid is not None and valid_order is not None:
        count = len(valid_order)
        # Cut for the writing ranks only; fewer parts where the last would be empty.
        widest = max(field.row_nbytes for field in fields)
        parts = min(math.ceil(count * widest / settings.max_object_bytes), count)
        parts = math.ceil(count / math.ceil(count / parts))
        layout = plan_layout(count, parts, fields, settings.max_object_bytes)
        splits.append(_SplitPlan("valid", valid, valid_order, layout))
    return splits


def _listed(fields: tuple[Field, ...]) -> str:
    return ", ".join(f"{field.name} ({field.dtype} {field.shape})" for field in fields)


def _write(
    partial: Path,
    splits: list[_SplitPlan],
    group: Group,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write this rank's shards, and its parts of the validation split."""
    shards = [(split, shard) for split in splits for shard in range(split.layout.num_shards)]
    shards = shards[group.rank :: group.size]
    fields = splits[0].rows.fields
    total = sum(len(split.layout.objects(shard)) for split, shard in shards)
    done = 0
    for split, shard in shards:
        writer = _ShardWriter(partial, fields, split)
        for index in split.layout.objects(shard):
            writer.write_object(index)
            done += 1
            if progress:
                progress(done, total)
        write_json(partial / _SUMS / f"{split.name}-{shard}.json", writer.sums())


class _ShardWriter:
    """Writes the objects of one shard, and keeps their hashes and sizes."""

    def __init__(self, partial: Path, fields: tuple[Field, ...], split: _SplitPlan) -> None:
        self._partial = partial
        self._fields = fields
        self._split = split
        self._arrays = [
            open_array(partial, split.name, field, split.layout, write=True) for field in fields
        ]
        self._hashes = [hashlib.sha256() for _ in fields]
        self._nbytes: list[list[int]] = []

    def write_object(self, index: int) -> None:
        split = self._split
        start = index * split.layout.object_rows
        stop = min(start + split.layout.object_rows, split.layout.rows)
        rows = split.rows.read(split.order[start:stop])
        sizes = []
        for field, array, content in zip(self._fields, self._arrays, self._hashes, strict=True):
            data = rows.pop(field.name)
            content.update(little_endian(data))
            array[start:stop] = data
            # Also keeps a power failure from leaving a store that is whole by its record only.
            sizes.append(_flush(self._partial / object_key(split.name, field, index)))
        self._nbytes.append(sizes)

    def sums(self) -> dict[str, Any]:
        return {
            "sha256": [content.hexdigest() for content in self._hashes],
            "nbytes": self._nbytes,
        }


def _flush(path: Path) -> int:
    """Put a file on disk and return its size in bytes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _finish(store: Path, summary: _Summary, seed: int) -> None:
    """Write the record and rename the folder: from here on, there is a store."""
    partial = partial_path(store)
    splits = []
    for name, layout in summary.layouts:
        sums = [
            json.loads((partial / _SUMS / f"{name}-{shard}.json").read_text())
            for shard in range(layout.num_shards)
        ]
        hashes = tuple(tuple(item["sha256"]) for item in sums)
        nbytes = tuple(tuple(sizes) for item in sums for sizes in item["nbytes"])
        splits.append(Split(name, layout, hashes, nbytes))
    for folder in (_SUMS, _UNPACKED):
        shutil.rmtree(partial / folder, ignore_errors=True)
    write_record(
        partial,
        source=summary.description,
        seed=seed,
        fields=summary.fields,
        class_names=summary.class_names,
        splits=splits,
    )
    if not store.exists():
        partial.rename(store)
        return
    replaced = store.with_name(f"{store.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    store.rename(replaced)
    try:
        partial.rename(store)
    except OSError:
        replaced.rename(store)
        raise
    shutil.rmtree(replaced)
