from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mophpc.schedule import Plan, draw_svg, format_plan, lower_bound, make_plan, predict, summary


def rotation(num_configs: int, num_ranks: int, num_epochs: int, num_shards: int = 0) -> Plan:
    return make_plan(
        "round-robin",
        num_configs=num_configs,
        num_shards=num_shards or num_ranks,
        num_ranks=num_ranks,
        num_epochs=num_epochs,
    )


def test_table():
    assert format_plan(rotation(7, 3, 2)).splitlines() == [
        "epoch 0, step     0  1  2  3  4  5  6",
        "rank 0 (shard 0)  0  1  2  3  4  5  6",
        "rank 1 (shard 1)  5  6  0  1  2  3  4",
        "rank 2 (shard 2)  3  4  5  6  0  1  2",
        "",
        "epoch 1, step     7  8  9 10 11 12 13",
        "rank 0 (shard 0)  6  5  4  3  2  1  0",
        "rank 1 (shard 1)  4  3  2  1  0  6  5",
        "rank 2 (shard 2)  2  1  0  6  5  4  3",
    ]


def test_table_of_idle_ranks_with_names():
    assert format_plan(rotation(2, 3, 1), ["lr=0.1", "lr=0.2"]).splitlines() == [
        "epoch 0, step    0 1 2",
        "rank 0 (shard 0) 0 1 ·",
        "rank 1 (shard 1) · 0 1",
        "rank 2 (shard 2) 1 · 0",
        "· idle",
        "",
        "0 = lr=0.1",
        "1 = lr=0.2",
    ]


def test_table_of_ranks_with_unequal_shares():
    assert format_plan(rotation(3, 2, 2, num_shards=5), epoch=0).splitlines() == [
        "epoch 0, step        0  1  2  3  4  5  6  7  8",
        "rank 0 (shards 0-2)  0  0  0  1  1  1  2  2  2",
        "rank 1 (shards 3,4)  2  2  ·  0  0  ·  1  1  >",
        "· idle",
        "> a visit of a later epoch",
    ]


def test_a_wide_and_high_table_is_cut():
    plan = rotation(40, 6, 1)
    lines = format_plan(plan, [f"n{c}" for c in range(40)], max_width=40, max_rows=3).splitlines()
    assert lines == [
        "epoch 0, step     0  1  2  3  4  5  6  7",
        "rank 0 (shard 0)  0  1  2  3  4  5  6  7",
        "rank 1 (shard 1) 34 35 36 37 38 39  0  1",
        "rank 2 (shard 2) 27 28 29 30 31 32 33 34",
        "… steps 8 to 39 are cut off; a wider table shows them",
        "… ranks 3 to 5 are not shown",
        "",
        " 0 = n0",
        " 1 = n1",
        " 2 = n2",
        "… 37 more configs",
    ]
    assert max(map(len, lines[:4])) <= 40


def test_no_such_epoch():
    with pytest.raises(ValueError, match="there is no epoch 2; the plan has 2"):
        format_plan(rotation(2, 2, 2), epoch=2)


def test_summary():
    plan = rotation(16, 4, 2)
    bound = lower_bound(np.ones((16, 4)), plan.owners, 2)
    assert summary(predict(plan, 1.0), lower_bound_s=bound, state_nbytes=[50_000_000] * 16) == (
        "makespan  32 visits (lower bound 32, ratio 1.000)",
        "idle      0.0% of the ranks' time",
        "hops      96 of 128 visits",
        "moved     4.8 GB, 2.4 GB per epoch",
        "arenas    at most 6 config states on a rank",
    )
    assert summary(predict(rotation(2, 2, 1), [[1.0], [3.0]], hop_s=0.5), unit="s")[:2] == (
        "makespan  6.5 s",
        "idle      38.5% of the ranks' time",
    )
    uneven = summary(predict(rotation(3, 2, 1, num_shards=5), 1.0))
    assert uneven[1] == "idle      16.7% of the ranks' time, 33.3% on rank 1"


def test_picture_shows_every_visit_and_hop():
    plan = rotation(5, 3, 2)
    text = draw_svg(predict(plan, 1.0, hop_s=0.2), ["a<b"] * 5, highlight=2)
    tags = [element.tag.rpartition("}")[2] for element in ET.fromstring(text).iter()]
    assert tags.count("rect") == plan.num_visits
    assert tags.count("line") == 5 * 2 * 2 + 1  # hops, and the time axis
    assert "config a&lt;b, epoch 1, shard 2, rank 2" in text
    assert text.count("stroke-width:2") == 2 * 2
    assert text == draw_svg(predict(plan, 1.0, hop_s=0.2), ["a<b"] * 5, highlight=2)


def test_picture_without_length_or_highlight():
    ET.fromstring(draw_svg(predict(rotation(2, 2, 1), 0.0), highlight=None))
