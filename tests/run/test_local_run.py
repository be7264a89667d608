"""Whole runs whose ranks are threads, over a small store."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

import mophpc
from mophpc import verify
from mophpc.data import open_store, prepare
from mophpc.data.shard import StreamedShard
from mophpc.errors import LaunchError, RunError, RunFolderError, StoreError
from mophpc.experiment import load_experiment
from mophpc.files import read_lines
from mophpc.report.results import Results
from mophpc.run import conduct

SPACE = {"lr": [0.01, 0.03], "width": [4, 6]}


def make_store(folder: Path, shards: int, rows: int = 65, **settings) -> Path:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 4)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=(x[:, 0] > 0) + (x[:, 1] > 0).astype(np.int64))
    prepare(str(folder / "rows.npz"), folder / "rows.zarr", num_shards=shards, **settings)
    return folder / "rows.zarr"


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


def run(out: Path, store: Path, ranks: int, build=tiny.build, **settings) -> Results:
    data = mophpc.Data(store=str(store), **settings.pop("data", {}))
    given = {"epochs": 2, "seed": 5, "space": SPACE} | settings
    if build in (tiny.refuses_later, tiny.loses_its_folder):
        given["space"] = SPACE | {"run": [str(out)]}
    experiment = mophpc.Experiment(build=build, data=data, **given)
    return mophpc.run_experiment(experiment, out, transport="local", ranks=ranks, progress="off")


EQUAL = {"schedule": mophpc.Schedule(costs="equal")}
"""Routes that do not depend on what was measured."""


def by_route(results: Results) -> dict[tuple[int, str], str]:
    """Return the state's digest by config and route, without the ranks."""
    return {
        (row.config_id, str([(v["epoch"], v["shard"]) for v in row.route])): row.state_sha256
        for row in results.configs
    }


def test_equal_routes_give_equal_states_on_any_number_of_ranks(tmp_path, store):
    found = {n: by_route(run(tmp_path / f"run{n}", store, n, **EQUAL)) for n in (1, 2, 4)}
    in_all = set(found[1]) & set(found[2]) & set(found[4])
    assert in_all
    seen: dict[tuple[int, str], str] = {}
    for own in found.values():
        for key, digest in own.items():
            assert seen.setdefault(key, digest) == digest
    assert len(set(seen.values())) == len(seen) > 4
    for n in found:
        verdicts = list(verify.verify(tmp_path / f"run{n}"))
        assert [v.equal for v in verdicts] == [True] * 4


def test_more_shards_than_ranks_that_do_not_divide_evenly(tmp_path):
    store = make_store(tmp_path, 7, rows=93)
    results = run(tmp_path / "run", store, 3, **EQUAL)
    for row in results.configs:
        assert row.status == "done"
        for epoch in range(2):
            shards = [v["shard"] for v in row.route if v["epoch"] == epoch]
            assert sorted(shards) == list(range(7))
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert sorted(plan["owners"].count(rank) for rank in range(3)) == [2, 2, 3]
    assert all(v.equal for v in verify.verify(tmp_path / "run"))


def test_the_run_folder_holds_what_the_readme_says(tmp_path, store):
    objective = mophpc.Objective(metric="accuracy", mode="max")
    results = run(tmp_path / "run", store, 2, objective=objective)
    folder = tmp_path / "run"
    lines = read_lines(folder / "metrics.jsonl")
    assert len(lines) == 4 * 2
    assert {"config_id", "config", "epoch", "rank", "train_loss", "valid_loss", "accuracy"} <= set(
        lines[0]
    )
    assert results.best == max(
        range(4), key=lambda c: (max(r["accuracy"] for r in lines if r["config_id"] == c), -c)
    )
    recorded = json.loads((folder / "results.json").read_text())
    assert recorded == results.record()
    table = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["state_sha256"] for row in table] == [r.state_sha256 for r in results.configs]
    plan = json.loads((folder / "plan.json").read_text())
    starts = [t for own in plan["real_start_s"] for t in own]
    ends = [t for own in plan["real_end_s"] for t in own]
    assert all(0 < a < b for a, b in zip(starts, ends, strict=True))
    for rank in range(2):
        events = read_lines(folder / "events" / f"rank-{rank:04d}.jsonl")
        kinds = [event["kind"] for event in events]
        assert kinds.count("load") == plan["owners"].count(rank)
        assert kinds.count("probe") == 2
        assert kinds.count("visit") == 4 * 2 * plan["owners"].count(rank)
        assert kinds[0] == "clock"
        assert kinds[-2:] == ["end", "clock"]
        assert all(event["rank"] == rank for event in events)
        assert (folder / "logs" / f"rank-{rank:04d}.log").read_text()
    moved = sum(e["nbytes"] for e in _events(folder) if e.get("direction") == "send")
    manifest = json.loads(
        (folder / "checkpoints" / results.configs[0].config / "manifest.json").read_text()
    )
    assert manifest["state_sha256"] == results.configs[0].state_sha256
    assert moved > 0
    assert load_experiment(folder / "experiment.toml").objective == objective


def _events(folder: Path) -> list[dict]:
    return [e for path in (folder / "events").iterdir() for e in read_lines(path)]


def test_two_runs_give_the_same_bytes(tmp_path, store):
    for name in ("a", "b"):
        run(tmp_path / name, store, 3, **EQUAL)
    for file in ("results.json", "results.csv", "experiment.toml"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_streamed_and_staged_rows_give_the_same_states(tmp_path, store):
    in_memory = run(tmp_path / "a", store, 2, **EQUAL)
    data = {"memory_bytes": 1, "stage": str(tmp_path / "stage")}
    streamed = run(tmp_path / "b", store, 2, data=data, **EQUAL)
    assert by_route(streamed) == by_route(in_memory)
    assert list((tmp_path / "stage").rglob("*"))


def test_a_config_that_diverges_late_is_not_the_best(tmp_path, store):
    results = run(tmp_path / "run", store, 2, build=tiny.diverges_late)
    status = [row.status for row in results.configs]
    assert status == ["done", "done", "diverged", "diverged"]
    assert max(row.best for row in results.configs[2:]) < 1e-6 < results.configs[results.best].best
    assert results.best in (0, 1)
    assert results.ranked[0].config_id == results.best
    assert results.configs[2].epochs == 1
    assert all(v.equal for v in verify.verify(tmp_path / "run"))


def test_a_shard_that_is_damaged_before_a_visit_names_the_place(tmp_path, monkeypatch):
    store = make_store(tmp_path, 4, rows=4000)
    info = open_store(store)
    assert info.num_shards == 4
    victim = store / "train" / "x" / "c" / "1" / "0"
    blocks = StreamedShard.blocks

    def spoiled(reader, *arguments):
        if reader._part._start == info.train.layout.bounds(1)[0]:
            raw = bytearray(victim.read_bytes())
            raw[len(raw) // 2] ^= 1
            victim.write_bytes(bytes(raw))
        return blocks(reader, *arguments)

    monkeypatch.setattr(StreamedShard, "blocks", spoiled)
    with pytest.raises(RunError) as caught:
        run(tmp_path / "run", store, 2, data={"memory_bytes": 1}, **EQUAL)
    said = str(caught.value)
    assert "rank 0 of 2 on " in said
    assert "shard 1: StoreError: " in said
    assert "train/x" in said


@pytest.mark.parametrize("data", [{}, {"memory_bytes": 1}])
def test_a_damaged_shard_is_a_user_s_error_at_the_start(tmp_path, store, data):
    victim = next(p for p in (store / "train" / "x").rglob("*") if p.name == "0" and p.is_file())
    raw = victim.read_bytes()
    victim.write_bytes(raw[:9] + bytes([raw[9] ^ 1]) + raw[10:])
    with pytest.raises(StoreError):
        run(tmp_path / "run", store, 2, data=data)


def test_a_store_that_another_takes_the_place_of_ends_the_run(tmp_path, store, monkeypatch):
    claim = conduct.claim

    def changing(*arguments):
        begun = claim(*arguments)
        shutil.rmtree(store)
        make_store(tmp_path, 4, seed=9)
        return begun

    monkeypatch.setattr(conduct, "claim", changing)
    with pytest.raises(StoreError, match="has changed while the run began"):
        run(tmp_path / "run", store, 2)


def test_a_build_that_fails_in_a_visit_names_the_place(tmp_path, store):
    with pytest.raises(RunError, match=r"rank \d of 2 on .*, config c0.*, epoch 0, shard \d: Exp"):
        run(tmp_path / "run", store, 2, build=tiny.refuses_later)
    failure = next((tmp_path / "run").glob("failure-rank-*.json"))
    assert "KeyError" in json.loads(failure.read_text())["cause"]
    log = (tmp_path / "run" / "logs" / f"{failure.stem.removeprefix('failure-')}.log").read_text()
    assert "Traceback" in log
    assert "tiny.py" in log


def test_the_first_cause_is_told_even_where_nothing_can_be_written(tmp_path, store):
    with pytest.raises(RunError, match="ValueError: the disk is gone"):
        run(tmp_path / "run", store, 2, build=tiny.loses_its_folder)


def test_a_second_run_into_the_folder_is_refused_and_nothing_is_lost(tmp_path, store):
    run(tmp_path / "run", store, 1)
    before = (tmp_path / "run" / "results.json").read_bytes()
    with pytest.raises(RunFolderError, match="already holds a run"):
        run(tmp_path / "run", store, 2)
    assert (tmp_path / "run" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport": "local", "ranks": 5}, "5 ranks but the store has 4 shards"),
        ({"transport": "local", "ranks": 0}, "ranks is 0; allowed: 1 or more"),
        ({"transport": "tcp"}, "transport is 'tcp'; allowed: mpi, local"),
    ],
)
def test_a_launch_that_does_not_fit_is_refused(tmp_path, store, settings, message):
    experiment = mophpc.Experiment(build=tiny.build, data=store, epochs=1, space=SPACE)
    with pytest.raises(LaunchError, match=message):
        mophpc.run_experiment(experiment, tmp_path / "run", progress="off", **settings)


def test_a_relative_store_is_found_again_by_verify(tmp_path, store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("run"), Path("rows.zarr"), 1, epochs=1)
    monkeypatch.chdir("/")
    assert all(v.equal for v in verify.verify(tmp_path / "run"))
