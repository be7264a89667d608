"""What a method is: it says which configs are tried, and how long each of them goes on.

A method lives on rank 0 and knows nothing of ranks. A config that has made the epochs it was given
waits, with its state where it is, until the method has decided what becomes of it. That may be at
once (ASHA) or when others have got as far (successive halving, a population); meanwhile the ranks
train the others.

    ask ---> Start                    a config begins
                |  its epochs are made, or it diverges
                v
    tell(Result) ---> Continue        it goes on, to so many epochs
                 ---> Copy            it goes on from another's state, with other hyperparameters
                 ---> Stop            it ends here; so does one that has made all epochs there are

`tell` may decide on any config that waits, not on the one alone that is told. Decisions depend on
what was told and asked, never on a clock; so a run whose journal is replayed decides alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from mophpc.dimensions import Value


@dataclass(frozen=True, slots=True)
class Result:
    """A config has made the epochs that it was given, or will never make them."""

    config_id: int
    epochs: int
    """Whole epochs that it has made, from its beginning."""
    score: float
    """The objective after the last of them, so that less is better whatever its mode; infinite
    where there is none, or where the config has diverged."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All that was recorded after its last epoch."""
    is_over: bool = False
    """Whether it has ended: it has made all epochs, has diverged or failed, or somebody stopped it.
    There is nothing left to decide on."""


@dataclass(frozen=True, slots=True)
class Start:
    """A new config. Its id is the number of configs that were started before it."""

    values: Mapping[str, Value]
    epochs: int
    """To be made until it is decided on again."""
    then: int = 0
    """Epochs that may well follow these. Ranks prefer configs that have most to do."""
    group: int = 0
    """Configs with the same number compete for the epochs that may follow. Ranks prefer each of
    them as if these took nearly as long as the slowest of all."""


@dataclass(frozen=True, slots=True)
class Continue:
    """A config goes on."""

    config_id: int
    epochs: int
    """That it will have made, from its beginning, when it is decided on again."""
    then: int = 0
    """As for `Start`."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A config goes on from the state of another one that waits, with other hyperparameters.

    It then has made as many epochs as the other. Where the optimizers that `build` makes from the
    other's hyperparameters and from these differ, in a learning rate for example, the state is
    changed alike; all else of the new hyperparameters counts from the next visit on.
    """

    config_id: int
    source: int
    """The config whose state is copied; it may be decided on in the same breath."""
    values: Mapping[str, Value]
    epochs: int
    """As for `Continue`."""
    then: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """A config ends here; its weights are kept."""

    config_id: int


Decision: TypeAlias = Continue | Copy | Stop


class Method(Protocol):
    """Decides what is tried."""

    def ask(self, room: int) -> Sequence[Start]:
        """Return new configs, if there are any to try now.

        Called before the first visit, and whenever fewer configs are being trained than keep all
        ranks busy. When nothing is trained and nothing new comes either, the run ends, and configs
        that still wait are stopped.

        Args:
            room: so many more would be welcome. A method that needs them all, since they are to be
                compared, may return more, once.
        """

    def tell(self, result: Result) -> Sequence[Decision]:
        """Take a result; return what follows from it.

        Called once for each config that has come to the end of its epochs. Never for two at a time,
        and never while `ask` runs.
        """
