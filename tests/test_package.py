"""The package as it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import mophpc

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "zarr", "mpi4py", "pydantic", "numpy", "scipy", "rich", "typer"}


def loaded(code: str) -> set[str]:
    """Return the heavy libraries that a fresh Python has loaded after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import mophpc", set()),
        ("import mophpc.cli", {"typer", "rich"}),
        ("import mophpc; mophpc.Experiment", {"pydantic"}),
        ("import mophpc.schedule, mophpc.search", {"numpy", "pydantic"}),
        ("import mophpc.preview", {"numpy", "pydantic", "zarr", "torch"}),
        ("import mophpc; mophpc.run_experiment", HEAVY - {"mpi4py", "scipy", "typer"}),
        ("from mophpc.hop import collectives, local, parcel, records", {"numpy"}),
        ("import mophpc.data", {"numpy", "zarr"}),
    ],
)
def test_no_more_is_loaded_than_is_used(code, allowed):
    found = loaded(code)
    assert found - allowed - _brought_along(allowed) == set()


def _brought_along(allowed: set[str]) -> set[str]:
    """What zarr and torch import by themselves."""
    return {"numpy", "pydantic", "rich", "typer"} if allowed & {"zarr", "torch"} else set()


def run_nothing(first: str) -> int:
    """Return how many objects the collector leaves alone after a command that ends at once."""
    words = ["run", "no.toml", "--out", "none", "--transport", "local"]
    script = f"{first}import gc\nfrom mophpc import cli\ntry:\n    cli.main({words})\n"
    script += "except SystemExit:\n    print(gc.get_freeze_count())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    return int(done.stdout.splitlines()[-1])


def test_a_run_leaves_what_it_has_loaded_to_no_collector():
    assert run_nothing("") > 100_000
    assert run_nothing("import torch\n") == 0  # somebody else's process, and objects


def test_public_names_are_what_they_say():
    for name in mophpc.__all__:
        assert getattr(mophpc, name) is not None
    with pytest.raises(AttributeError, match="module 'mophpc' has no attribute 'Worker'"):
        mophpc.Worker  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert version("mophpc") == mophpc.__version__
