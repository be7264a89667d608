"""A run folder leads nowhere else: who writes into it writes there, whoever made it.

The folder itself may be reached by a link. What a run writes below it may not be one that leads
out, nor a folder where a file belongs.
"""

from __future__ import annotations

import os
from pathlib import Path

from mophpc.errors import RunFolderError

FOLDERS = ("events", "logs", "places", "checkpoints", "states", "requests")
FILES = (
    *("experiment.toml", "plan.json", "metrics.jsonl", "decisions.jsonl", "journal.jsonl"),
    *("results.json", "results.csv", "costs.json", "status.json", "run.lock"),
)
_DEPTHS = {"events": 1, "logs": 1, "places": 1, "checkpoints": 2, "states": 2}
"""How deep files lie. What people ask is read and written with care of its own."""


def check_inside(run: Path, *, deep: bool = True) -> None:
    """Return if nothing that a run writes leads out of its folder.

    Args:
        run: the run folder, which may not be there yet.
        deep: whether what is in its folders is looked at too.

    Raises:
        RunFolderError: something does, or is of another kind than it should be.
    """
    for name in FOLDERS:
        path = run / name
        _check_link(run, path)
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"'{path}' should be a folder; choose another run folder")
        if deep and name in _DEPTHS:
            _check_below(run, path, _DEPTHS[name])
    for name in FILES:
        _check_link(run, run / name)
        if (run / name).is_dir():
            raise RunFolderError(f"'{run / name}' should be a file; choose another run folder")


def _check_below(run: Path, folder: Path, depth: int) -> None:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # it is not there; or whoever needs it says why it cannot be used
        return
    for entry in found:
        if entry.is_symlink():
            _check_link(run, Path(entry.path))
        if entry.is_dir():
            if depth == 1:
                raise RunFolderError(
                    f"'{entry.path}' is a folder, where a run has files; remove it, or choose "
                    f"another run folder"
                )
            _check_below(run, Path(entry.path), depth - 1)
        elif depth > 1:
            raise RunFolderError(
                f"'{entry.path}' should be a folder; remove it, or choose another run folder"
            )


def _check_link(run: Path, path: Path) -> None:
    if not path.is_symlink():
        return
    try:
        inside = path.resolve().is_relative_to(run.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        raise RunFolderError(
            f"'{path}' is a link to '{os.readlink(path)}', which leads out of the run folder; "
            f"remove it, or choose another run folder"
        )
