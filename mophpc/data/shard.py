"""Read a shard: once into memory, or again and again in blocks where memory is short."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from mophpc.data.part import SPAN_BYTES, Part
from mophpc.data.store import Split, StoreInfo, open_store
from mophpc.errors import StoreError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]
Block = tuple[Arrays, "NDArray[np.int64]"]
T = TypeVar("T")


class ShardReader(Protocol):
    """The rows of a shard, delivered in any order."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in memory."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether they are all in memory, and one block has them all."""
        ...

    def blocks(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Block]:
        """Yield (arrays, positions): the rows `order`, in that order, over all blocks.

        `arrays[field][positions]` are the next rows to train on. Every block but the last holds a
        whole number of batches.

        Args:
            order: (n,) indices into the shard.
            batch_size: rows of a batch.

        Raises:
            StoreError: a file is missing or damaged; names array, shard and file.
        """
        ...


def read_shard(
    store: StoreInfo | Path,
    shard: int,
    memory_budget: int | None = None,
    stage: Path | None = None,
) -> ShardReader:
    """Read one shard of the training rows.

    Args:
        store: the store, or its path.
        shard: index of the shard.
        memory_budget: bytes that the rows may take; a larger shard is streamed. No bound by
            default.
        stage: folder on this machine to which the shard's files are copied and from which they are
            read; files that are there already are checked and used.

    Raises:
        StoreError: the store cannot be used, has no such shard, or is damaged.
    """
    info = store if isinstance(store, StoreInfo) else open_store(store)
    if not 0 <= shard < info.num_shards:
        raise StoreError(
            f"store {info.path} has no shard {shard}; it has 0 to {info.num_shards - 1}"
        )
    return _read(Part(info, info.train, shard), memory_budget, stage)


def read_valid(
    store: StoreInfo | Path, memory_budget: int | None = None, stage: Path | None = None
) -> ShardReader:
    """Read the validation rows; arguments and errors as for `read_shard`.

    Raises:
        StoreError: the store cannot be used, has no validation rows, or is damaged.
    """
    info = store if isinstance(store, StoreInfo) else open_store(store)
    if info.valid is None:
        raise StoreError(
            f"store {info.path} has no validation rows; run 'mophpc prepare' again with --valid 0.1"
        )
    return _read(Part(info, info.valid, None), memory_budget, stage)


def _read(part: Part, memory_budget: int | None, stage: Path | None) -> ShardReader:
    streamed = memory_budget is not None and part.nbytes > memory_budget

    def read() -> ShardReader:
        return StreamedShard(part, memory_budget or 0) if streamed else LoadedShard(part)

    if stage is None:
        return read()
    part.stage(stage)
    try:
        return read()
    except StoreError:
        part.stage(stage, again=True)  # the copy was damaged; if the store is, this raises again
        return read()


class LoadedShard:
    """A shard in memory, one contiguous array per field."""

    in_memory = True

    def __init__(self, part: Part) -> None:
        """Read all rows.

        Raises:
            StoreError: a file is missing or damaged, or has other rows than were prepared.
        """
        self.rows = part.rows
        self.fields = tuple(field.name for field in part.fields)
        self.nbytes = part.nbytes
        self._arrays: Arrays = {}
        for field in part.fields:
            out = np.empty((part.rows, *field.shape), field.dtype)
            for start, stop, rows in part.read_checked(field):
                out[start:stop] = rows
            self._arrays[field.name] = out

    def blocks(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Block]:
        """Yield the whole arrays and `order`; see `ShardReader`."""
        _check_order(order, batch_size, self.rows)
        yield self._arrays, order


GONE_S = 0.1
"""Who keeps blocks longer than that has memory for them."""


class StreamedShard:
    """A shard on disk, gathered block by block in the order asked for.

    All of it is read once at first, to be checked then and not in the middle of the training. Each
    block passes over the shard's files once, while the block before it is trained on; a file that
    has changed since is noticed.
    """

    in_memory = False

    def __init__(self, part: Part, memory_budget: int) -> None:
        """Open the shard.

        Args:
            part: its rows.
            memory_budget: bytes for two blocks and what is read at once. A budget of less than
                eight inner chunks is exceeded by up to four; a block holds at least one batch.

        Raises:
            StoreError: a file is missing or damaged, or has other rows than were prepared.
        """
        self.rows = part.rows
        self.fields = tuple(field.name for field in part.fields)
        self.nbytes = part.nbytes
        self._part = part
        self._span_bytes = min(SPAN_BYTES, memory_budget // 16)
        # A span is there four times: as read, as sliced, as decoded and as put together. Half the
        # budget is for blocks in any case: with tiny ones, the files are read far too often.
        spans = 4 * max(self._span_bytes, part.chunk_nbytes)
        row_nbytes = sum(field.row_nbytes for field in part.fields)
        self._block_rows = max(memory_budget - spans, memory_budget // 2) // 2 // row_nbytes
        for field in part.fields:
            part.check_rows(field, self._span_bytes)

    def blocks(self, order: NDArray[np.int64], batch_size: int) -> Iterator[Block]:
        """Yield blocks of rows in `order`; see `ShardReader`."""
        _check_order(order, batch_size, self.rows)
        step = max(self._block_rows // batch_size, 1) * batch_size
        cuts = [order[start : start + step] for start in range(0, len(order), step)]
        stop = threading.Event()
        gone = threading.Event()
        gone.set()
        pending = [_Ahead(partial(self._gather, cut, stop, gone)) for cut in cuts[:1]]
        try:
            for cut, following in zip(cuts, [*cuts[1:], None], strict=True):
                arrays = pending.pop().result()
                # Only now, and when the block before is gone, which the caller has until it is
                # given this one: no more than two blocks exist at a time.
                if following is not None:
                    pending.append(_Ahead(partial(self._gather, following, stop, gone)))
                gone = threading.Event()
                weakref.finalize(next(iter(arrays.values())), gone.set)
                yield arrays, np.arange(len(cut))
        finally:
            stop.set()
            for ahead in pending:
                ahead.join()

    def _gather(
        self, order: NDArray[np.int64], stop: threading.Event, gone: threading.Event
    ) -> Arrays:
        """Return the rows `order`, or less once `stop` is set; begin when `gone` is."""
        gone.wait(GONE_S)
        sorter = np.argsort(order, kind="stable")
        ranked = order[sorter]
        arrays: Arrays = {}
        for field in self._part.fields:
            out = np.empty((len(order), *field.shape), field.dtype)
            for start, end in self._part.spans(field, self._span_bytes):
                low, high = np.searchsorted(ranked, (start, end))
                if low == high:
                    continue
                if stop.is_set():
                    return arrays
                # Without a name for the span: it would live on while the next one is read.
                at, chosen = sorter[low:high], ranked[low:high] - start
                out[at] = self._part.read_again(field, start, end, self._span_bytes)[chosen]
            arrays[field.name] = out
        return arrays


class _Ahead(Generic[T]):
    """A function's result, computed by a thread.

    A daemon thread: after an error elsewhere, MPI_Abort must not wait for it.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mophpc-prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._values.append(self._function())
        except BaseException as error:  # raised again where the result is asked for
            self._error = error

    def result(self) -> T:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._values.pop()

    def join(self) -> None:
        self._thread.join()


def _check_order(order: NDArray[np.int64], batch_size: int, rows: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
    if len(order) and not (order.min() >= 0 and order.max() < rows):
        raise ValueError(f"order holds rows outside 0 to {rows - 1}")


def check_store(path: Path, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Verify every checksum of every object of a store.

    Args:
        path: the store.
        progress: called with (shards and parts of the validation rows checked, all of them).

    Returns:
        One sentence for each array and shard that is damaged; empty where all is well.

    Raises:
        StoreError: there is no whole store at `path`, or its record is damaged.
    """
    info = open_store(path)
    splits = [info.train] + ([info.valid] if info.valid else [])
    total = sum(split.layout.num_shards for split in splits)
    damaged: list[str] = []
    done = 0
    for split in splits:
        unreadable = _unreadable(info, split)
        damaged.extend(unreadable.values())
        for shard in range(split.layout.num_shards):
            damaged.extend(_check_shard(info, split, shard, set(unreadable)))
            done += 1
            if progress:
                progress(done, total)
    return damaged


def _unreadable(info: StoreInfo, split: Split) -> dict[str, str]:
    """Return what is wrong with the metadata of arrays, by field; once, not for every shard."""
    wrong = {}
    part = Part(info, split, None)
    for field in part.fields:
        try:
            part.check_metadata(field)
        except StoreError as error:
            wrong[field.name] = str(error)
    return wrong


def _check_shard(info: StoreInfo, split: Split, shard: int, skipped: set[str]) -> list[str]:
    part = Part(info, split, shard)
    damaged = []
    for field in part.fields:
        if field.name in skipped:
            continue
        try:
            part.check_rows(field)
        except StoreError as error:
            damaged.append(str(error))
    return damaged
