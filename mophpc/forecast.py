"""What plans will do: made, checked and predicted by one policy or by each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mophpc.case import standalone_case
from mophpc.errors import PictureError, UserError
from mophpc.experiment import load_experiment
from mophpc.schedule import (
    LOOKAHEAD,
    POLICIES,
    Prediction,
    bytes_moved,
    check_plan,
    format_plan,
    make_plan,
    predict,
    summary,
    to_json,
)
from mophpc.schedule.bounds import idle_advice
from mophpc.schedule.table import Rating, format_ratings, rate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mophpc.case import Asked, Case


MOST_COMPARED = 200_000
"""Visits up to which all policies are planned unasked; it takes some seconds each."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one plan or several do; `shown` is the one that is shown step by step."""

    case: Case
    shown: Prediction
    ratings: tuple[Rating, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of it."""
        advice = idle_advice(len(self.case.names), self.case.num_ranks, self.shown.idle_share)
        return self.case.notes + ((f"warning: {advice}",) if advice else ())

    def text(self, show_epochs: int) -> str:
        """Return the schedule as a rank-by-step table, and what follows from it."""
        case, plan = self.case, self.shown.plan
        parts = [str(case)]
        if len(self.ratings) > 1:
            parts.append(format_ratings(self.ratings, unit=case.unit))
        head = f"policy {plan.policy}"
        if len(self.ratings) > 1:
            head += ", the shortest of these"
        visit_s = case.costs.visit_s
        if visit_s.min() < visit_s.max():
            head += "; below, every visit is one step, and --gantt draws its real length"
        parts.append(head)
        last = min(show_epochs, plan.num_epochs) - 1
        parts += [
            format_plan(plan, case.names if case.named and epoch == last else None, epoch=epoch)
            for epoch in range(last + 1)
        ]
        more = plan.num_epochs - last - 1
        if more:
            parts.append(f"… {more} more epoch{'' if more == 1 else 's'}; --show says how many")
        lines = summary(
            self.shown,
            unit=case.unit,
            lower_bound_s=case.bound_s,
            state_nbytes=case.state_nbytes,
        )
        return "\n\n".join([*parts, "\n".join([*lines, *self.notes])])

    def record(self) -> dict[str, Any]:
        """Return JSON values."""
        case, plan = self.case, self.shown.plan
        own = rate(self.shown, case.bound_s)
        sizes = case.state_nbytes
        return (
            to_json(plan)
            | case.sizes()
            | {
                "state_nbytes": None if sizes is None else list(sizes),
                "makespan": own.makespan_s,
                "lower_bound": case.bound_s,
                "ratio": own.ratio,
                "idle_share": own.idle_share,
                "idle_shares": list(self.shown.idle_shares),
                "hops": own.hops,
                "bytes_moved": None if sizes is None else bytes_moved(plan, sizes),
                "policies": [asdict(rating) for rating in self.ratings],
                "notes": list(self.notes),
            }
        )


def plan_as_asked(
    asked: Asked, experiment: Path | None, policy: str | None, gantt: Path | None
) -> Forecast:
    """Plan what the command line asks for, and draw it.

    Raises:
        UserError: something in it is wrong.
    """
    from mophpc.report.gantt import FORMATS, draw_gantt

    if policy is not None and policy not in POLICIES:
        raise UserError(f"--policy is '{policy}'; allowed: {', '.join(sorted(POLICIES))}")
    if gantt is not None and gantt.suffix.lower() not in FORMATS:
        raise PictureError(
            f"--gantt is '{gantt}'; allowed: a file that ends in {', '.join(FORMATS)}"
        )
    if experiment is None:
        case = standalone_case(asked)
        found = forecast(case, all_policies(case) if policy is None else (policy,))
    else:
        from mophpc.preview import preview

        toml = load_experiment(experiment)
        case = preview(toml, asked)
        schedule = toml.schedule.model_copy(update={"costs": asked.costs or toml.schedule.costs})
        found = forecast(case, (policy or schedule.planner,), lookahead=schedule.lookahead)
    if gantt is not None:
        names = case.names if case.named else None
        draw_gantt(found.shown.plan, gantt, names=names, unit=case.unit)
    return found


def forecast(case: Case, policies: Sequence[str], *, lookahead: int = LOOKAHEAD) -> Forecast:
    """Plan by each policy, and show the plan that ends first; of equal ones the first.

    Raises:
        ExperimentError: a policy is not known, or there are too many visits to plan.
    """
    found = [_predicted(case, policy, lookahead) for policy in policies]
    bound_s = case.bound_s
    # The last digits of equal makespans differ by the order of additions.
    shown = min(found, key=lambda one: float(f"{one.makespan_s:.9g}"))
    return Forecast(case, shown, tuple(rate(one, bound_s) for one in found))


def all_policies(case: Case) -> tuple[str, ...]:
    """Return all policies, first the one that an experiment with such costs takes by default.

    Where planning takes long, the others are left out.
    """
    first = "round-robin" if case.costs.are_equal else "balanced"
    others = sorted(set(POLICIES) - {first})
    return (first,) if case.num_visits > MOST_COMPARED else (first, *others)


def _predicted(case: Case, policy: str, lookahead: int) -> Prediction:
    costs = case.costs
    plan = make_plan(
        policy,
        num_configs=len(case.names),
        num_shards=len(case.owners),
        num_ranks=case.num_ranks,
        num_epochs=case.num_epochs,
        seed=case.seed,
        costs=costs,
        owners=case.owners,
    )
    check_plan(plan, lookahead=lookahead)
    return predict(plan, costs.visit_s, hop_s=costs.hop_s, eval_s=costs.eval_s)
