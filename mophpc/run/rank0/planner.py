"""Rank 0's third role: it follows what visits cost, and plans the rest of the run again.

The plan is computed in a thread of its own, while this rank trains; what the ranks are told goes
out from the thread that talks to them. No rank waits for it, unless it runs out of visits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from mophpc.schedule.costs import Costs, Observed
from mophpc.schedule.orders import Orders
from mophpc.schedule.plan import Plan
from mophpc.schedule.renewal import Renewal, Snapshot, Solution

Record = dict[str, Any]


def observed(record: Record) -> Observed:
    """Return what a rank's record of a visit, made or skipped, says."""
    skipped = record["kind"] == "skip"
    return Observed(
        config_id=record["config"],
        shard=record["shard"],
        rank=record["rank"],
        step=record["step"],
        start_s=record["end"] if skipped else record["start"],
        end_s=record["end"],
        eval_s=0.0 if skipped else record["eval_s"],
        diverged=skipped or record["diverged"],
    )


class Planner:
    """Takes the records of visits, and renews the plan when it is time.

    Args:
        renewal: of the run's plan.
        tell: takes what each rank is told next.
        now: seconds since the run's start, as in the records.
    """

    def __init__(
        self,
        renewal: Renewal,
        tell: Callable[[list[Orders]], None],
        now: Callable[[], float],
    ) -> None:
        self._renewal = renewal
        self._tell = tell
        self._now = now
        self._is_fresh = False  # something was observed since the last look
        self._thread: threading.Thread | None = None
        self._solution: Solution | None = None
        self._error: BaseException | None = None
        self.solving_s = 0.0
        """Seconds that renewals took together."""
        self.predictions: list[dict[str, float]] = []
        """After each renewal: when it was, and when the last visit ends by it."""

    def begin(self) -> None:
        """Tell every rank its first visits."""
        self._tell(self._renewal.begin(self._now()))

    @property
    def renewal(self) -> Renewal:
        """The plan and what is known of how it goes."""
        return self._renewal

    @property
    def is_over(self) -> bool:
        """Whether everything has been promised."""
        return self._renewal.is_over

    @property
    def plan(self) -> Plan:
        """The plan as it is now."""
        return self._renewal.plan()

    @property
    def learned(self) -> Costs | None:
        """What every config costs, or has cost; None before each has been observed."""
        return self._renewal.learned

    @property
    def count(self) -> int:
        """How often the plan was renewed."""
        return self._renewal.count

    def left_s(self) -> float:
        """Return the seconds until the last visit ends, as planned now."""
        return max(0.0, self._renewal.makespan_s - self._now())

    def observe(self, record: Record) -> None:
        """Take a record of a rank; those that are not of visits do not matter here."""
        if record["kind"] not in ("visit", "skip"):
            return
        self._is_fresh = True
        self._renewal.observe(observed(record))

    def poll(self) -> None:
        """Begin a renewal when it is due, and tell the ranks when it is ready; never waits.

        Raises:
            PlanError: the new plan breaks an invariant.
        """
        if self._error is not None:
            raise self._error
        now_s = self._now()
        if self._thread is None:
            if not self._is_fresh and now_s < self._renewal.patience_end_s:
                return
            self._is_fresh = False
            if self._renewal.due(now_s):
                snapshot = self._renewal.snapshot(now_s)
                self._thread = threading.Thread(target=self._solve, args=(snapshot,), daemon=True)
                self._thread.start()
        elif self._solution is not None:
            self._thread.join()
            solution, self._solution, self._thread = self._solution, None, None
            orders = self._renewal.adopt(solution, now_s)
            self.predictions.append({"at_s": now_s, "end_s": self._renewal.makespan_s})
            self._tell(orders)

    def _solve(self, snapshot: Snapshot) -> None:
        begin_s = time.perf_counter()
        try:
            solution = snapshot.solve()
        except BaseException as error:  # raised again in the thread that polls
            self._error = error
            return
        took_s = time.perf_counter() - begin_s
        self._renewal.took(took_s)
        self.solving_s += took_s
        self._solution = solution
