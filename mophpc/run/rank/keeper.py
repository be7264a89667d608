"""Which weights of a config are kept: the last, and those of its best epochs by the objective.

No rank asks another: the values of the best epochs so far travel with the config's state.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from mophpc.experiment import Objective
from mophpc.outputs import Checkpoints
from mophpc.run.folder import RunFolder
from mophpc.run.ports import Session, Snapshot
from mophpc.run.writer import Job, Writer
from mophpc.search.space import Config

Kept = list[tuple[float, int]]
"""(value of the objective, epoch) of the best epochs, from best to worst."""


def best_epochs(found: Iterable[tuple[float, int]], keep: int, *, maximise: bool) -> Kept:
    """Return the best `keep` of (value, epoch), from best to worst; of equals the first epochs."""
    sign = -1.0 if maximise else 1.0
    numbers = [(value, epoch) for value, epoch in found if not math.isnan(value)]
    return sorted(numbers, key=lambda pair: (sign * pair[0], pair[1]))[:keep]


class Keeper:
    """Hands the weights of one rank's sessions to its writer.

    Args:
        folder: of the run.
        checkpoints: what is to be kept.
        objective: by which epochs are better or worse.
        writer: of this rank.
    """

    def __init__(
        self, folder: RunFolder, checkpoints: Checkpoints, objective: Objective, writer: Writer
    ) -> None:
        self._folder = folder
        self._checkpoints = checkpoints
        self._objective = objective
        self._writer = writer

    def end_epoch(
        self,
        session: Session,
        config: Config,
        epoch: int,
        metrics: Mapping[str, float],
        *,
        ends: bool = False,
    ) -> bool:
        """Keep what is to be kept of a config that has just been evaluated.

        Args:
            session: still bound.
            config: whose it is.
            epoch: that has ended.
            metrics: of this epoch.
            ends: whether it was the config's last, so that its weights are final.

        Returns:
            Whether weights were copied.
        """
        snapshot = None
        found = self._rank(session, config, epoch, metrics)
        if found is not None:
            snapshot = session.snapshot()
            path = self._folder.epoch_weights(config, epoch)
            dropped = tuple(self._folder.epoch_weights(config, other) for other in found)
            facts = {"config": config.config_id, "epoch": epoch}
            self._writer.put(Job(path, snapshot.write, snapshot, dropped, facts=facts))
        if ends or self._checkpoints.last == "epoch":
            snapshot = self.save_last(session, config, epoch, ends=ends, snapshot=snapshot)
        return snapshot is not None

    def save_last(
        self,
        session: Session,
        config: Config,
        epoch: int,
        *,
        ends: bool = True,
        snapshot: Snapshot | None = None,
    ) -> Snapshot:
        """Write a config's weights as they are now; the caller waits for a copy in memory only.

        Args:
            session: still bound.
            config: whose it is.
            epoch: that has ended, or in which the config has diverged.
            ends: whether the config has ended, so that the run must not end well without them.
                Those of one that may go on become its last when the run ends, if it did not.
            snapshot: of the session, where there is one already.

        Returns:
            The snapshot.
        """
        snapshot = session.snapshot() if snapshot is None else snapshot
        folder, facts = self._folder, {"config": config.config_id, "epoch": epoch}
        path = folder.weights(config) if ends else folder.last_weights(config, epoch)
        former = () if epoch == 0 else (folder.last_weights(config, epoch - 1),)
        self._writer.put(Job(path, snapshot.write, snapshot, former, is_final=ends, facts=facts))
        return snapshot

    def write_manifest(self, config: Config, facts: Mapping[str, object]) -> None:
        """Write what a config's checkpoint holds, after its weights."""

        def write(path: Path) -> int:
            self._folder.write_manifest(config, dict(facts))
            return path.stat().st_size

        path, about = self._folder.manifest(config), {"config": config.config_id}
        self._writer.put(Job(path, write, is_final=True, facts=about))

    def check(self) -> None:
        """Raise what kept final weights from being written.

        Raises:
            OSError: names the file.
        """
        self._writer.check()

    def flush(self) -> None:
        """Wait until all is on disk.

        Raises:
            OSError: final weights could not be written.
        """
        self._writer.flush()

    def _rank(
        self, session: Session, config: Config, epoch: int, metrics: Mapping[str, float]
    ) -> list[int] | None:
        """Return the epochs that this one takes the place of; None where it is none of the best."""
        value, keep = metrics.get(self._objective.metric), self._checkpoints.keep
        if value is None or not keep:
            return None
        before = _read(session.notes, config.config_id)
        after = best_epochs([*before, (value, epoch)], keep, maximise=self._objective.maximise)
        session.notes = _written(after, config.config_id)
        if (value, epoch) not in after:
            return None
        return [other for _, other in before if other not in {kept for _, kept in after}]


def _read(notes: list[float], config_id: int) -> Kept:
    """Return the best epochs that came with a state; a copy of another config has none yet."""
    if not notes or int(notes[0]) != config_id:
        return []
    return [(notes[i], int(notes[i + 1])) for i in range(1, len(notes), 2)]


def _written(kept: Kept, config_id: int) -> list[float]:
    return [config_id, *(number for pair in kept for number in pair)]


def tidy(
    folder: RunFolder,
    config: Config,
    checkpoints: Checkpoints,
    objective: Objective,
    history: Mapping[int, Mapping[str, float]],
) -> None:
    """Leave of a config's files what is to be kept, under their names, when all is written.

    There are more where one rank was so late to write an epoch's that another, which removes them,
    was there first. A config that ended without knowing it has its last under another name. A state
    that a rank was late to write is there after the others were removed.

    Args:
        folder: of the run.
        config: whose weights they are.
        checkpoints: what is to be kept.
        objective: by which epochs are better or worse.
        history: metrics by epoch.
    """
    shutil.rmtree(folder.states(config), ignore_errors=True)
    if (newest := folder.last_epochs(config)) and not folder.weights(config).exists():
        folder.last_weights(config, newest.pop()).replace(folder.weights(config))
    for epoch in newest:
        folder.last_weights(config, epoch).unlink(missing_ok=True)
    there = folder.kept_epochs(config)
    if len(there) <= checkpoints.keep:
        return
    nothing = math.inf * (-1 if objective.maximise else 1)
    values = [(history.get(epoch, {}).get(objective.metric, nothing), epoch) for epoch in there]
    best = best_epochs(values, checkpoints.keep, maximise=objective.maximise)
    for epoch in set(there) - {epoch for _, epoch in best}:
        folder.epoch_weights(config, epoch).unlink(missing_ok=True)
