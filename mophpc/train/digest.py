"""`state_sha256`: one number for a config's whole state, independent of the arena's layout."""

from __future__ import annotations

import hashlib

import torch

from mophpc.train.arena import Arena, Layout
from mophpc.train.bind import unpack
from mophpc.train.tree import dtype_name


def state_sha256(layout: Layout, arena: Arena, raw: bytes) -> str:
    """Return SHA-256 over the state's tensors sorted by name.

    Each is its name, dtype and shape, a line each, then its bytes in row-major order.
    """
    tensors, _ = unpack(layout, arena, raw)
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(str(size) for size in tensor.shape)
        total.update(f"{name}\n{dtype_name(tensor.dtype)}\n{shape}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
