"""What a run moved and cost, against the formulas."""

from __future__ import annotations

import json

import pytest
from made_up import Shape, write_run

from mophpc.report.expense import Prices, Workload, expense, longest_first, traffic, ways
from mophpc.report.run_data import read_run

GB, TB = 1e9, 1e12


def table_of_the_errata(**changes):
    """20 epochs of 20 configs of 1 GB on 10 ranks over 1 TB; 100,000 batches an epoch."""
    given = {
        "ranks": 10,
        "epochs": [20] * 20,
        "state_bytes": [GB] * 20,
        "weight_bytes": [GB] * 20,
        "busy_s": [10.0] * 20,
        "data_bytes": TB,
        "rows": 1e6,
        "batch_sizes": [10] * 20,
        "bandwidth": GB,
        "latency_s": 0.0,
        "setup_s": 0.0,
        "makespan_s": 20.0,
    }
    return {way.name: way for way in ways(Workload(**(given | changes)), None)}


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [
        ("MOP", 3.6 * TB),
        ("MOP through shared storage", 8 * TB),
        ("task parallel, data copied", 10 * TB),
        ("task parallel, data read from afar", 400 * TB),
        ("model averaging", 8 * TB),
        ("parameter server", 80_000 * TB),
        ("data parallel, ring all-reduce", 72_000 * TB),
    ],
)
def test_bytes_are_those_of_the_papers_table(name, nbytes):
    # Where the paper neglects m S beside the larger term, so does the tolerance.
    found = table_of_the_errata()[name]
    assert found.bytes_moved == pytest.approx(nbytes, rel=0.003)


def test_rank_seconds_of_the_other_ways():
    found = table_of_the_errata()
    assert found["MOP, this run"].rank_s == 200.0
    assert found["task parallel, data copied"].rank_s == 200.0
    assert found["task parallel, data copied"].storage_bytes == 10 * TB
    reduced = found["data parallel, ring all-reduce"].rank_s
    # 20 x 20 epochs of 10,000 steps, each 2 x 9 pieces of 0.1 GB at 1 GB/s, on 10 ranks
    assert reduced == pytest.approx(20 * 10.0 + 10 * 400 * 10_000 * 18 * 0.1)


def test_without_a_batch_size_steps_are_not_counted():
    found = table_of_the_errata(batch_sizes=[None] * 20)
    assert "parameter server" not in found
    assert "data parallel, ring all-reduce" not in found


def test_longest_first():
    assert longest_first([3.0, 3.0, 2.0, 2.0, 2.0], 2) == 7.0
    assert longest_first([5.0], 4) == 5.0
    assert longest_first([], 4) == 0.0


def test_measured_bytes_are_those_of_the_formula(folder):
    run = read_run(folder)
    moved = traffic(run)
    sizes = [4000 + 8 * c for c in range(6)]
    assert moved["state_bytes"] == 3 * 2 * sum(sizes)
    assert moved["hops"] == 6 * 3 * 2
    assert moved["header_bytes"] == 36 * 120
    assert sum(moved["sent_bytes"]) == sum(moved["received_bytes"]) == moved["state_bytes"]
    assert sum(map(sum, moved["matrix"])) == moved["state_bytes"]
    found = expense(run, Prices(3.0, 500.0))
    by_name = {way["name"]: way for way in found["ways"]}
    assert by_name["MOP"]["bytes_moved"] == moved["state_bytes"]
    assert by_name["MOP, this run"]["bytes_moved"] == moved["state_bytes"] + moved["header_bytes"]
    assert found["data_bytes"] == 3 * 800_000
    assert found["batch_known"]
    assert found["lower_bound_s"] <= found["makespan_s"]


def test_one_rank_moves_nothing(tmp_path):
    run = read_run(write_run(tmp_path / "one", Shape(ranks=1)))
    found = expense(run, Prices())
    assert {w["name"]: w["bytes_moved"] for w in found["ways"]}["MOP, this run"] == 0.0
    assert traffic(run)["hops"] == 0


def test_a_batch_size_may_be_given(folder):
    text = (folder / "results.json").read_text().replace("batch_size", "rows_at_once")
    (folder / "results.json").write_text(text)
    run = read_run(folder)
    assert not expense(run, Prices())["batch_known"]
    assert expense(run, Prices(batch_size=32))["batch_known"]


def test_the_time_between_the_parts_of_a_resumed_run_is_nobodys(tmp_path):
    folder = write_run(tmp_path, Shape(ranks=2))
    whole = expense(read_run(folder), Prices())
    times = {"rank": 1, "start": 1000.0, "end": 1000.5}
    visit = {"config": 0, "step": 5, "epoch": 2, "shard": 0, "rows": 1000}
    records = [
        {"kind": "load", "shard": 0, "rows": 1000, "nbytes": 800_000} | times,
        {"kind": "visit"} | visit | times | {"start": 1002.0, "end": 1003.0},
        {"kind": "eval", "config": 0, "epoch": 2} | times | {"start": 1003.0, "end": 1003.5},
    ]
    with (folder / "events" / "rank-0001.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    found = expense(read_run(folder), Prices())
    assert (whole["parts"], found["parts"]) == (1, 2)
    assert found["makespan_s"] == pytest.approx(whole["makespan_s"] + 1.5, abs=0.01)
    assert found["setup_s"] == whole["setup_s"]
