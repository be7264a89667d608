"""Reading run folders, whole ones and others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_up import Shape, add_search, edit_results, write_run

from mophpc.errors import PlanError, RunFolderError
from mophpc.report.run_data import read_run
from mophpc.report.run_plan import parse_tokens
from mophpc.report.timeline import make_timeline
from mophpc.schedule.plan import Visit


def test_a_whole_run(folder):
    run = read_run(folder)
    results = json.loads((folder / "results.json").read_text())
    assert run.problems == []
    assert run.ended
    assert (run.metric, run.maximise, run.best) == ("accuracy", True, results["best"])
    assert [row.best for row in run.rows] == [row["best"] for row in results["configs"]]
    assert [row.final for row in run.rows] == [row["final"] for row in results["configs"]]
    assert run.num_ranks == 3
    assert len(run.curves) == 6 * 3
    assert sorted(run.activity.spent) == [0, 1, 2]
    timeline = make_timeline(run)
    assert len(timeline) == 6 * 3 * 3
    assert timeline.made.all()
    hops = timeline.hop_source >= 0
    assert hops.sum() == 6 * (3 * 3 - 3)
    assert (timeline.hop_end_s[hops] <= timeline.start_s[hops] + 1e-9).all()
    assert (timeline.hop_sent_s[hops] <= timeline.hop_begun_s[hops] + 1e-9).all()


def test_all_times_are_on_rank_0s_clock(tmp_path):
    plain = make_timeline(read_run(write_run(tmp_path / "plain", Shape())))
    skewed = make_timeline(read_run(write_run(tmp_path / "skewed", Shape(skew_s=7.0))))
    for name in ("start_s", "end_s", "hop_sent_s", "hop_end_s", "planned_start_s"):
        np.testing.assert_allclose(getattr(skewed, name), getattr(plain, name), atol=1e-9)
    events = tmp_path / "skewed" / "events" / "rank-0002.jsonl"
    assert '"start":14.0,' in events.read_text()


def test_clocks_that_drift_are_read_in_proportion(folder):
    path = folder / "events" / "rank-0001.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "clock")
    first |= {"start": 0.0, "end": 0.0, "offset_s": 1.0}
    lines.append(first | {"start": 100.0, "end": 100.0, "offset_s": 3.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    np.testing.assert_allclose(
        run.activity.align(1, np.array([0.0, 50.0, 200.0])), [1.0, 52.0, 203.0]
    )
    assert run.activity.align(0, np.array([5.0]))[0] == 5.0


def test_a_run_that_did_not_end(folder):
    (folder / "results.json").unlink()
    plan = json.loads((folder / "plan.json").read_text())
    for name in ("real_start_s", "real_end_s"):
        plan[name] = [[None for _ in own] for own in plan[name]]
    (folder / "plan.json").write_text(json.dumps(plan))
    path = folder / "events" / "rank-0002.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: len(lines) // 2]) + "\n" + lines[-1][:20])
    run = read_run(folder)
    assert not run.ended
    assert run.problems == [
        "events/rank-0002.jsonl: 1 line could not be read.",
        "The run has not ended: there is no results.json.",
        "Hyperparameters are read off the configs' names.",
    ]
    assert run.rows[0].hyperparameters["arch"] == "mlp"
    assert isinstance(run.rows[0].hyperparameters["lr"], float)
    assert isinstance(run.rows[0].hyperparameters["batch_size"], int)
    assert {row.status for row in run.rows} == {"unfinished"}
    assert run.best == max(run.rows, key=lambda row: row.best).config_id
    timeline = make_timeline(run)
    assert 0 < timeline.made.sum() < len(timeline)


def test_why_a_run_failed(folder):
    (folder / "results.json").unlink()
    facts = {"place": "rank 1 of 3 on a\x1b[31m, config c001", "cause": "OSError: no space"}
    (folder / "failure-rank-0001.json").write_text(json.dumps(facts))
    (folder / "failure-rank-0002.json").write_text("[")
    problems = read_run(folder).problems
    assert problems[1:3] == [
        "It failed at rank 1 of 3 on a?[31m, config c001: OSError: no space",
        "failure-rank-0002.json is damaged.",
    ]


def test_a_search(folder):
    add_search(folder)
    run = read_run(folder)
    assert run.problems == []
    assert "stopped" in {row.status for row in run.rows}
    assert run.rows[4].lineage[0]["hyperparameters"] == {"lr": 0.02, "batch_size": 64}
    assert [d["kind"] for d in run.decisions] == ["start", "stop", "continue", "copy"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plan.json", "There is no schedule as planned: plan.json is missing."),
        ("metrics.jsonl", "There are no learning curves: metrics.jsonl is missing."),
        ("events", "There are no events: how the run went is not known."),
        ("events/rank-0001.jsonl", "Events of 1 of 3 ranks are missing."),
    ],
)
def test_what_is_missing_is_said(folder, name, said):
    path = folder / name
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
    run = read_run(folder)
    assert said in run.problems
    make_timeline(run)
    assert len(run.rows) == 6


def test_nothing_but_an_experiment(tmp_path):
    (tmp_path / "experiment.toml").write_text("")
    run = read_run(tmp_path)
    assert run.rows == []
    assert len(run.problems) == 5
    assert "experiment.toml is none of a run: field 'build' is missing." in run.problems
    assert make_timeline(run).window() == (0.0, 0.0)


def test_no_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no run: it has no experiment.toml; give the"):
        read_run(tmp_path)


DAMAGE = [
    "",
    "null",
    "[]",
    "{",
    '{"configs": 3}',
    '{"configs": [{}], "metric": 1}',
    '{"num_ranks": "x", "visits_by_rank": [["c0"]], "num_shards": 1, "num_epochs": 1}',
    '{"visits_by_rank": [[3]], "num_shards": 1, "num_epochs": 1}',
    '{"visits_by_rank": [["c0e0s0r0n0"]], "num_shards": null, "num_epochs": 1}',
    '{"visits_by_rank": [["c0e0s0r0n0"]], "num_shards": 1, "num_epochs": 1, "real_start_s": [[]]}',
    "[" * 100_000,
    "\x00\xff",
]


@pytest.mark.parametrize("text", DAMAGE)
@pytest.mark.parametrize(
    "name", ["results.json", "plan.json", "metrics.jsonl", "experiment.toml", "decisions.jsonl"]
)
def test_damage_is_a_sentence_and_no_traceback(folder, name, text):
    (folder / name).write_text(text)
    run = read_run(folder)
    make_timeline(run)
    if text and not (name == "experiment.toml" and text == "[]"):
        found = [p for p in run.problems if p.startswith(name)]
        harmless = name.endswith(".jsonl") and text.startswith("{") and text.endswith("}")
        assert found or harmless, run.problems
        assert all(len(problem) < 250 for problem in run.problems)


def test_events_that_make_no_sense(folder):
    path = folder / "events" / "rank-0000.jsonl"
    odd = [
        {"kind": "visit", "start": 1.0, "end": 0.5, "config": 0, "step": 0, "epoch": 0, "shard": 0},
        {"kind": "visit", "start": 1.0, "end": 2.0, "config": -1, "step": 0, "epoch": 0},
        {"kind": "visit", "start": "x", "end": None},
        {"kind": "hop", "direction": "receive", "start": 1, "end": 2, "config": 1e300},
        {"kind": ["visit"]},
        {"kind": "end", "spent": {"compute_s": "much"}},
        {"kind": "clock", "offset_s": "late"},
        {"kind": "visit", "start": 1e308, "end": 1e309},
    ]
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in odd)
        file.write("no json\n[1]\n")
    run = read_run(folder)
    assert "events/rank-0000.jsonl: 2 lines could not be read." in run.problems
    assert "events/rank-0000.jsonl: 6 events lack a time or an id that makes sense." in run.problems
    assert run.activity.spent[0]["compute_s"] == 0.0
    assert len(make_timeline(run)) == 6 * 3 * 3


def test_odd_results(folder):
    def change(record):
        row = record["configs"][0]
        row |= {"best": None, "final": {"accuracy": "high"}, "lineage": [3, {"epoch": 1}]}
        row["hyperparameters"] = {"layers": [1, 2], "on": True, "none": None}
        record["best"] = 99

    edit_results(folder, change)
    run = read_run(folder)
    assert run.problems == []
    assert run.best is None
    assert run.rows[0].final == {"accuracy": None}
    assert run.rows[0].lineage == []
    assert run.rows[0].hyperparameters == {"layers": "[1, 2]", "on": True, "none": None}


def test_tokens_are_read_as_visits():
    tokens = ["c0e0s0r0n0", "c12e345s6r7n89"]
    found = parse_tokens(tokens).T.tolist()
    visits = [Visit.parse(token) for token in tokens]
    assert found == [[v.config_id, v.epoch, v.shard, v.rank, v.step] for v in visits]
    for bad in ("c1e2s3r4", "", "c-1e0s0r0n0", "1 2 3 4 5", 7, "c9999999999e0s0r0n0"):
        with pytest.raises(PlanError):
            parse_tokens(["c0e0s0r0n0", bad])


def test_the_timeline_of_a_plan_that_events_contradict(folder):
    path = folder / "events" / "rank-0000.jsonl"
    lines = path.read_text().splitlines()
    moved = [line for line in lines if '"visit"' in line][-1]
    path.write_text("\n".join(line for line in lines if line != moved) + "\n")
    other = Path(folder / "events" / "rank-0001.jsonl")
    with other.open("a") as file:
        file.write(moved.replace('"rank":0', '"rank":1') + "\n")
    timeline = make_timeline(read_run(folder))
    assert len(timeline) == 6 * 3 * 3
    assert (timeline.rank != timeline.planned_rank).sum() == 1
