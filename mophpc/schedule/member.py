"""A config as a pool knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mophpc.schedule.plan import Plan
    from mophpc.schedule.resume import Standing


@dataclass(slots=True)
class Member:
    """A config in the pool; steps are counted from the config's beginning."""

    begin: int
    """Its first step: 0, or where its state was, or that of which it is a copy."""
    goal: int
    """It waits before this step."""
    made: int
    """The first step that it has not made."""
    then: int = 0
    """Epochs that may well follow."""
    is_laid_out: bool = True
    """Whether the size of its state is known; its first stay finds out."""
    is_over: bool = False

    @classmethod
    def of(cls, standing: Standing, num_owed: int, plan: Plan) -> Member:
        """Return a config that goes on from where it stands.

        Args:
            standing: where it stands.
            num_owed: visits that it makes before anything is decided.
            plan: its sizes.
        """
        begin, end = standing.step, standing.end_in(plan)
        step = begin + num_owed
        epoch_end = -(-step // plan.num_shards) * plan.num_shards
        goal = max(step, min(end, epoch_end))
        return cls(begin, goal, begin, is_over=begin >= end)
