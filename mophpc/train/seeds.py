"""Randomness of a visit: drawn from (seed, epoch, shard) alone, so that none has to travel.

Anyone can reproduce these with numpy and torch; `mophpc verify` does.
"""

from __future__ import annotations

import random
from functools import cache
from types import ModuleType
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


@cache
def _device() -> ModuleType | None:
    """Return torch's module of the accelerator of this process, as `torch.cuda`, or None."""
    if not torch.accelerator.is_available():
        return None
    found: ModuleType = torch.get_device_module(torch.accelerator.current_accelerator())
    return found


def seed_all(number: int) -> None:
    """Seed the generators of torch, numpy (which takes 32 bits) and `random`."""
    # As `torch.manual_seed`, which also formats a traceback for each kind of device that is not
    # there: three of them take longer than a small visit.
    torch.default_generator.manual_seed(number)
    device = _device()
    if device is not None:
        getattr(device, "manual_seed_all", device.manual_seed)(number)
    np.random.seed(number & 0xFFFFFFFF)  # users' transforms may draw from it
    random.seed(number)
