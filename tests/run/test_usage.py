"""What ranks spent their time on: measured in a run, and shown."""

from __future__ import annotations

import io

from rich.console import Console
from run_testing import Settings, Sizes, walk_in_threads

from mophpc.events import PARTS
from mophpc.report.usage import usage_table
from mophpc.schedule import make_plan


def shown(ranks: list[dict[str, float]]) -> list[str]:
    screen = io.StringIO()
    Console(file=screen, width=120).print(usage_table(ranks))
    return [" ".join(line.split()) for line in screen.getvalue().splitlines()]


def test_shares_of_each_rank_and_of_all():
    spent = dict.fromkeys(PARTS, 0.0)
    ranks = [spent | {"compute_s": 3.0, "idle_s": 1.0}, spent | {"exposed_hop_s": 4.0}]
    lines = shown(ranks)
    assert lines[0] == "rank compute evaluation exposed hop data checkpoint idle seconds"
    assert lines[1] == "0 75.0% 0.0% 0.0% 0.0% 0.0% 25.0% 4"
    assert lines[2] == "1 0.0% 0.0% 100.0% 0.0% 0.0% 0.0% 4"
    assert lines[3] == "all 37.5% 0.0% 50.0% 0.0% 0.0% 12.5% 8"


def test_of_many_ranks_the_middle_ones_are_left_out():
    lines = shown([dict.fromkeys(PARTS, 1.0)] * 100)
    assert [line.split()[0] for line in lines[8:12]] == ["7", "...", "92", "93"]
    assert len(lines) == 1 + 8 + 1 + 8 + 1


def test_a_rank_that_did_nothing():
    assert shown([dict.fromkeys(PARTS, 0.0)])[1].startswith("0 0.0% ")


def test_a_walk_says_which_hops_were_waited_for(tmp_path):
    plan = make_plan("round-robin", num_configs=1, num_shards=2, num_ranks=2, num_epochs=2)
    walked = walk_in_threads(plan, Settings([Sizes(1000, 10)]), tmp_path)
    received = [
        event
        for rank in walked
        for event in rank.events
        if event["kind"] == "hop" and event["direction"] == "receive"
    ]
    assert len(received) == 2
    for event in received:
        assert 0.0 <= event["exposed_s"] <= event["transfer_s"]
        assert event["hidden"] == (event["exposed_s"] == 0.0)
    waits = [event for rank in walked for event in rank.events if event["kind"] == "wait"]
    assert all(event["cpu_s"] >= 0.0 for event in waits)
