"""What two batches of a config tell about its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mophpc.train.arena import Arena, Layout


@dataclass(frozen=True, slots=True)
class Probe:
    """What two batches of a config told about its state."""

    layout: Layout
    ordinary: str | None
    """Why it must be built with its initial weights at every visit; None where it need not."""
    metrics: tuple[str, ...] = ()
    """Names of the Task's metrics."""
    compiles: bool = False
    """Whether its models are compiled."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, to be shared with all ranks."""
        return {
            "layout": self.layout.to_json(),
            "ordinary": self.ordinary,
            "metrics": list(self.metrics),
            "compiles": self.compiles,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Probe:
        """Read what `to_json` gave."""
        layout, metrics = Layout.from_json(value["layout"]), tuple(value["metrics"])
        return cls(layout, value["ordinary"], metrics, value["compiles"])


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The state after a batch, and the metrics of that batch, or why there are none."""

    arena: Arena
    rest: bytes
    metrics: dict[str, float]
    failure: str | None = None
