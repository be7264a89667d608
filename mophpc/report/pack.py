"""Number columns as text that a page can hold: integers in planes of bytes, deflated, base64.

The first bytes of all numbers come first, then all second ones, and so on: neighbours are then
alike, which is what deflate needs. `page/data.js` reads it back.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Packer:
    """Collects columns."""

    def __init__(self) -> None:
        self._columns: list[dict[str, Any]] = []
        self._bytes: list[bytes] = []

    def whole(self, name: str, values: NDArray[Any]) -> None:
        """Add integers from -2^31 to 2^31 - 1."""
        wide = np.asarray(values, np.int64)
        folded = ((wide << 1) ^ (wide >> 63)).astype("<u4")  # small ones of both signs stay small
        width = 4
        while width > 1 and int(folded.max(initial=0)) < 1 << (8 * (width - 1)):
            width -= 1
        self._add(name, f"i{width}", folded.view(np.uint8).reshape(-1, 4)[:, :width])

    def real(self, name: str, values: NDArray[Any]) -> None:
        """Add floats, which keep seven digits."""
        with np.errstate(over="ignore"):
            narrow = np.asarray(values).astype("<f4")
        self._add(name, "f4", narrow.view(np.uint8).reshape(-1, 4))

    def _add(self, name: str, kind: str, rows: NDArray[np.uint8]) -> None:
        self._columns.append({"name": name, "kind": kind, "length": len(rows)})
        self._bytes.append(np.ascontiguousarray(rows.T).tobytes())

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        squeezed = zlib.compress(b"".join(self._bytes), 6)
        return {"columns": self._columns, "base64": base64.b64encode(squeezed).decode("ascii")}
