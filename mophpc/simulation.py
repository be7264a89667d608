"""Schedules in many realities that differ from the costs they were made from, on all cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mophpc.case import experiment_case, standalone_case
from mophpc.errors import UserError
from mophpc.experiment import load_experiment
from mophpc.forecast import forecast
from mophpc.report.whatif import follow
from mophpc.schedule.execute import Reality
from mophpc.schedule.whatif import Outcome, Row, compare, rows

if TYPE_CHECKING:
    from pathlib import Path

    from mophpc.case import Asked, Case
    from mophpc.schedule import Plan
    from mophpc.schedule.costs import Costs

MOST_VISITS = 100_000
"""A reality of so many takes minutes."""
MOST_VISITS_UNRENEWED = 1_000_000
"""The same where nothing is renewed."""
MOST_DEVIATION = 3.0
"""Of logarithms: a config in twenty would be wrong by a factor of 400."""

_WORTH_PROCESSES_S = 3.0


@dataclass(frozen=True, slots=True)
class Simulation:
    """What schedules did with a case in realities that were drawn."""

    case: Case
    notes: tuple[str, ...]
    noise: float
    jitter: float
    num_seeds: int
    rows: tuple[Row, ...]
    renews: bool = True

    @property
    def heading(self) -> str:
        """What the rows are about."""
        realities = "1 reality" if self.num_seeds == 1 else f"{self.num_seeds} realities"
        return (
            f"{self.case}\nmakespan / lower bound in {realities} that differ from these costs: "
            f"noise {self.noise:g}, jitter {self.jitter:g}"
        )

    def record(self) -> dict[str, Any]:
        """Return JSON values."""
        return self.case.sizes() | {
            "lower_bound": self.case.bound_s,
            "noise": self.noise,
            "jitter": self.jitter,
            "seeds": self.num_seeds,
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
        }


def simulate_as_asked(
    asked: Asked,
    experiment: Path | None,
    *,
    noise: float,
    jitter: float,
    num_seeds: int,
    renews: bool = True,
) -> Simulation:
    """Simulate what the command line asks for.

    Raises:
        UserError: something in it is wrong.
    """
    check_deviations(noise, jitter)
    if experiment is None:
        case = standalone_case(asked)
    else:
        case = experiment_case(load_experiment(experiment), asked)
    most = MOST_VISITS if renews else MOST_VISITS_UNRENEWED
    if case.num_visits > most:
        more = f", or --no-renewal with up to {MOST_VISITS_UNRENEWED}" if renews else ""
        raise UserError(
            f"configs x shards x epochs are {case.num_visits} visits; at most {most} can "
            f"be simulated, so take fewer of one{more}"
        )
    if case.bound_s == 0.0:
        raise UserError("all costs are 0, so that there is nothing to simulate; give other costs")
    found = forecast(case, ("balanced",))
    outcomes = simulate(
        found.shown.plan,
        case.costs,
        noise=noise,
        jitter=jitter,
        num_seeds=num_seeds,
        renews=renews,
    )
    table = rows(follow(outcomes, num_seeds))
    return Simulation(case, found.notes, noise, jitter, num_seeds, table, renews)


def check_deviations(noise: float, jitter: float) -> None:
    """Check how far realities are to differ.

    Raises:
        UserError: a deviation is out of range.
    """
    for option, value in (("--noise", noise), ("--jitter", jitter)):
        if not 0.0 <= value <= MOST_DEVIATION:
            raise UserError(
                f"{option} is {value:g}; allowed: 0 to {MOST_DEVIATION:g}, as in 0.2 for costs "
                "that are wrong by about 20%"
            )


def simulate(
    plan: Plan,
    costs: Costs,
    *,
    noise: float,
    jitter: float,
    num_seeds: int,
    renews: bool = True,
) -> Iterator[Outcome]:
    """Yield how the schedules do in each reality, in the order of seeds from 0.

    Args:
        plan: the balanced plan, made from `costs`.
        costs: what is believed.
        noise: standard deviation of the logarithm of each config's factor.
        jitter: the same, of each single visit's factor.
        num_seeds: realities.
        renews: whether the plan with renewals is simulated, too.
    """
    one = partial(_outcome, plan, costs, noise, jitter, renews)
    begin_s = time.perf_counter()
    yield one(0)
    took_s = time.perf_counter() - begin_s
    rest = range(1, num_seeds)
    processes = min(_cores(), len(rest))
    if processes < 2 or took_s * len(rest) < _WORTH_PROCESSES_S:
        yield from map(one, rest)
        return
    # Not forked: a fork copies locks that threads of this process hold.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap(one, rest)


def _outcome(
    plan: Plan, costs: Costs, noise: float, jitter: float, renews: bool, seed: int
) -> Outcome:
    reality = Reality.draw(costs, plan.num_epochs, noise=noise, jitter=jitter, seed=seed)
    return compare(plan, costs, reality, seed=seed, renews=renews)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
