"""Commands as a user starts them, in this process."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from user_code import build
from whole_testing import command, complaint, journal_is_whole, local_run

from mophpc.files import read_lines

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]

EQUAL_COSTS = {"mode": 'mode = "max"\n[schedule]\ncosts = "equal"'}
"""Changes to an experiment: its schedule, and so its routes, depend on no measured times."""


@pytest.mark.parametrize("name", ["prepare", "inspect", "plan", "simulate", "run", "verify"])
def test_help_shows_an_example(capsys: Capture, name: str) -> None:
    status, out, _ = command(capsys, name, "--help")
    assert status == 0
    assert "Example:" in out


def test_help_says_where_methods_are_described(capsys: Capture) -> None:
    _, out, _ = command(capsys, "run", "--help")
    assert "see Methods in README.md, and launch/experiments" in " ".join(out.split())


def test_inspect(capsys: Capture, store: Path) -> None:
    status, out, _ = command(capsys, "inspect", store, "--check")
    assert status == 0
    assert "all checksums are right" in out
    status, out, _ = command(capsys, "inspect", store, "--json", "--check")
    record = json.loads(out)
    assert record["rows"] == 144
    assert record["shards"] == 4
    assert record["damage"] == []


def test_run_folder(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    status, out, err = local_run(capsys, write_experiment(**EQUAL_COSTS), tmp_path / "run")
    assert status == 0
    assert f"run folder: {tmp_path / 'run'}" in out
    assert "4 configs, 4 shards, 2 ranks, 2 epochs: 32 visits, 0% idle by plan" in err
    run = tmp_path / "run"
    rows = json.loads((run / "results.json").read_text())
    assert [row["status"] for row in rows["configs"]] == ["done"] * 4
    assert rows["metric"] == "accuracy"
    table = list(csv.DictReader((run / "results.csv").read_text().splitlines()))
    assert [row["state_sha256"] for row in table] == [r["state_sha256"] for r in rows["configs"]]
    assert table[0]["route"] == "0,1,2,3|3,2,1,0"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8
    assert journal_is_whole(run)
    plan = json.loads((run / "plan.json").read_text())
    assert all(end is not None for own in plan["real_end_s"] for end in own)


def test_values_are_not_markup(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    toml = write_experiment("noted")
    text = toml.read_text().partition("[space]")[0]
    notes = ["x[/red]y", "new [red]x[/red]", "a\\u001b[31mb", "long" * 20]
    text += "".join(f'[[configs]]\nnote = "{note}"\n' for note in notes)
    toml.write_text("\ufeff" + text)  # and a byte order mark, as some editors write
    status, out, err = local_run(capsys, toml, tmp_path / "run")
    assert status == 0, err
    assert "x[/red]y" in out
    assert "new [red]x[/red]" in out
    assert "\x1b" not in out


def test_weights_load(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    assert local_run(capsys, write_experiment(), tmp_path / "run")[0] == 0
    folder = tmp_path / "run/checkpoints/c001-width=4,lr=0.05"
    manifest = json.loads((folder / "manifest.json").read_text())
    model = build(manifest["hyperparameters"]).model
    model.load_state_dict(load_file(folder / "model.safetensors"))
    model.eval()
    assert torch.isfinite(model(torch.zeros(2, 6))).all()


def test_verify(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    assert local_run(capsys, write_experiment(), tmp_path / "run")[0] == 0
    status, out, _ = command(capsys, "verify", tmp_path / "run")
    assert status == 0
    assert "4 of 4 configs are equal" in out
    status, out, _ = command(capsys, "verify", tmp_path / "run", "-c", "2", "--json")
    assert [verdict["equal"] for verdict in json.loads(out)] == [True]


def test_verify_notices_a_wrong_byte(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    assert local_run(capsys, write_experiment(), tmp_path / "run")[0] == 0
    path = tmp_path / "run/results.json"
    record = json.loads(path.read_text())
    record["configs"][1]["state_sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    status, out, _ = command(capsys, "verify", tmp_path / "run")
    assert status == 1
    assert "NOT EQUAL" in out
    assert "3 of 4 configs" in out


@pytest.mark.parametrize(
    "text", ["{", "", "[]", '{"configs": 3}', '{"configs": [{}]}', '{"configs": [1]}']
)
def test_verify_names_damaged_results(
    capsys: Capture, write_experiment: Write, tmp_path: Path, text: str
) -> None:
    assert local_run(capsys, write_experiment(), tmp_path / "run")[0] == 0
    (tmp_path / "run/results.json").write_text(text)
    status, _, err = command(capsys, "verify", tmp_path / "run")
    assert status == 2
    assert "results.json' is damaged" in complaint(err)


def test_verify_does_not_call_equal_what_it_has_not_compared(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    assert local_run(capsys, write_experiment(), tmp_path / "run")[0] == 0
    path = tmp_path / "run/results.json"
    record = json.loads(path.read_text())
    record["configs"][1] |= {"status": "failed", "state_sha256": ""}
    record["configs"][2] |= {"status": "stopped", "state_sha256": "", "route": []}
    path.write_text(json.dumps(record))
    status, out, _ = command(capsys, "verify", tmp_path / "run")
    assert status == 0
    assert "c001-width=4,lr=0.05: not verified: failed\n" in out
    assert "c002-width=8,lr=0.01: not verified: stopped before its first visit\n" in out
    assert "2 of 2 configs are equal to sequential training; 2 could not be compared" in out
    status, out, _ = command(capsys, "verify", tmp_path / "run", "-c", "1", "--json")
    assert status == 1  # nothing was compared
    (verdict,) = json.loads(out)
    assert verdict["equal"] is None
    assert verdict["not_verified"] == "failed"


def test_equal_experiments_give_equal_files(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    toml = write_experiment(**EQUAL_COSTS)
    for name in ("a", "b"):
        assert local_run(capsys, toml, tmp_path / name, ranks=4)[0] == 0
    for name in ("results.csv", "results.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_resolved_experiment_runs_again(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    assert local_run(capsys, write_experiment(**EQUAL_COSTS), tmp_path / "a")[0] == 0
    assert local_run(capsys, tmp_path / "a/experiment.toml", tmp_path / "b")[0] == 0
    assert (tmp_path / "a/results.csv").read_bytes() == (tmp_path / "b/results.csv").read_bytes()


def test_a_diverged_config_leaves_and_the_others_go_on(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    status, _, err = local_run(capsys, write_experiment("diverges"), tmp_path / "run")
    assert status == 0
    assert "c001-width=4,lr=0.05 diverged (loss not finite) in epoch 0, shard" in err
    rows = json.loads((tmp_path / "run/results.json").read_text())["configs"]
    assert [row["status"] for row in rows] == ["done", "diverged", "done", "diverged"]
    assert [len(row["route"]) for row in rows] == [8, 3, 8, 3]
    assert command(capsys, "verify", tmp_path / "run")[0] == 0


def test_the_report_of_a_run(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    run = tmp_path / "run"
    local_run(capsys, write_experiment(), run)
    status, out, _ = command(capsys, "report", run, "--json")
    assert status == 0
    assert json.loads(out)["problems"] == []
    trace = json.loads((run / "trace.json").read_text())["traceEvents"]
    arrows = [event["ph"] for event in trace if event["ph"] in "sf"]
    events = read_lines(run / "events/rank-0001.jsonl")
    received = sum(e["kind"] == "hop" and e["direction"] == "receive" for e in events)
    assert arrows.count("s") == arrows.count("f") >= 2 * received > 0
    clocks = [event for event in events if event["kind"] == "clock"]
    assert len(clocks) == 2  # at the start and at the end
    for clock in clocks:  # threads of one process have one clock
        assert abs(clock["offset_s"]) <= clock["error_s"] + 1e-6
