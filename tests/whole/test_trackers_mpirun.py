"""Trackers under mpirun: good ones, and ones that fail or hang."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mpi_launch import mpirun

sys.path.insert(0, str(Path(__file__).parents[1] / "run"))
from tracked import check_mlflow, check_tensorboard, check_wandb, need

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]


def test_all_have_what_the_journal_has(write_experiment: Callable[..., Path], tmp_path: Path):
    need("tensorboard", "mlflow", "wandb")
    toml = write_experiment()
    with toml.open("a") as file:
        file.write("[track]\ntensorboard = true\nmlflow = true\nwandb = true\nwait_s = 60.0\n")
    run = tmp_path / "run"
    done = mpirun(2, "mophpc", "run", toml, "--out", run)
    assert done.returncode == 0, done.stderr
    assert "note: " not in done.stderr
    check_tensorboard(run, run / "tensorboard")
    check_mlflow(run, f"sqlite:///{run / 'mlflow.db'}")
    check_wandb(run, "mophpc")


def test_a_folder_that_cannot_be_made_and_a_server_that_is_not_there_end_nothing(
    write_experiment: Callable[..., Path], tmp_path: Path
):
    need("tensorboard", "mlflow", "wandb")
    toml = write_experiment()
    with toml.open("a") as file:
        file.write('[track]\ntensorboard = "/dev/null/boards"\nmlflow = "http://127.0.0.1:9"\n')
    done = mpirun(2, "mophpc", "run", toml, "--out", tmp_path / "run")
    ended_s = (tmp_path / "run/results.json").stat().st_mtime
    assert done.returncode == 0, done.stderr
    assert time.time() - ended_s < 20
    said = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert len(said) == 2
    assert any("tensorboard has failed and is told nothing more: NotADirectory" in s for s in said)
    assert any("mlflow was slower than the run" in s or "mlflow has failed" in s for s in said)
    assert (tmp_path / "run/results.json").exists()
