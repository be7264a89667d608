"""Model Hopper Parallelism on MPI.

Many deep-learning configs are trained at once over one copy of the data: the shards stay put, one
or more per rank, and the models hop. `import mophpc` is light; torch, zarr and MPI are imported
by what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mophpc._version import __version__

if TYPE_CHECKING:
    from mophpc.dimensions import choice, integer, loguniform, uniform
    from mophpc.experiment import Data, Device, Experiment, Hop, Objective, Schedule
    from mophpc.fault_settings import Faults, Signals
    from mophpc.outputs import Checkpoints
    from mophpc.run.start import run_experiment
    from mophpc.saved import load_model, load_run
    from mophpc.search_settings import Search
    from mophpc.train.task import Task

__all__ = [
    "Checkpoints",
    "Data",
    "Device",
    "Experiment",
    "Faults",
    "Hop",
    "Objective",
    "Schedule",
    "Search",
    "Signals",
    "Task",
    "__version__",
    "choice",
    "integer",
    "load_model",
    "load_run",
    "loguniform",
    "run_experiment",
    "uniform",
]

_ROOMS = {
    "Checkpoints": "mophpc.outputs",
    "Device": "mophpc.experiment",
    "Hop": "mophpc.experiment",
    "Search": "mophpc.search_settings",
    "Data": "mophpc.experiment",
    "choice": "mophpc.dimensions",
    "integer": "mophpc.dimensions",
    "loguniform": "mophpc.dimensions",
    "uniform": "mophpc.dimensions",
    "Experiment": "mophpc.experiment",
    "Faults": "mophpc.fault_settings",
    "Signals": "mophpc.fault_settings",
    "Objective": "mophpc.experiment",
    "Schedule": "mophpc.experiment",
    "Task": "mophpc.train.task",
    "load_model": "mophpc.saved",
    "load_run": "mophpc.saved",
    "run_experiment": "mophpc.run.start",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'mophpc' has no attribute '{name}'")
    return getattr(import_module(_ROOMS[name]), name)
