"""The command that looks around: doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mophpc.cli.common import AsJson, end_others


def doctor(
    store: Annotated[
        Path | None, typer.Argument(help="Store whose reading is timed; none by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run will meet here, and what to do about it; start it as a run is started.

    Example: mpirun -n 4 mophpc doctor digits.zarr
    """
    from mophpc.data import open_store
    from mophpc.doctor.examine import examine

    report = examine(None if store is None else open_store(store))
    if report is None:
        return
    print(json.dumps(report.record(), indent=1) if as_json else report.text())
    if report.is_broken:
        end_others(1)
    if report.has_problem:
        raise typer.Exit(1)
