"""What one rank has of the run around it."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from mophpc.events import EventLog
from mophpc.hop.collectives import Group
from mophpc.hop.transport import Transport
from mophpc.run.devices import Bound
from mophpc.run.faults.watch import Watch
from mophpc.run.folder import RunFolder
from mophpc.run.ports import View


@dataclass(frozen=True, slots=True)
class Rooms:
    """The run folder, the other ranks, and where to say things."""

    group: Group
    transport: Transport
    folder: RunFolder
    view: View
    events: EventLog
    log: logging.Logger
    bound: Bound
    """What this rank trains on."""
    turn: AbstractContextManager[Any]
    """Held while computing; only ranks of one process have to take turns."""

    watch: Watch
    """Over the other ranks."""

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0."""
        return self.group.rank == 0
