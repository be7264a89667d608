"""The trace for Perfetto: its structure, as the format asks for it."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

import pytest
from made_up import Shape, write_run

from mophpc.report.run_data import read_run
from mophpc.report.trace import lanes, trace_text


def trace_of(folder):
    record = json.loads("".join(trace_text(read_run(folder))))
    by_phase = defaultdict(list)
    for event in record["traceEvents"]:
        by_phase[event["ph"]].append(event)
    return by_phase


@pytest.mark.parametrize("skew_s", [0.0, 60.0])
def test_structure(tmp_path, skew_s):
    found = trace_of(write_run(tmp_path / "run", Shape(skew_s=skew_s)))
    assert set(found) == {"X", "M", "s", "f"}
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in found["M"]
        if "tid" in e and e["name"] == "thread_name"
    }
    processes = {e["pid"]: e["args"]["name"] for e in found["M"] if e["name"] == "process_name"}
    assert processes == {0: "rank 0", 1: "rank 1", 2: "rank 2"}
    assert {name.rstrip("0123456789 ") for name in threads.values()} == {
        "visits",
        "hops in",
        "hops out",
        "rest",
    }
    slices = defaultdict(list)
    for event in found["X"]:
        assert event["dur"] > 0
        assert (event["pid"], event["tid"]) in threads
        slices[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for own in slices.values():  # slices of a thread must nest; these do not even touch
        own.sort()
        assert all(a[1] <= b[0] + 1e-3 for a, b in pairwise(own))
    assert sum(e["cat"] == "visit" for e in found["X"]) == 6 * 3 * 3
    check_flows(found, slices)


def check_flows(found, slices):
    starts = {e["id"]: e for e in found["s"]}
    ends = {e["id"]: e for e in found["f"]}
    assert len(starts) == len(found["s"]) == len(ends) == 6 * 3 * 2
    assert set(starts) == set(ends)
    for number, start in starts.items():
        end = ends[number]
        assert start["pid"] != end["pid"]
        assert start["ts"] <= end["ts"]
        assert end["bp"] == "e"
        for flow in (start, end):  # each end lies in a slice of its thread, or it is not drawn
            own = slices[flow["pid"], flow["tid"]]
            assert any(a <= flow["ts"] <= b for a, b in own)


def test_slices_that_overlap_get_lanes():
    ranks = [0, 0, 0, 0, 1]
    starts = [0.0, 1.0, 2.0, 5.0, 0.0]
    lengths = [3.0, 1.0, 2.0, 1.0, 9.0]
    assert lanes(ranks, starts, lengths) == [0, 1, 1, 0, 0]


def test_odd_names_stay_json(folder):
    text = (folder / "results.json").read_text()
    text = text.replace('"config": "c000', '"config": "\\"},\\u2028<b>\\ud800')
    (folder / "results.json").write_text(text)
    assert any('"},\u2028<b>\ud800' in e["name"] for e in trace_of(folder)["X"])


def test_nothing_but_an_experiment(tmp_path):
    (tmp_path / "experiment.toml").write_text("")
    assert set(trace_of(tmp_path)) == {"M"}
