"""Whole states of configs on disk, from which a run that was cut off goes on.

The rank where a config is writes its state, by a thread, at the end of an epoch or when the last
one is some minutes old. A state that the disk is too slow for is left out: the next one will do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mophpc.outputs import Checkpoints
from mophpc.run.folder import RunFolder
from mophpc.run.ports import StateCopy
from mophpc.run.writer import Job, Writer
from mophpc.search.space import Config
from mophpc.state_folder import list_states, prune

KEPT = 2
"""States of a config that are kept: where the newest is damaged, the one before it is used."""


class StateKeeper:
    """Hands the states of one rank's configs to its writer.

    Args:
        folder: of the run.
        checkpoints: when states are written.
        writer: of this rank.
    """

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints, writer: Writer) -> None:
        self._folder = folder
        self._when = checkpoints.states
        self._writer = writer
        self._written_s: dict[int, float] = {}
        self._asked: dict[tuple[int, int], Path] = {}
        self._settled: set[tuple[int, int]] = set()
        self._begun_s = time.monotonic()

    def paths(self, config: Config, step: int) -> list[Path]:
        """Return the manifests of states for a config's visit, from the newest to the oldest."""
        found = list_states(self._folder.states(config))
        return [path for made, path in reversed(found) if made == step]

    def is_due(self, config_id: int, *, ends_epoch: bool) -> bool:
        """Return whether a config's state is to be written after this visit."""
        if self._when == "off":
            return False
        if self._when == "epoch":
            return ends_epoch
        last_s = self._written_s.get(config_id, self._begun_s)
        return time.monotonic() - last_s >= 60.0 * self._when

    @property
    def is_off(self) -> bool:
        """Whether no states are written at all."""
        return self._when == "off"

    @property
    def has_room(self) -> bool:
        """Whether a state would be written, and soon; else it is not worth a copy."""
        return self._when != "off" and self._writer.has_room

    def keep(self, config: Config, step: int, copy: StateCopy, facts: Mapping[str, Any]) -> None:
        """Write a state, soon.

        Args:
            config: whose it is.
            step: the visit that it is ready for, or in which it was stopped.
            copy: of the state.
            facts: what is to be known of it when the run goes on.
        """
        folder = self._folder.states(config)
        self._written_s[config.config_id] = time.monotonic()

        def write(_: Path) -> int:
            nbytes = copy.write(folder, step, dict(facts))
            prune(folder, KEPT)
            return nbytes

        about = {"config": config.config_id, "step": step}
        path = copy.manifest(folder, step)
        self._asked[config.config_id, step] = path
        self._writer.put(Job(path, write, copy, facts=about))

    def is_asked(self, config: Config, step: int) -> bool:
        """Return whether a state for this visit was written here, or will be."""
        return (config.config_id, step) in self._asked

    def settle(self, is_late: Callable[[], bool] = lambda: False) -> list[tuple[int, int, bool]]:
        """Wait for the disk; return (config, step, is there) of what was asked for since.

        Args:
            is_late: whether it is no use to wait any longer; a disk may hang.
        """
        self._writer.flush(is_late)
        new = {key: path for key, path in self._asked.items() if key not in self._settled}
        self._settled.update(new)
        return [(*key, path.is_file()) for key, path in new.items()]

    def drop(self, config: Config) -> None:
        """Remove a config's states: it has ended, and its weights are on disk."""
        if self._when == "off":
            return
        folder = self._folder.states(config)

        def remove(_: Path) -> int:
            shutil.rmtree(folder, ignore_errors=True)
            return 0

        about = {"config": config.config_id}
        self._writer.put(Job(folder / "none", remove, facts=about, is_silent=True))
