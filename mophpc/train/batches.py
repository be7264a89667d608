"""Rows in the order of a visit, cut into batches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch

from mophpc.train.task import Batch

Blocks = Iterator[tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]]


class Rows(Protocol):
    """The rows of a shard or of the validation split."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    def blocks(self, order: np.ndarray[Any, Any], batch_size: int) -> Blocks:
        """Yield (arrays, positions): together they deliver the rows of `order`, in order."""


def batches(rows: Rows, order: np.ndarray[Any, Any], batch_size: int) -> Iterator[Batch]:
    """Yield the rows of `order` in batches of `batch_size`; the last may be short."""
    for arrays, positions in rows.blocks(order, batch_size):
        fields = {name: torch.from_numpy(array) for name, array in arrays.items()}
        index = torch.from_numpy(positions)
        for start in range(0, len(index), batch_size):
            chosen = index[start : start + batch_size]
            yield {name: field.index_select(0, chosen) for name, field in fields.items()}


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


class InMemory:
    """Rows that are tensors already, as `Rows`."""

    def __init__(self, fields: Batch) -> None:
        self._arrays = {name: tensor.numpy() for name, tensor in fields.items()}

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self._arrays.values())))

    def blocks(self, order: np.ndarray[Any, Any], batch_size: int) -> Blocks:  # noqa: ARG002
        """Yield everything at once."""
        yield self._arrays, order
