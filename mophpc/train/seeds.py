"""Randomness of a visit: drawn from (seed, epoch, shard) alone, so that none has to travel.

Anyone can reproduce these with numpy and torch; `mophpc verify` does.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

VISIT, EVALUATION = 1, 2
"""Last word of the seed sequence: what the generators are seeded for."""


def sample_order(seed: int, epoch: int, shard: int, rows: int) -> np.ndarray[Any, Any]:
    """Return the order in which a visit takes the shard's rows, (rows,) int64."""
    sequence = np.random.SeedSequence([seed, epoch, shard])
    return np.random.Generator(np.random.PCG64(sequence)).permutation(rows)


def seed_generators(seed: int, epoch: int, shard: int, purpose: int) -> None:
    """Seed the generators of torch, numpy and `random` before a visit or an evaluation."""
    sequence = np.random.SeedSequence([seed, epoch, shard, purpose])
    drawn = int(sequence.generate_state(1, np.uint64)[0]) & (2**63 - 1)
    seed_all(drawn)


def seed_all(number: int) -> None:
    """Seed the generators of torch, numpy (which takes 32 bits) and `random`."""
    torch.manual_seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # users' transforms may draw from it
    random.seed(number)
