"""From a search space to configs, and how long each of them goes on; pure."""

from mophpc.search.catalog import make_method, room_of
from mophpc.search.method import Continue, Copy, Decision, Method, Result, Start, Stop
from mophpc.search.own import Brief
from mophpc.search.space import Config, make_configs, make_rows

__all__ = [
    "Brief",
    "Config",
    "Continue",
    "Copy",
    "Decision",
    "Method",
    "Result",
    "Start",
    "Stop",
    "make_configs",
    "make_method",
    "make_rows",
    "room_of",
]
