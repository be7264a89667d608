"""What the tests of whole runs share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from mophpc.cli import main

TOML = """
build = "{file}:{build}"
epochs = 2
seed = 3
[data]
store = "{store}"
[objective]
metric = "accuracy"
mode = "max"
[space]
width = [4, 8]
lr = [0.01, 0.05]
"""


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process; return exit status, standard output and error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def complaint(err: str) -> str:
    """Return the one sentence that a user's mistake must give, and check that it is alone."""
    assert "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("mophpc: ")]
    assert len(said) == 1, err
    return said[0].removeprefix("mophpc: ")


def local_run(
    capsys: pytest.CaptureFixture[str], toml: Path, out: Path, ranks: int = 2
) -> tuple[int, str, str]:
    """Run an experiment on ranks that are threads."""
    options = ["--transport", "local", "--ranks", ranks, "--progress", "lines"]
    return command(capsys, "run", toml, "--out", out, *options)


def journal_is_whole(run: Path) -> bool:
    """Whether every line of the journal and of the events is a whole record."""
    files = [run / "metrics.jsonl", *sorted((run / "events").glob("*.jsonl"))]
    lines = [line for file in files for line in file.read_text().splitlines(keepends=True)]
    return all(re.fullmatch(r"\{.*\}\n", line) for line in lines)


def rank_process(pids: Sequence[int], rank: int, *, beside: bool = False) -> psutil.Process | None:
    """Return an Open MPI rank's process, once it is there, with another one beside it if wanted.

    Args:
        pids: where to look.
        rank: as it was launched.
        beside: whether what looks after its start has to be there, too.
    """
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.environ().get("OMPI_COMM_WORLD_RANK") == str(rank):
                words = [word for child in process.children() for word in child.cmdline()]
                return process if not beside or "mophpc.run.faults.startup" in words else None
    return None
