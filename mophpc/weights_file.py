"""Weights on disk with a digest of the whole file in it, so that damage is found wherever they go.

It is in the metadata of the safetensors header, which other readers ignore. It is computed over the
file with zeros in its own place.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from mophpc.errors import RunFolderError
from mophpc.state_folder import digest_of_file, new_digest

KEY = "digest"
UNSET = f"xxh3-128:{'0' * 32}"
"""Written first, as metadata."""

_MOST_HEADER_BYTES = 100 << 20
"""As safetensors allows."""
_LENGTH_BYTES = 8


def seal(file: BinaryIO) -> None:
    """Write the digest into a file that has `UNSET` in its place, and is open at its start."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    place = _LENGTH_BYTES + file.read(length).index(UNSET.encode())
    file.seek(0)
    found = digest_of_file(file)
    file.seek(place)
    file.write(found.encode())


def check_weights(path: Path) -> None:
    """Return if a file of weights is whole, as far as it tells.

    Those of an earlier version have no digest; then only the header and the size are looked at.

    Raises:
        RunFolderError: it is damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            wrong = _wrong(file)
    except OSError as error:
        raise RunFolderError(
            f"the weights in '{path}' cannot be read: {error.strerror or error}"
        ) from error
    if wrong is not None:
        raise RunFolderError(
            f"the weights in '{path}' are damaged: {wrong}; take those of another epoch or config, "
            f"or restore the file"
        )


def _wrong(file: BinaryIO) -> str | None:
    nbytes = os.fstat(file.fileno()).st_size
    begin = file.read(_LENGTH_BYTES)
    length = int.from_bytes(begin, "little")
    if len(begin) < _LENGTH_BYTES or length > min(_MOST_HEADER_BYTES, nbytes - _LENGTH_BYTES):
        return "they are no whole safetensors file"
    head = file.read(length)
    try:
        header = json.loads(head)
        ends = [item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"]
        recorded = header.get("__metadata__", {}).get(KEY)
        if _LENGTH_BYTES + length + max(ends, default=0) != nbytes:
            return f"the file has {nbytes} bytes, and its header asks for others"
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError):
        return "their header cannot be read"
    if recorded is None:
        return "their digest has lost its name" if UNSET[:9].encode() in head else None
    digest = new_digest()
    digest.update(begin + head.replace(str(recorded).encode(), UNSET.encode(), 1))
    found = digest_of_file(file, digest)
    return None if found == recorded else f"their digest is {found}, it should be {recorded}"
