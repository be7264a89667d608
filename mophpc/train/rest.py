"""The rest of a state as bytes: all that is no tensor of its layout, against a template.

What arrives has nearly always the structure of the template and differs in a few numbers, so only
the parts that differ travel, and what is equal is recognised without being read.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_HEAD = struct.Struct("<Q?")
"""Bytes of text that follow, and whether they are compressed."""
_WINDOW = 32768  # bytes that deflate looks back
_PLAIN_BYTES = 1024
"""A shorter text travels as it is: to set deflate up takes longer."""

Rest = dict[str, Any]

DAMAGES = (ValueError, KeyError, struct.error, zlib.error)
"""What reading a damaged rest may raise."""


def write(value: Any) -> str:
    """Return JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


@lru_cache(maxsize=4096)
def read_template(template: str) -> Rest:
    """Return a template's values; the same objects each time, not to be changed."""
    return json.loads(template) if template else {}


@lru_cache(maxsize=4096)
def _texts(template: str) -> dict[str, str]:
    return {key: write(value) for key, value in read_template(template).items()}


def pack(rest: Mapping[str, Any], template: str) -> bytes:
    """Return the parts of a rest that differ from the template's, as bytes.

    Args:
        rest: JSON values by key.
        template: a rest of this kind as JSON; all its keys are in `rest`.
    """
    known = _texts(template)
    # Texts, since Python takes 1, 1.0 and True for equal.
    texts = ((key, write(value)) for key, value in rest.items())
    text = ",".join(f"{write(key)}:{own}" for key, own in texts if known.get(key) != own)
    raw = f"{{{text}}}".encode()
    compressed = len(raw) > _PLAIN_BYTES
    if compressed:
        # A model of 160 parameters has 50 KB of structure, and 1 KB of differences.
        packer = zlib.compressobj(zdict=template.encode()[-_WINDOW:])
        raw = packer.compress(raw) + packer.flush()
    return _HEAD.pack(len(raw), compressed) + raw


def unpack(raw: bytes, template: str) -> tuple[Rest, int]:
    """Return what `pack` was given, and where in `raw` it ends.

    Values that are equal to the template's are the objects of `read_template`.

    Raises:
        ValueError, struct.error, zlib.error: it is damaged (`DAMAGES`).
    """
    length, compressed = _HEAD.unpack_from(raw)
    end = _HEAD.size + length
    text = raw[_HEAD.size : end]
    if len(text) < length:
        raise ValueError(f"{length} bytes should follow, {len(text)} do")
    if compressed:
        text = zlib.decompressobj(zdict=template.encode()[-_WINDOW:]).decompress(text)
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}")
    return read_template(template) | found, end
