"""Settings of what a run leaves behind for people: weights of its configs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mophpc.dimensions import SETTINGS


class Checkpoints(BaseModel):
    """Which weights of a config are kept."""

    model_config = SETTINGS

    keep: Annotated[int, Field(ge=0, le=100)] = 1
    """How many of its epochs, the best by the objective."""
    last: Literal["end", "epoch"] = "end"
    """When its newest weights are written: when it ends, or after every epoch too."""
