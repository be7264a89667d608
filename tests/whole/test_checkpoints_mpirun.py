"""Weights kept by ranks that are processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mpi_launch import mpirun
from whole_testing import command

import mophpc
from mophpc.files import read_lines

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]


def test_the_best_epochs_are_kept_whichever_rank_they_end_on(
    capsys: pytest.CaptureFixture[str], write_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    toml = write_experiment(epochs="epochs = 6")
    with toml.open("a") as file:
        file.write('[checkpoints]\nkeep = 2\nlast = "epoch"\n')
    run = tmp_path / "run"
    done = mpirun(2, "mophpc", "run", toml, "--out", run)
    assert done.returncode == 0, done.stderr
    lines = read_lines(run / "metrics.jsonl")
    assert len({line["rank"] for line in lines}) == 2
    for row in mophpc.load_run(run).results.configs:
        own = [(-x["accuracy"], x["epoch"]) for x in lines if x["config_id"] == row.config_id]
        best = [f"epoch-{epoch:04d}.safetensors" for _, epoch in sorted(own)[:2]]
        found = {path.name for path in (run / "checkpoints" / row.config).iterdir()}
        assert found == {*best, "model.safetensors", "manifest.json"}
    assert command(capsys, "verify", run)[0] == 0
    for option, best in (("--last", False), ("--best", True)):
        out = tmp_path / f"out{option}"
        assert command(capsys, "export", run, out, option)[0] == 0
        saved = mophpc.load_run(run)
        epochs = saved.best.best_epoch + 1 if best else 6
        assert f'"epochs": {epochs}' in (out / "config.json").read_text()
