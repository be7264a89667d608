"""Who may import whom: downward only, one heavy library per room."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mophpc"

BASE = {
    "_version",
    "settings",
    "dimensions",
    "errors",
    "files",
    "events",
    "loading",
    "launcher",
    "experiment",
    "outputs",
    "fault_settings",
    "search_settings",
    "costs_file",
    "requests",
    "overrides",
    "state_folder",
    "weights_file",
    "status_file",
    "recorded",
}
ROOMS = {"search", "schedule", "data", "train", "hop"}
FACE = {
    "",
    "cli",
    "__main__",
    "case",
    "forecast",
    "people",
    "doctor",
    "preview",
    "saved",
    "simulation",
    "submit",
    "verify",
}
FLOORS = [BASE, ROOMS, {"report"}, {"run"}, FACE]
"""From the ground up; `` is the package itself. A module imports from its own room and below, and
the rooms of one floor do not know each other; those of the base are one room."""

THIRD_PARTY = {
    "settings": {"pydantic"},
    "experiment": {"pydantic", "pydantic_core"},
    "dimensions": {"pydantic"},
    "outputs": {"pydantic", "pydantic_core"},
    "fault_settings": {"pydantic", "pydantic_core"},
    "search_settings": {"pydantic", "pydantic_core"},
    "costs_file": {"pydantic"},
    "requests": {"pydantic"},
    "state_folder": {"xxhash"},
    "status_file": {"pydantic"},
    "search": {"numpy"},
    "schedule": {"numpy", "scipy"},
    "hop": {"numpy", "xxhash"},
    "data": {"numpy", "zarr", "PIL", "sklearn"},
    "train": {"numpy", "torch", "safetensors"},
    "report": {"numpy", "scipy", "rich", "altair", "vl_convert"},
    "run": {"numpy", "tomli_w"},
    "verify": {"numpy", "torch", "zarr"},  # plain torch and zarr are its purpose
    "people": {"pydantic", "rich"},
    "saved": {"pandas", "safetensors", "torch"},
    "cli": {"typer"},
    "submit": {"yaml"},
    "doctor": {"numpy", "torch", "rich"},
}
ALSO = {
    "report.lines": {"pydantic_core"},  # parses a hundred thousand events
    "report.trackers.tensorboard": {"tensorboard"},
    "report.trackers.mlflow": {"mlflow"},
    "report.trackers.wandb": {"wandb"},
    "hop.mpi": {"mpi4py"},  # the one file that speaks MPI
    "search.samplers": {"optuna"},  # the one file that knows Optuna
}

WIRING = {
    "run.start",  # chooses the transport and the view
    "run.conduct",  # collectives and records around the visits, results after them
    "run.setup",  # plugs store and trainer into the ports
    "run.rooms",  # the group of ranks
    "run.faults.watch",  # tells the ranks each other's processes
    "run.devices",  # chooses the trainer's device, and tries whether MPI sends from it
    "run.walking",  # records between the visits
    "run.outcome",  # writes the results
    "run.survive",  # returns them, and chooses the transport anew
    "run.faults.halt",  # messages between ranks that stop
    "run.faults.heartbeat",  # messages between hosts
    "run.costing",  # times batches of the trainer, and hops
    "run.planning",  # looks at the store's shards and the trainer's states
    "run.local",  # the in-process transport's world
    "run.rank0.claim",  # looks at the store before anything is made
}
"""Modules of run/ that know more than protocols."""
PROTOCOLS = {"hop.transport", "hop.parcel"}

VERIFY_USES = {
    "data.store",  # where the store's record says which rows a shard has
    "data.shard",  # checksums, since zarr reads a missing object as zeros
    "errors",
    "experiment",
    "loading",
    "recorded",
    "train.device",  # how often losses are looked at on a GPU
    "train.compiling",  # compiled code rounds in its own way
    "train.task",  # what the user's build returns
    "train.batches",  # both since an evaluation may change a state,
    "train.evaluation",  # and a scheduler may ask for a metric
}

IMPURE = {"os", "time", "datetime", "random", "socket", "threading", "subprocess", "pathlib"}


@dataclass(frozen=True)
class Import:
    source: str
    target: str
    line: int
    at_top: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(name: str) -> list[Import]:
    """Return all imports, those inside functions and for type checkers too."""
    tree = ast.parse(MODULES[name].read_text())
    inside = {
        node
        for top in ast.walk(tree)
        if isinstance(top, ast.FunctionDef)
        for node in ast.walk(top)
        if node is not top
    }
    typing = {
        node
        for top in ast.walk(tree)
        if isinstance(top, ast.If) and ast.unparse(top.test) == "TYPE_CHECKING"
        for node in ast.walk(top)
    }
    found = []
    for node in ast.walk(tree):
        at_top = node not in inside and node not in typing
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: write imports in full"
            assert node.module
            targets = [_deepest(node.module, alias.name) for alias in node.names]
        else:
            continue
        found += [Import(name, target, node.lineno, at_top) for target in targets]
    return found


def _deepest(module: str, name: str) -> str:
    inner = f"{module}.{name}".removeprefix("mophpc").removeprefix(".")
    return f"{module}.{name}" if module.startswith("mophpc") and inner in MODULES else module


ALL = [found for name in MODULES for found in imports_of(name)]
OWN = [
    Import(i.source, i.target.removeprefix("mophpc").removeprefix("."), i.line, i.at_top)
    for i in ALL
    if i.target.partition(".")[0] == "mophpc"
]
FOREIGN = [
    i
    for i in ALL
    if (top := i.target.partition(".")[0]) != "mophpc" and top not in sys.stdlib_module_names
]


def room_of(name: str) -> str:
    return name.partition(".")[0]


def floor_of(name: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room_of(name) in floor)


def test_every_module_has_its_floor():
    assert {room_of(name) for name in MODULES} <= set().union(*FLOORS)
    assert len(MODULES) > 40
    assert len(OWN) > 150


def test_imports_go_downward_only():
    wrong = [
        str(i)
        for i in OWN
        if room_of(i.source) != room_of(i.target)
        and not (floor_of(i.source) == floor_of(i.target) and room_of(i.source) in BASE | FACE)
        and floor_of(i.target) >= floor_of(i.source)
    ]
    assert wrong == []


def test_the_package_itself_imports_its_version_and_no_more_when_it_is_imported():
    assert [i.target for i in OWN + FOREIGN if i.source == "" and i.at_top] == ["_version"]


def test_each_room_has_its_libraries_and_no_other():
    wrong = []
    for found in FOREIGN:
        allowed = THIRD_PARTY.get(room_of(found.source), set()) | ALSO.get(found.source, set())
        if found.target.partition(".")[0] not in allowed:
            wrong.append(str(found))
    assert wrong == []


def test_planning_asks_neither_clock_nor_system():
    pure = [i for i in ALL if room_of(i.source) in ("schedule", "search")]
    assert [str(i) for i in pure if i.target.partition(".")[0] in IMPURE] == []


def test_in_run_only_the_wiring_knows_more_than_protocols():
    wrong = [
        str(i)
        for i in OWN
        if room_of(i.source) == "run"
        and i.source not in WIRING
        and (room_of(i.target) in ("data", "train", "report") or room_of(i.target) == "hop")
        and i.target not in PROTOCOLS
    ]
    assert wrong == []


def test_verify_uses_nothing_of_the_running_layer():
    used = {i.target for i in OWN if i.source == "verify"}
    assert used <= VERIFY_USES


def test_the_command_line_imports_what_is_heavy_inside_its_commands():
    own = [i for i in OWN + FOREIGN if room_of(i.source) == "cli" and i.at_top]
    outside = {i.target for i in own if room_of(i.target) != "cli"}
    assert outside == {"errors", "launcher", "typer"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_stay_small(module):
    assert len(MODULES[module].read_text().splitlines()) < 500
