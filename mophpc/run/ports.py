"""What a run asks of the rooms around it; `start` plugs the real ones in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mophpc.hop.parcel import Held
from mophpc.hop.transport import Buffer
from mophpc.schedule.plan import Plan
from mophpc.search.space import Config

Array = np.ndarray[Any, Any]


class Rows(Protocol):
    """The rows of a shard or of the validation split."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    def blocks(self, order: Array, batch_size: int) -> Iterator[tuple[dict[str, Any], Array]]:
        """Yield (arrays, positions): together they deliver the rows of `order`, in order."""


class Outcome(Protocol):
    """What a visit did."""

    @property
    def rows(self) -> int:
        """Rows trained."""

    @property
    def loss(self) -> float:
        """Mean over the rows trained."""

    @property
    def diverged(self) -> bool:
        """Whether a loss was not finite."""

    @property
    def data_s(self) -> float:
        """Seconds that it waited for rows."""

    @property
    def is_paused(self) -> bool:
        """Whether it was stopped before its last batch; the session has the cursor then."""


class Snapshot(Protocol):
    """Weights as they were, whatever their config learns meanwhile."""

    def write(self, path: Path, /) -> int:
        """Write them whole or not at all; return the bytes written."""


class StateCopy(Protocol):
    """A whole state as it was, whatever its config learns meanwhile."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""

    def manifest(self, folder: Path, step: int, /) -> Path:
        """Return the file that `write` writes last."""

    def write(self, folder: Path, step: int, facts: Any, /) -> int:
        """Write the state of a config after `step` visits, whole or not at all; return the bytes.

        Any thread may call it. `facts` are JSON values that come back with the state.
        """


class Session(Protocol):
    """A config bound to its arena."""

    notes: list[float]
    """What the rank program wants to know of the config's past; it hops with the state."""

    @property
    def cursor(self) -> Any:
        """Where the visit stands, if it was stopped before its last batch; else None."""

    @property
    def why_not_paused(self) -> str | None:
        """Why the visit did not stop when it was last asked to, if it was."""

    def train(
        self,
        epoch: int,
        shard: int,
        rows: Any,
        /,
        *,
        should_stop: Callable[[], bool] | None = None,
        cursor: Any = None,
    ) -> Outcome:
        """Train one visit, or what is left of it after the cursor.

        It stops where it is once `should_stop`, asked after each batch but the last, says so; if
        something cannot be carried, it goes on and asks again after the next batch.
        """

    def evaluate(self, epoch: int, rows: Any, /) -> dict[str, float]:
        """End an epoch; return its losses, metrics and seconds."""

    def release(self) -> tuple[bytes, Held]:
        """Bring the whole state together; return the rest of it, and what still has its arena."""

    def snapshot(self) -> Snapshot:
        """Copy the weights, on the host; the session goes on."""


class Trainer(Protocol):
    """Makes sessions over arenas."""

    def nbytes(self, config_id: int, step: int, /) -> int:
        """Return the bytes of a config's arena for a visit; 0 where they are not known yet."""

    @property
    def waited_s(self) -> float:
        """Seconds that visits have waited for states to get to the device."""

    def learn(self, news: Sequence[Mapping[str, Any]], /) -> None:
        """Take over what is said of configs that are new, or have other hyperparameters now."""

    def turn_to(self, config_id: int, step: int, /) -> None:
        """The config makes this visit next."""

    def knows(self, config_id: int, /) -> bool:
        """Return whether it is known how a config's state is laid out."""

    def lay_out(self, config_id: int, rows: Any, /) -> dict[str, Any]:
        """Find out how a new config's state is laid out; return it for the other ranks.

        Raises:
            ExperimentError: the config cannot be trained.
        """

    def check_change(self, config_id: int, step: int, /) -> None:
        """Return if the state that a config got a copy of fits what it is to be trained as.

        Raises:
            ExperimentError: it does not.
        """

    def is_copy(self, config_id: int, step: int, /) -> bool:
        """Return whether a config's state before this visit is a copy of another's."""

    def change(self, session: Any, config_id: int, step: int, /) -> None:
        """Change a state that was copied, before its first visit, to other hyperparameters."""

    def allocate(self, nbytes: int, /) -> Buffer:
        """Return memory for an arena."""

    def start(self, config_id: int, arena: Buffer, /) -> Session:
        """Build a config with its initial weights."""

    def ahead(self, config_id: int, step: int, arena: Buffer, held: Any, /) -> None:
        """Begin to bring a state to the device: its visit is next."""

    def draft(self, config_id: int, arena: Buffer, /) -> Any:
        """Build a config around a state that is on its way."""

    def forget(self, arena: Buffer, /) -> None:
        """Let go of a draft: the state will not be trained."""

    def resume(
        self, config_id: int, arena: Buffer, rest: bytes, draft: Any, held: Any, /
    ) -> Session:
        """Bind a config to a state that is here, with the draft made for it, or None."""

    def digest(self, config_id: int, arena: Buffer, rest: bytes, held: Any, /) -> str:
        """Return the state's `state_sha256`."""

    def state_copy(
        self, config_id: int, arena: Buffer, rest: bytes, held: Any, cursor: Any, /
    ) -> StateCopy:
        """Copy a whole state that a session released, with its cursor or None."""

    def load(
        self, config_id: int, manifest: Path, arena: Buffer, whose: int, /
    ) -> tuple[bytes, Any, Any]:
        """Read a state of the config `whose`; return its rest, its cursor or None, and its facts.

        Raises:
            StateError: it is damaged, or another config's.
            RunFolderError: it is one of another model, or of a newer version.
        """


class Tracking(Protocol):
    """Told by rank 0 what people may look at elsewhere; never waited for."""

    def config(self, config_id: int, name: str, values: Mapping[str, Any], /) -> None:
        """A config with these hyperparameters is tried."""

    def epoch(self, config_id: int, epoch: int, metrics: Mapping[str, float], /) -> None:
        """A config has ended an epoch."""

    def final(self, config_id: int, status: str, best: float | None, /) -> None:
        """A config has ended; `best` is its best value of the objective."""

    def end(self, status: str, best: str | None, /) -> None:
        """The run has ended; waits a few seconds at most."""

    def abandon(self) -> None:
        """The run has failed; waits for nothing."""


class View(Protocol):
    """Shows people how a run goes; on rank 0 only."""

    def note(self, text: str) -> None:
        """Say something once."""

    def warn(self, text: str) -> None:
        """Say once that something goes wrong; shown whatever else is."""

    def begin(self, plan: Plan, configs: tuple[Config, ...]) -> None:
        """The plan is known and the visits begin."""

    def decided(self, visits: int) -> None:
        """So many visits are made or decided, where more may follow."""

    def expect(self, left_s: float) -> None:
        """So many seconds are left, as planned now."""

    def visited(self, elapsed_s: float, visits: int) -> None:
        """So many visits are done."""

    def evaluated(self, text: str, best: str) -> None:
        """A config ended an epoch; `best` is the best one so far."""

    def end(self) -> None:
        """The visits are over, or the run failed."""

    def spent(self, ranks: list[dict[str, float]]) -> None:
        """What the ranks spent their time on: `events.PARTS`, in seconds, by rank."""
