"""The checksum of a state on its way: XXH3 of 64 bits, some ten gigabytes per second of a core."""

from __future__ import annotations

import xxhash

from mophpc.hop.transport import Buffer

BYTES_PER_S = 5e9
"""Believed where it is not measured: what a slow core does, out of its cache."""


def checksum(*parts: Buffer | bytes) -> int:
    """Return the XXH3 checksum of the parts, one after the other."""
    found = xxhash.xxh3_64()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.data)
    return found.intdigest()
