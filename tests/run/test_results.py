"""results.json, results.csv and the table."""

from __future__ import annotations

import csv
import json

import pytest

from mophpc.report.results import ConfigResult, Results, from_record, print_table, route_text

ROUTE = [{"epoch": e, "shard": s, "rank": s % 2} for e, s in ((0, 2), (0, 0), (1, 0), (1, 2))]


def row(config_id: int, best: float | None, **settings) -> ConfigResult:
    given = {
        "config": f"c00{config_id}-lr=0.1",
        "status": "done",
        "hyperparameters": {"lr": 0.1},
        "epochs": 2,
        "final": {"train_loss": 1.5, "valid_loss": best},
        "best_epoch": None if best is None else 1,
        "state_sha256": f"{config_id}" * 64,
        "route": ROUTE,
    }
    return ConfigResult(config_id=config_id, best=best, **(given | settings))


ROWS = [
    row(0, 0.5, hyperparameters={"lr": 0.1, "arch": "cnn"}),
    row(1, 0.9, status="diverged"),
    row(2, 0.9, hyperparameters={"lr": 0.2, "width": 8}),
    row(3, None, status="diverged", final={}, epochs=0),
    row(4, 0.1),
    row(5, 0.9),
]


@pytest.mark.parametrize(
    ("mode", "order"), [("max", [2, 5, 0, 4, 3, 1]), ("min", [4, 0, 2, 5, 3, 1])]
)
def test_rows_are_ranked_and_diverged_ones_are_last(mode, order):
    found = [r.config_id for r in Results("valid_loss", mode, 2, ROWS).ranked]
    assert found[:4] == order[:4]
    assert set(found[4:]) == {1, 3}


def test_a_row_of_the_table_has_what_its_config_has(tmp_path):
    results = Results("valid_loss", "max", 2, ROWS, run="/runs/first")
    results.write(tmp_path / "r.json", tmp_path / "r.csv")
    table = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [r["config_id"] for r in table] == [str(i) for i in range(6)]
    assert (table[0]["arch"], table[0]["width"]) == ("cnn", "")
    assert (table[2]["arch"], table[2]["width"], table[2]["lr"]) == ("", "8", "0.2")
    assert (table[3]["best_valid_loss"], table[3]["final_valid_loss"]) == ("", "")
    assert table[0]["route"] == "2,0|0,2"
    assert table[1]["config"] == "c001-lr=0.1"


def test_results_come_back_from_their_file(tmp_path):
    results = Results("valid_loss", "max", 2, ROWS, run="/runs/first")
    results.write(tmp_path / "r.json", tmp_path / "r.csv")
    record = json.loads((tmp_path / "r.json").read_text())
    assert "/runs/first" not in (tmp_path / "r.json").read_text()
    assert from_record(record, "/runs/first") == results


def test_numbers_that_are_not_finite_are_null(tmp_path):
    results = Results("m", "max", None, [row(0, None, final={"m": float("nan")})])
    results.write(tmp_path / "r.json", tmp_path / "r.csv")
    (found,) = json.loads((tmp_path / "r.json").read_text())["configs"]
    assert found["final"] == {"m": None}


def test_an_empty_route_is_an_empty_text():
    assert route_text([]) == ""
    assert route_text(ROUTE[:1]) == "2"


def test_the_table_shows_the_best_first_and_says_what_it_leaves_out(capsys):
    print_table(Results("accuracy", "max", 2, ROWS), most=3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("config", "lr", "arch", "width", "best", "accuracy", "epoch"),
        *("train_loss", "valid_loss", "status"),
    ]
    assert [line.split()[0] for line in lines[1:4]] == ["c002", "c005", "c000"]
    assert lines[4] == "… and 3 more in results.csv"
    assert len(lines) == 5
