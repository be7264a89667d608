"""The arithmetic of the projection of the papers' workload."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import projection
from projection import Kind, Workload

from mophpc.costs_file import load_costs

SMALL = Workload(
    kinds=(Kind("long", 1, 10, 60.0, 100, 300), Kind("short", 2, 20, 40.0, 200, 600)),
    nodes=2,
    epochs=3,
    rows=100,
    bandwidth_bytes_per_s=100.0,
)


def test_epochs_add_up_to_what_was_measured():
    costs = projection.epoch_costs_s(1000.0, 60.0, 0.5, 4)
    assert 4 * sum(costs.values()) == pytest.approx(1000.0)
    assert costs["resnet50", 32] == 60.0
    for batch_size in (32, 256):
        ratio = costs["vgg16", batch_size] / costs["resnet50", batch_size]
        assert ratio == pytest.approx(0.5)


def test_whole_configs_on_nodes():
    # 180 on one node; 120 and 120 on the other.
    assert projection.task_parallel_s(SMALL) == 240.0


def test_an_all_reduce_in_every_step():
    # Long: 5 steps of a ring that moves 100 bytes, 30 s of computing; short: 3 of 200 and 20 s.
    assert projection.all_reduce_s(SMALL, hidden=False) == 3 * (30 + 5) + 6 * (20 + 6)
    assert projection.all_reduce_s(SMALL, hidden=True) == 3 * 30 + 6 * 20
    slow = Workload(SMALL.kinds, 2, 3, 100, 1.0)
    assert projection.all_reduce_s(slow, hidden=True) == 3 * 500 + 6 * 600


def test_one_server_for_all():
    # The workers' own pace: 30 s and 5 x 2 x 1 s; 20 s and 3 x 2 x 2 s. The link is not full.
    assert projection.parameter_server_s(SMALL, both_ways=True) == 3 * 40 + 6 * 32
    slow = Workload(SMALL.kinds, 4, 3, 100, 1.0)
    one, other = (projection.parameter_server_s(slow, both_ways=both) for both in (True, False))
    assert one == 3 * (3 * 4 * 100) + 6 * (2 * 4 * 200)
    assert other == 2 * one


def test_averaging_once_an_epoch():
    assert projection.model_averaging_s(SMALL) == 3 * (30 + 4) + 6 * (20 + 8)


def test_more_configs_and_faster_nodes():
    large = SMALL.on(8, 12)
    assert (large.nodes, large.num_configs) == (8, 12)
    assert projection.task_parallel_s(SMALL.scaled(0.5)) == 120.0
    with pytest.raises(ValueError, match="13 configs are no multiple of 3"):
        SMALL.on(8, 13)


@pytest.mark.parametrize(
    ("projected", "published", "words"),
    [
        ((9.0, 11.0), 10.0, "within"),
        ((8.0, 9.0), 10.0, "-10%"),
        ((12.0, 13.0), 10.0, "+20%"),
        ((10.0, 10.0), 10.0, "+0%"),
    ],
)
def test_beside_what_was_published(projected, published, words):
    assert projection.beside(projected, published) == words


def test_every_number_names_its_source():
    given = json.loads(projection.WORKLOAD.read_text())
    sources = given.pop("sources")
    for name, entry in given.items():
        assert any(entry["source"].startswith(source) for source in (*sources, "float32")), name


def test_the_workload_is_the_papers(tmp_path):
    work = projection.papers_workload()
    assert (work.nodes, work.epochs, work.num_configs) == (8, 10, 16)
    file = tmp_path / "costs.json"
    file.write_text(json.dumps(projection.costs_file(work)))
    costs = load_costs(file)
    assert len(costs.configs) == 16
    total_s = 8 * sum(one.visit_s for one in costs.configs.values())
    assert total_s / 3600 == pytest.approx(8 * 2.110903)
    assert costs.of("resnet50-32-0").state_nbytes == pytest.approx(294 * 2**20, rel=0.005)


@pytest.mark.parametrize("text", ["8", "1x16", "8x17", "8x0", "ax16", "-8x16"])
def test_no_case(text):
    with pytest.raises(SystemExit) as caught:
        projection.main(["--case", text])
    assert caught.value.code == 2


def test_the_table_of_a_small_case(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(projection, "mop_s", lambda work: (3600.0 * work.nodes, 3600.0))
    projection.main(["--case", "8x16", "4x32", "--costs", str(tmp_path / "costs.json")])
    out = capsys.readouterr().out
    assert "| MOP | 17.7 | 8.0 | -55% | 8.0 | -55% |" in out
    assert "| task parallel | 17.2 | 21.3 | +24% | 17.2 | the fit |" in out
    assert "### 4 nodes, 32 configs, 10 epochs: hours" in out
    assert len(load_costs(tmp_path / "costs.json").configs) == 16
