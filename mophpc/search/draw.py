"""Sets of hyperparameters from a space: every combination, or drawn at random; pure.

Each dimension is drawn from a stream of its own, made from the seed, its name and the config's
number: dimensions are independent of each other, and one that is added changes none of the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import count as count_from
from itertools import islice

import numpy as np

from mophpc.dimensions import Dimension, Value, in_order
from mophpc.errors import ExperimentError

Row = dict[str, Value]
Key = tuple[tuple[str, str], ...]
Constraint = Callable[[Row], bool]

MOST_TRIES = 1000
"""Draws in a row that the constraint refuses, or that were there before, until we give up."""


def every_combination(
    space: Mapping[str, Dimension], constraint: Constraint | None = None
) -> Iterator[Row]:
    """Yield every set of hyperparameters of a space; the last dimension changes fastest.

    Args:
        space: of dimensions that can be counted.
        constraint: says which sets are allowed.
    """
    names = in_order(space)

    def extend(row: Row, depth: int) -> Iterator[Row]:
        if depth == len(names):
            yield {name: row[name] for name in space if name in row}
            return
        name = names[depth]
        if not space[name].exists(row):
            yield from extend(row, depth + 1)
            return
        for value in space[name].grid or []:
            yield from extend(row | {name: value}, depth + 1)

    for row in extend({}, 0):
        if constraint is None or constraint(dict(row)):
            yield row


def draw(
    space: Mapping[str, Dimension],
    count: int,
    seed: int,
    constraint: Constraint | None = None,
    said: str | None = None,
) -> list[Row]:
    """Return different sets of hyperparameters, drawn at random.

    Args:
        space: to draw from.
        count: how many.
        seed: of the experiment; the first sets are the same whatever the count.
        constraint: says which sets are allowed.
        said: why so many are drawn, for the message.

    Raises:
        ExperimentError: there are not so many, or the constraint refuses nearly all.
    """
    rows = list(islice(draw_endlessly(space, seed, constraint), count))
    if len(rows) < count:
        why = "that differ" if constraint is None else "that differ and that it allows"
        said = said or f"search.configs is {count}"
        raise ExperimentError(
            f"{said}, but after {len(rows)} configs no other was found in "
            f"{MOST_TRIES} draws {why}; ask for fewer, or for a larger space"
        )
    return rows


def draw_endlessly(
    space: Mapping[str, Dimension], seed: int, constraint: Constraint | None = None
) -> Iterator[Row]:
    """Yield different sets of hyperparameters, until no other is found in `MOST_TRIES` draws.

    Args:
        space: to draw from.
        seed: of the experiment.
        constraint: says which sets are allowed.
    """
    names = in_order(space)
    seen: dict[Key, None] = {}
    for index in count_from(0):
        for attempt in range(MOST_TRIES):
            row = _draw_one(space, names, seed, index, attempt)
            if key_of(row) not in seen and (constraint is None or constraint(dict(row))):
                break
        else:
            return
        seen[key_of(row)] = None
        yield row


def key_of(row: Mapping[str, Value]) -> Key:
    """Return what is equal for equal sets of hyperparameters only; True is not 1."""
    return tuple((name, repr(value)) for name, value in row.items())


def _draw_one(
    space: Mapping[str, Dimension], names: list[str], seed: int, index: int, attempt: int
) -> Row:
    row: Row = {}
    for name in names:
        if space[name].exists(row):
            words = [seed, zlib.crc32(name.encode()), index, attempt]
            generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
            row[name] = space[name].at(float(generator.random()))
    return {name: row[name] for name in space if name in row}
