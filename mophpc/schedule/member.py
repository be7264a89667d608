"""A config as a pool knows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mophpc.schedule.costs import FloatArray
    from mophpc.schedule.plan import Plan
    from mophpc.schedule.resume import Standing

OF_SLOWEST = 0.9
"""What may follow is thought to take this share of what it takes the slowest that may make it. The
mean is too little: if the slowest makes it, the run waits for that."""


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
    group: int = 0
    """Configs of a group are compared with each other: any of them may make what follows."""
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


def then_s(members: Sequence[Member], ids: Sequence[int], epoch_s: FloatArray) -> FloatArray:
    """Return the seconds that may follow the goals of configs, whoever makes them.

    Args:
        members: all, by config_id.
        ids: of those that are asked for, which go on.
        epoch_s: seconds of an epoch, by config_id.
    """
    slowest: dict[int, float] = {}
    for member, seconds in zip(members, epoch_s.tolist(), strict=True):
        if not member.is_over:
            slowest[member.group] = max(seconds, slowest.get(member.group, 0.0))
    own = [members[config_id] for config_id in ids]
    return np.array([OF_SLOWEST * member.then * slowest[member.group] for member in own])
