"""Helpers of the tests of mophpc.data."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from mophpc.data import StoreInfo, prepare, read_shard, read_valid


def save_npz(path: Path, rows: int = 100, width: int = 5, **more: Any) -> str:
    """Write rows that tell their own index: x[i] = (i, i, …) and y[i] = i."""
    x = np.repeat(np.arange(rows, dtype=np.int32)[:, None], width, axis=1)
    np.savez(path, x=x, y=np.arange(rows), **more)
    return str(path)


def rows_of(info: StoreInfo) -> tuple[list[int], list[int]]:
    """Return the field y of all shards, in order, and of the validation rows."""
    train: list[int] = []
    for shard in range(info.num_shards):
        reader = read_shard(info, shard)
        ((arrays, positions),) = reader.blocks(np.arange(reader.rows), 7)
        assert (arrays["x"] == arrays["y"][:, None]).all()
        train += arrays["y"][positions].tolist()
    valid: list[int] = []
    if info.valid:
        reader = read_valid(info)
        ((arrays, positions),) = reader.blocks(np.arange(reader.rows), 7)
        valid = arrays["y"][positions].tolist()
    return train, valid


def objects_of(store: Path) -> dict[str, bytes]:
    """Return all files of a store by their path in it."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


class ThreadGroup:
    """Ranks that are threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._errors: list[Exception | None] = [None] * size
        self._barrier = threading.Barrier(size, timeout=30)

    def member(self, rank: int) -> Member:
        return Member(self, rank, self._size)

    def agree(self, rank: int, error: Exception | None) -> None:
        self._errors[rank] = error
        self._barrier.wait()
        first = next((item for item in self._errors if item is not None), None)
        self._barrier.wait()
        if first is not None:
            raise first


class Member:
    def __init__(self, group: ThreadGroup, rank: int, size: int) -> None:
        self._group = group
        self.rank = rank
        self.size = size

    def agree(self, error: Exception | None) -> None:
        self._group.agree(self.rank, error)


def prepare_together(size: int, source: str, store: Path, **settings: Any) -> list[Any]:
    """Call `prepare` on every rank; return what each returned or raised."""
    group = ThreadGroup(size)
    outcomes: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = prepare(source, store, group=group.member(rank), **settings)
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
