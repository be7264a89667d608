"""Rank 0's third role where a plan of decisions is walked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mophpc.schedule.costs import Costs
from mophpc.schedule.orders import Orders
from mophpc.schedule.plan import Plan
from mophpc.schedule.retold import Retold

Record = dict[str, Any]


class Replayer:
    """Tells the ranks what follows as soon as the copies before it can be made.

    Args:
        plan: that is walked again.
        ends: by config, the step before which it ended at the latest.
        tell: takes what each rank is told next.
    """

    def __init__(
        self, plan: Plan, ends: Sequence[int] | None, tell: Callable[[list[Orders]], None]
    ) -> None:
        self.plan = plan
        self.predictions: list[dict[str, float]] = []
        self.learned: Costs | None = None
        self._retold = Retold(plan, ends)
        self._tell = tell
        self._is_fresh = True

    def begin(self) -> None:
        """Tell every rank its first visits."""
        self.poll()

    def observe(self, record: Record) -> None:
        """Take a record of a rank."""
        if record["kind"] in ("visit", "skip"):
            self._retold.observe(record["config"], record["step"])
            self._is_fresh = True

    def poll(self) -> None:
        """Tell the ranks what can be told now."""
        if self._is_fresh and not self._retold.is_over:
            self._is_fresh = False
            orders = self._retold.tell()
            if orders is not None:
                self._tell(orders)

    def left_s(self) -> float:
        """Return that nothing is known of the time left."""
        return 0.0
