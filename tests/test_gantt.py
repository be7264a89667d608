"""The Gantt picture of a schedule."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mophpc.errors import PictureError, UserError
from mophpc.report import gantt_rows
from mophpc.report.gantt import FORMATS, draw_gantt, gantt_spec
from mophpc.schedule import Plan, hops, make_plan, predict

ODD_NAMES = [
    '</script><script>alert("1")</script>',
    "<!-- <b>&amp; 'quoted' \"twice\"",
    "größe=1,層=2,\U0001f600",
    "line\nbreak\ttab\x00null\ud800half",
    "x" * 500,
    "",
]


def rotation(num_configs: int, num_ranks: int, num_epochs: int, cost_s: float = 1.0) -> Plan:
    plan = make_plan(
        "round-robin",
        num_configs=num_configs,
        num_shards=num_ranks,
        num_ranks=num_ranks,
        num_epochs=num_epochs,
    )
    return predict(plan, cost_s).plan


PLAN = rotation(4, 2, 3)


def subtitle(spec: dict) -> list[str]:
    return spec["title"]["subtitle"]


def script_text(page: str) -> str:
    """The script that holds the spec; the one before it is the libraries."""
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[1]


def test_a_bar_for_each_visit_and_a_line_for_each_hop():
    data = gantt_spec(PLAN)["datasets"]
    assert len(data["visits"]) == PLAN.num_visits == 24
    assert len(data["hops"]) == len(hops(PLAN)) == 12
    assert [rank["rank"] for rank in data["ranks"]] == [0, 1]
    found = {
        (bar["config"], bar["epoch"], bar["shard"], bar["rank"], bar["start"], bar["end"])
        for bar in data["visits"]
    }
    assert found == {
        (v.config_id, v.epoch, v.shard, v.rank, v.predicted_start_s, v.predicted_end_s)
        for v in PLAN.visits()
    }


def test_a_hop_goes_from_the_end_of_a_visit_to_the_start_of_the_next():
    first = next(hop for hop in gantt_spec(PLAN)["datasets"]["hops"] if hop["config"] == 0)
    before, after = PLAN.route(0)[:2]
    assert (first["start"], first["end"]) == (before.predicted_end_s, after.predicted_start_s)
    assert before.rank < first["source"] < first["dest"] < after.rank


def test_ends_of_epochs_and_what_the_titles_say():
    spec = gantt_spec(PLAN, title="first <run>", unit="visits")
    ends = [(end["end"], end["label"]) for end in spec["datasets"]["ends"]]
    assert ends == [(4.0, "end of epoch 0"), (8.0, "end of epoch 1"), (12.0, "end of epoch 2")]
    assert spec["title"]["text"] == "first <run>"
    assert subtitle(spec) == [
        "2 shards · 3 epochs · policy round-robin · 24 visits · 12 hops · "
        "100.0% of time in visits · predicted times"
    ]
    assert gantt_spec(rotation(1, 1, 1))["title"]["text"] == "1 config on 1 rank"
    assert "time [visits]" in json.dumps(spec)


def test_rank_0_is_on_top():
    tracks = gantt_spec(PLAN)["layer"][0]
    assert tracks["encoding"]["y"]["scale"]["domain"] == [1.5, -0.5]


def test_configs_have_colours_of_their_own_that_do_not_depend_on_the_others():
    scales = []
    for num_configs in (8, 64):
        spec = gantt_spec(rotation(num_configs, 2, 2))
        fill = next(part for part in spec["layer"] if part.get("name") == "bars")
        scales.append(fill["encoding"]["fill"]["scale"])
    small, large = (dict(zip(s["domain"], s["range"], strict=True)) for s in scales)
    assert len(set(large.values())) == len(large) == 128
    assert small.items() <= large.items()
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in large.values())


def test_real_times_replace_predicted_ones_and_visits_without_are_left_out():
    times = {(v.config_id, v.step): (10.0 + v.step, 10.5 + v.step) for v in PLAN.visits()}
    del times[0, 5]
    times[1, 5] = (math.nan, 1.0)
    times[2, 5] = (3.0, 2.0)
    times[99, 0] = (0.0, 1.0)
    spec = gantt_spec(PLAN, times=times)
    bars = spec["datasets"]["visits"]
    assert len(bars) == 21
    assert min(bar["start"] for bar in bars) == 10.0
    assert {bar["end"] - bar["start"] for bar in bars} == {0.5}
    assert subtitle(spec)[0].endswith("real times")


@pytest.mark.parametrize("suffix", [*FORMATS, ".SVG"])
def test_every_format(tmp_path, suffix):
    path = tmp_path / f"plan{suffix}"
    draw_gantt(PLAN, path, names=[f"c00{i}" for i in range(4)], unit="visits")
    raw = path.read_bytes()
    if suffix == ".png":
        assert raw.startswith(b"\x89PNG\r\n")
    elif suffix == ".html":
        assert raw.startswith(b"<!DOCTYPE html>")
    else:
        texts = [node.text for node in ElementTree.fromstring(raw).iter() if node.text]
        assert {"rank 0", "rank 1", "time [visits]", "3: c003", "end of epoch 2"} <= set(texts)
        assert texts.count("3") == 7  # six visits of config 3, and a tick
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_page_loads_nothing(tmp_path):
    draw_gantt(PLAN, tmp_path / "plan.html", title="a & <b>")
    page = (tmp_path / "plan.html").read_text()
    frame = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "//" not in frame
    assert "src=" not in frame
    assert "href=" not in frame
    assert "default-src 'none'" in frame
    assert "<title>a &amp; &lt;b&gt;</title>" in frame
    assert "import(" not in page
    assert "window.vegaEmbed=" in page


@pytest.mark.parametrize("suffix", FORMATS)
def test_names_may_hold_anything(tmp_path, suffix):
    path = tmp_path / f"odd{suffix}"
    draw_gantt(rotation(6, 2, 1), path, names=ODD_NAMES, title=ODD_NAMES[0], unit=ODD_NAMES[1])
    if suffix == ".svg":
        texts = [node.text for node in ElementTree.fromstring(path.read_bytes()).iter()]
        assert f"0: {ODD_NAMES[0]}" in texts
        assert f"2: {ODD_NAMES[2]}" in texts
        assert "3: line?break?tab?null?half" in texts
    elif suffix == ".html":
        page = path.read_text()
        assert page.count("<script>") == page.count("</script>") == 2
        text = script_text(page)
        assert "<" not in text
        spec, _ = json.JSONDecoder().raw_decode(text, text.index("{"))
        names = {bar["config"]: bar["name"] for bar in spec["datasets"]["visits"]}
        assert names[0] == ODD_NAMES[0]
        assert names[4] == "x" * 119 + "…"


def test_the_same_plan_gives_the_same_bytes_in_any_process(tmp_path):
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_gantt import PLAN, draw_gantt
for name in ("0.svg", "0.html", "0.png", "1.svg"):
    draw_gantt(PLAN, Path(sys.argv[1]) / name, names=[f"c{i}" for i in range(4)])
"""
    made = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
        env = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run(command, env=env, check=True, timeout=100)
        made.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert len(made[0]) == 4
    assert made[0] == made[1]
    assert made[0]["0.svg"] == made[0]["1.svg"]


@pytest.mark.parametrize("times", [None, {}])
def test_visits_that_take_no_time_and_none_at_all(tmp_path, times):
    plan = rotation(3, 2, 1, cost_s=0.0)
    spec = gantt_spec(plan, times=times)
    assert len(spec["datasets"]["visits"]) == (0 if times == {} else 6)
    draw_gantt(plan, tmp_path / "plan.svg", times=times)
    assert b"NaN" not in (tmp_path / "plan.svg").read_bytes()


def test_of_a_large_plan_the_first_visits_are_drawn_and_that_is_said(monkeypatch):
    monkeypatch.setattr(gantt_rows, "MOST_VISITS", 13)
    spec = gantt_spec(PLAN)
    data = spec["datasets"]
    assert len(data["visits"]) == 13
    assert max(bar["start"] for bar in data["visits"]) == 6.0
    assert [end["end"] for end in data["ends"]] == [4.0]  # the one epoch that is there whole
    assert subtitle(spec)[1] == "Only the first 13 of 24 visits by start are drawn."
    assert "of time" not in subtitle(spec)[0]


def test_thousands_of_ranks_stay_a_picture():
    spec = gantt_spec(rotation(2, 5000, 1))
    assert spec["height"] == 4000
    assert len(spec["datasets"]["visits"]) == 10_000


@pytest.mark.parametrize("name", ["plan.pdf", "plan", "plan.png.gz"])
def test_another_suffix_is_a_mistake(tmp_path, name):
    with pytest.raises(PictureError, match=r"ends in '.*'; allowed: \.png, \.svg, \.html"):
        draw_gantt(PLAN, tmp_path / name)
    assert issubclass(PictureError, UserError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["altair", "vl_convert"])
def test_a_missing_library_is_named_with_the_remedy(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(PictureError, match=rf'{library}.*pip install "mophpc\[plots\]"'):
        draw_gantt(PLAN, tmp_path / "plan.svg")


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.svg").mkdir()
    for path in (tmp_path / "none" / "plan.svg", tmp_path / "folder.svg"):
        with pytest.raises(PictureError, match=r"cannot write the picture '.*': .*; name a file"):
            draw_gantt(PLAN, path)


def test_one_name_per_config():
    with pytest.raises(ValueError, match="2 names for 4 configs"):
        gantt_spec(PLAN, names=["a", "b"])


def test_the_libraries_are_imported_when_a_picture_is_drawn():
    code = "import sys, mophpc.report.gantt; assert not {'altair', 'vl_convert'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
