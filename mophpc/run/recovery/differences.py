"""What makes an experiment another one than that of a run which is to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FREE = (
    "build",  # its source decides
    "checkpoints",
    "data.memory_bytes",
    "data.stage",
    "data.store",  # its digest decides
    "device.buffers",
    "device.direct",
    "device.indices",
    "device.memory_bytes",
    "faults",
    "hop",
    "schedule",
    "signals",
    "track",
    "versions.mophpc",
    "versions.mpi4py",
    "versions.numpy",
    "versions.python",
    "versions.torch",
    "versions.zarr",
)
"""What may differ: it decides where, when and how fast, and never what is computed. Other versions
of libraries may round otherwise, but a machine that was updated must not cost a run."""

_SAID = {
    "versions.store": "the dataset store has changed",
    "versions.build_sha256": "the file of build has changed",
}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between two resolved experiments, of what decides on results.

    Args:
        before: of the run.
        now: to go on with.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    found = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key) or _is_free(key):
            continue
        if key in _SAID:
            found.append(_SAID[key])
        elif key not in old:
            found.append(f"{key} was not set and is {new[key]!r}")
        elif key not in new:
            found.append(f"{key} was {old[key]!r} and is not set")
        else:
            found.append(f"{key} was {old[key]!r} and is {new[key]!r}")
    return found


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value); lists are values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
