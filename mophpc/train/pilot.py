"""What a config's visits cost on this rank: a few batches, timed before the first visit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from mophpc.errors import ExperimentError, InterruptError, MophpcError, StateError, StoreError
from mophpc.train.arena import Arena
from mophpc.train.batches import Blocks, Rows
from mophpc.train.evaluation import evaluate
from mophpc.train.session import Session
from mophpc.train.task import said
from mophpc.train.trainer import TorchTrainer

TRAINING_PER_EVALUATION = 3
"""How much more training costs per row where an evaluation, which has no backward pass, cannot be
timed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a config costs on the rank that timed it."""

    seconds_per_row: float
    """Training time per row."""
    overhead_s: float
    """Time per visit that does not depend on rows: build, bind and release."""
    eval_seconds_per_row: float
    """Evaluation time per validation row."""

    def to_json(self) -> dict[str, float]:
        """Return plain values, to be shared with all ranks."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Timing:
        """Read what `to_json` gave."""
        return cls(**value)


def time_config(
    trainer: TorchTrainer,
    config_id: int,
    rows: Rows,
    valid: Rows,
    *,
    budget_s: float = 0.25,
    most_batches: int = 8,
) -> Timing:
    """Do what a visit does with a few batches, in an arena of its own that is then forgotten.

    The first batch is not counted. Where a shard is streamed, what is timed is training on rows
    that are there: reading overlaps with it.

    Args:
        trainer: has adopted the probes of all configs.
        config_id: the config.
        rows: a shard of at least one row, of which only the first rows are read.
        valid: the validation rows, of which at most two batches are read.
        budget_s: no further batch is started after so many seconds of them.
        most_batches: how many are timed at most; at least one is.

    Raises:
        ExperimentError: the user's code failed; the message names the config.
    """
    if rows.rows < 1:
        raise ValueError("the shard has no rows")
    arena = trainer.allocate(trainer.nbytes(config_id))
    paced: _Paced | None = None
    with _naming(trainer.name(config_id)):
        while paced is None or not paced.enough:
            # Again for a small shard, or where training diverged. From the start, since a
            # scheduler may refuse more steps than a whole run has.
            session = trainer.start(config_id, arena)
            paced = paced or _Paced(rows, session.task.batch_size, budget_s, most_batches)
            session.train(0, 0, paced, look_every=1)  # or a GPU would still be at work
        session, overhead_s = _time_turn(trainer, config_id, arena, session)
        if overhead_s <= budget_s:  # again: the first release after a start copies more
            session, overhead_s = _time_turn(trainer, config_id, arena, session)
        eval_s = _time_evaluation(trainer, session, valid, budget_s)
        session.release()[1].drop()
    seconds_per_row = paced.seconds_per_row()
    if eval_s is None:
        eval_s = seconds_per_row / TRAINING_PER_EVALUATION
    return Timing(seconds_per_row, overhead_s, eval_s)


def _time_turn(
    trainer: TorchTrainer, config_id: int, arena: Arena, session: Session
) -> tuple[Session, float]:
    """End a visit and begin the next; return its session, and the seconds that both took."""
    begin_s = time.perf_counter()
    rest, held = session.release()
    held.land()  # as it would before it hops
    session = trainer.resume(config_id, arena, rest, held=held)
    return session, time.perf_counter() - begin_s


def _time_evaluation(
    trainer: TorchTrainer, session: Session, valid: Rows, budget_s: float
) -> float | None:
    """Return seconds per validation row, or None where some of the rows cannot be evaluated."""
    task = session.task
    batch_size = task.eval_batch_size or task.batch_size
    seconds, rows = 0.0, _First(valid, 0)
    try:
        for num_batches in (1, 2):  # one as a warm-up, unless it takes long
            if seconds <= budget_s:
                rows = _First(valid, num_batches * batch_size)
                begin_s = time.perf_counter()
                evaluate(task, rows, device=trainer.device)
                seconds = time.perf_counter() - begin_s
    except (StoreError, InterruptError):
        raise
    except (Exception, SystemExit):  # a metric may well want all rows
        return None
    return seconds / max(1, rows.rows)


class _First:
    """The first rows of others, so that of a streamed shard no more is read."""

    def __init__(self, rows: Rows, most: int) -> None:
        self._of = rows
        self.rows = min(rows.rows, most)

    def blocks(self, order: np.ndarray[Any, Any], batch_size: int) -> Blocks:
        yield from self._of.blocks(order, batch_size)


class _Paced:
    """Some rows of a shard, with a look at the clock before and after each batch.

    Every batch is a block of its own, so that training comes back here in between. All batches are
    of equal size: whole ones, or, where the shard is less than a batch, the shard.
    """

    def __init__(self, rows: Rows, batch_size: int, budget_s: float, most_batches: int) -> None:
        whole = max(1, min(1 + most_batches, rows.rows // batch_size))
        self._of = _First(rows, whole * batch_size)
        self.rows = self._of.rows
        self._budget_s = budget_s
        self._most = most_batches
        self._spent_s = 0.0
        self._batches = 0
        self._trained: list[float] = []  # seconds per row of each batch
        self._broken: list[float] = []  # of those whose loss was not finite: no backward pass

    @property
    def enough(self) -> bool:
        """Whether a batch besides the first is timed, and the budget or the batches are used up."""
        timed = self._batches - 1
        return timed >= 1 and (timed >= self._most or self._spent_s >= self._budget_s)

    def seconds_per_row(self) -> float:
        """Return the median over the batches."""
        return median(self._trained or self._broken)

    def blocks(self, order: np.ndarray[Any, Any], batch_size: int) -> Blocks:
        for arrays, positions in self._of.blocks(order, batch_size):
            for start in range(0, len(positions), batch_size):
                batch = positions[start : start + batch_size]
                begin_s = time.perf_counter()
                kept = self._broken
                try:
                    yield arrays, batch
                    kept = self._trained
                finally:  # training that meets a loss that is not finite closes this generator
                    self._count(kept, time.perf_counter() - begin_s, len(batch))
                if self.enough:
                    return

    def _count(self, kept: list[float], seconds: float, rows: int) -> None:
        self._batches += 1
        if self._batches > 1:  # torch allocates and chooses kernels in the first
            self._spent_s += seconds
            kept.append(seconds / rows)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the config in errors of the user's code."""
    try:
        yield
    except (ExperimentError, StateError) as error:
        named = str(error).startswith(f"config {name}: ")
        raise ExperimentError(str(error) if named else f"config {name}: {error}") from (
            error.__cause__ or error
        )
    except MophpcError:
        raise  # a damaged store, a signal
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise ExperimentError(
            f"config {name}: timing its first batches raised {said(error)}"
        ) from error
