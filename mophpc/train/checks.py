"""What the probes of all configs tell before a run: mistakes and notes."""

from __future__ import annotations

from collections.abc import Sequence

from mophpc.errors import ExperimentError
from mophpc.train.trainer import TorchTrainer

LOSSES = ("train_loss", "valid_loss")


def check_objective(trainer: TorchTrainer, names: Sequence[str], metric: str) -> None:
    """Check that every config records the objective's metric.

    Raises:
        ExperimentError: one does not.
    """
    for config_id, name in enumerate(names):
        if not trainer.knows(config_id):
            continue
        known = (*LOSSES, *trainer.metrics(config_id))
        if metric not in known:
            raise ExperimentError(
                f"objective.metric is '{metric}', which config {name} does not record; "
                f"allowed: {', '.join(known)}"
            )


def ordinary_builds(trainer: TorchTrainer, names: Sequence[str]) -> list[str]:
    """Say, a line per reason, which configs cannot be built on the meta device."""
    found: dict[str, list[str]] = {}
    for config_id, name in enumerate(names):
        reason = trainer.ordinary(config_id) if trainer.knows(config_id) else None
        if reason is not None:
            found.setdefault(reason, []).append(name)
    lines = []
    for reason, affected in found.items():
        more = f" and {len(affected) - 1} more are" if len(affected) > 1 else " is"
        lines.append(
            f"note: {affected[0]}{more} built with initial weights at every visit, which costs "
            f"time: {reason}"
        )
    return lines
