"""Schedules: built, checked, simulated and printed before anything runs, by pure functions."""

from mophpc.schedule.bounds import idle_share, lower_bound
from mophpc.schedule.check import (
    CompletenessError,
    DeadlockError,
    ExclusivityError,
    IsolationError,
    MatchingError,
    OrderError,
    OwnerError,
    check_plan,
)
from mophpc.schedule.owners import assign_shards
from mophpc.schedule.picture import draw_svg
from mophpc.schedule.plan import (
    TAG_SPAN,
    Fork,
    Hop,
    Plan,
    Stop,
    Visit,
    digest,
    from_json,
    hops,
    routes,
    stops,
    to_json,
)
from mophpc.schedule.policies import POLICIES, make_plan
from mophpc.schedule.simulate import (
    Prediction,
    bytes_moved,
    hops_per_config,
    predict,
    predicted,
    time_left_s,
)
from mophpc.schedule.table import format_plan, summary
from mophpc.schedule.walk import LOOKAHEAD, ArenaQueue, Stuck, least_arenas, stuck

__all__ = [
    "LOOKAHEAD",
    "POLICIES",
    "TAG_SPAN",
    "ArenaQueue",
    "CompletenessError",
    "DeadlockError",
    "ExclusivityError",
    "Fork",
    "Hop",
    "IsolationError",
    "MatchingError",
    "OrderError",
    "OwnerError",
    "Plan",
    "Prediction",
    "Stop",
    "Stuck",
    "Visit",
    "assign_shards",
    "bytes_moved",
    "check_plan",
    "digest",
    "draw_svg",
    "format_plan",
    "from_json",
    "hops",
    "hops_per_config",
    "idle_share",
    "least_arenas",
    "lower_bound",
    "make_plan",
    "predict",
    "predicted",
    "routes",
    "stops",
    "stuck",
    "summary",
    "time_left_s",
    "to_json",
]
