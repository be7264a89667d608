"""The pure parts of the benchmark that compares systems: line counting, figures, tables."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SYSTEMS = ["mop", "celery", "ray", "ddp"]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("compare_tables")
    for name in ("compare_tables", "common", "compare_book", "compare_plot", "pictures"):
        sys.modules.pop(name, None)


def record(config, epoch, at_s, accuracy):
    return {"config": config, "epoch": epoch, "at_s": at_s, "accuracy": accuracy}


def outcome(tables, system, number=0, **known):
    facts = {"data": "fashion", "ranks": 2, "round": number, "seed": number + 1, "lines": 7}
    records = [record(0, 0, 1.0, 0.5), record(1, 0, 2.0, 0.7), record(0, 1, 3.0, 0.8)]
    records.append(record(1, 1, 4.0, 0.6))
    return tables.Outcome(**{**facts, "system": system, "records": records, **known})


def test_lines_between_markers_are_counted(tables):
    text = """
import torch
# user: begin
first = 1

# a comment
second = 2
# user: end
not_counted = 3
# user: begin
third = 3
# user: end
"""
    assert tables.count_lines(text) == 3


def test_lines_of_functions_are_counted_with_decorators(tables):
    text = "@cache\ndef load():\n\n    # why\n    return 1\n\n\ndef other():\n    return 2\n"
    assert tables.count_functions(text, ["load"]) == 3
    assert tables.count_functions(text, ["load", "other"]) == 5


@pytest.mark.parametrize("file", sorted((BENCHMARKS / "peers").glob("*.py")), ids=lambda f: f.name)
def test_every_peer_says_what_its_user_writes(tables, file):
    lines = tables.count_lines(file.read_text())
    assert lines > 0 or file.name in ("driver.py", "loop.py")
    assert len(file.read_text().splitlines()) < 300


def test_figures_come_from_the_window_of_the_makespan(tables):
    records = [
        {"config": 0, "epoch": 0, "time": 14.0, "network": 150, "accuracy": 0.5},
        {"config": 1, "epoch": 0, "time": 20.0, "network": 1100, "accuracy": 0.25},
    ]
    result = {"called": 7.0, "begin": 10.0, "end": 20.0, "network": 1000, "network_before": 100}
    samples = [[8.0, 1.0, 500], [10.0, 2.0, None], [20.0, 12.0, 700], [21.0, 13.0, 900]]
    found = tables.figures({**result, "records": records}, samples, cores=2, small=[1])
    assert found["setup_s"] == 3.0
    assert found["makespan_s"] == 10.0
    assert found["utilisation"] == 0.5
    assert found["peak_bytes"] == 700
    assert (found["small_s"], found["small_bytes"]) == (6.0, 950)
    assert (found["best_accuracy"], found["mean_accuracy"]) == (0.5, 0.375)


def test_of_configs_that_train_at_a_time_each_has_its_share(tables):
    common = {"epoch": 0, "time": 20.0, "accuracy": 0.5}
    records = [
        {**common, "config": 0, "share_s": 3.0, "share_bytes": 10},
        {**common, "config": 1, "share_s": 1.0, "share_bytes": 10},
    ]
    result = {"begin": 10.0, "end": 20.0, "network": 1000, "network_before": 0}
    assert tables.part_of(records, [0], result) == (7.5, 500.0)


def test_of_configs_in_a_row_none_has_the_start_of_processes_alone(tables):
    ends = {(0, 0): 17.0, (0, 1): 19.0, (1, 0): 20.0, (1, 1): 21.0}  # 5 s until the first begins
    records = [{"config": c, "epoch": e, "time": t, "network": 0} for (c, e), t in ends.items()]
    result = {"begin": 10.0, "end": 22.0, "network": 0, "network_before": 0}
    assert tables.part_of(records, [0], result)[0] == pytest.approx(12.0 * 4 / 6)
    assert tables.part_of(records, [1], result)[0] == pytest.approx(12.0 * 2 / 6)


def test_accuracy_over_time_begins_with_chance(tables):
    one = outcome(tables, "mop")
    assert tables.after_seconds(one, 0.5, 2, 0.1) == (0.1, 0.1)
    assert tables.after_seconds(one, 1.0, 2, 0.1) == (0.5, 0.3)
    assert tables.after_seconds(one, 9.0, 2, 0.1) == pytest.approx((0.8, 0.7))
    assert tables.after_epochs(one, 2)[1] == pytest.approx((0.8, 0.7))
    assert one.best_epochs == pytest.approx(0.75)  # of the second config it was the first epoch


def test_a_failure_is_a_row_that_says_why(tables):
    found = [
        outcome(tables, "mop", makespan_s=10.0),
        outcome(tables, "mop", 1, makespan_s=20.0),
        outcome(tables, "ddp", makespan_s=30.0),
        outcome(tables, "ddp", 1, why="it | fell over"),
    ]
    table = tables.main_table(found)
    assert "| mop | 15.0 (10.0 to 20.0) | 1.00 (1.00 to 1.00) |" in table[2]
    assert "| ddp | 30.0 (30.0 to 30.0) | 3.00 (3.00 to 3.00) |" in table[3]
    assert table[4] == "| ddp, round 1 | failed: it / fell over |"
    assert "| 0.7500 | 7 |" in table[2]
    assert len({row.count("|") for row in table[:4]}) == 1
    assert len(tables.time_table(found, 2, 0.1)) == 4


def test_goals_compare_within_a_round(tables):
    common = {"storage_bytes": 10, "small_s": 1.0, "small_bytes": 1.0, "mean_accuracy": 0.8}
    found = []
    for number in range(3):
        own = {**common, "number": number}
        found.append(outcome(tables, "mop", makespan_s=10.0 + number, **own))
        copies = {**own, "storage_bytes": 20}
        found.append(outcome(tables, "celery", makespan_s=20.0 + 2 * number, **copies))
        often = {**own, "small_s": 4.0, "small_bytes": 99.0}
        found.append(outcome(tables, "ddp", makespan_s=50.0, **often))
    goals = {what: (measured, met) for what, _, measured, met in tables.goals(found)}
    assert goals["makespan: MOP / best task-parallel (celery)"] == ("0.500 (0.500 to 0.500)", True)
    assert goals["training rows on disk: MOP / the same"] == ("0.500", True)
    assert goals["seconds of configs with the small batch: DDP / MOP"][1]
    assert goals["network bytes of the same: DDP / MOP"] == ("99 (99 to 99)", False)
    few = {what: met for what, _, _, met in tables.goals([o for o in found if o.round < 2])}
    assert few["makespan: MOP / best task-parallel (celery)"] is None
    assert few["network bytes of the same: DDP / MOP"] is None
    text, met = goals["accuracy: MOP - sequential SGD (celery), each config, points"]
    assert (text[:19], met) == ("2 of 2 configs, at ", True)
    assert text.endswith("3 seeds; seeds alone (sigma 0.00) would leave 2.0")


def test_equal_accuracy_is_not_claimed_from_too_few_seeds(tables):
    mop, other = outcome(tables, "mop"), outcome(tables, "ray")
    assert tables.sequential([mop], [other])[2:] == ("only 1 seeds; 3 are needed", False)


def test_what_is_in_the_book_is_found_again(tables, tmp_path):
    books = importlib.import_module("compare_book")
    path = tmp_path / "compare.jsonl"
    book, known = books.Book(path, SYSTEMS), {"configs": 2, "rows": 8, "epochs": 2}
    whole = ("fashion", 2, 2, 8, 2, "own")
    book.add(outcome(tables, "mop", makespan_s=10.0, **known))
    book.add(outcome(tables, "ddp", why="it fell over", **known))
    book.add(outcome(tables, "mop", 1, makespan_s=11.0, **{**known, "epochs": 3}))
    again = books.Book(path, SYSTEMS)
    assert again.of(whole) == book.of(whole)
    assert [o.system for o in again.of(whole)] == ["mop", "ddp"]
    assert again.missing(whole, 0, ["ddp", "mop"], "") == ["ddp"]  # it may be tried again
    again.add(outcome(tables, "ddp", makespan_s=30.0, **known))
    assert [o.why for o in books.Book(path, SYSTEMS).of(whole)] == ["", ""]
    books.write_csv(tmp_path / "compare.csv", again.of(whole))
    head, first, second = (tmp_path / "compare.csv").read_text().splitlines()
    assert (head[-16:], first[-4:], second[-4:]) == (",makespan_to_mop", ",1.0", ",3.0")


def test_a_round_that_another_machine_left_unfinished_is_run_anew(tables, tmp_path):
    books = importlib.import_module("compare_book")
    path, systems = tmp_path / "compare.jsonl", ["mop", "ddp"]
    book, known = books.Book(path, SYSTEMS), {"configs": 2, "rows": 8, "epochs": 2}
    whole = ("fashion", 2, 2, 8, 2, "own")
    for number, system in ((0, "mop"), (0, "ddp"), (1, "mop")):
        book.add(outcome(tables, system, number, machine="old", **known))
    assert book.missing(whole, 0, systems, "new") == []
    assert book.missing(whole, 1, systems, "old") == ["ddp"]
    assert book.missing(whole, 1, systems, "new") == systems
    book.add(outcome(tables, "ddp", 1, machine="new", **known))
    for found in (book, books.Book(path, SYSTEMS)):  # no ratio of one machine to the other
        assert [(o.round, o.system, o.machine) for o in found.of(whole)] == [
            (0, "mop", "old"),
            (0, "ddp", "old"),
            (1, "ddp", "new"),
        ]


def refused(capsys, path, text, books):
    """Return the sentence with which a book is refused; empty: it is not."""
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with contextlib.suppress(SystemExit):
        books.Book(path, SYSTEMS)
    return capsys.readouterr().err


def test_a_file_that_is_no_book_is_refused(tables, tmp_path, capsys):
    books = importlib.import_module("compare_book")
    file = tmp_path / "other"
    good = json.dumps(asdict(outcome(tables, "mop", configs=2)))
    assert refused(capsys, file, good + "\n", books) == ""
    for text, said in (
        ("{}", "missing"),
        ("[1]", "must be a mapping"),
        ("", "Expecting value"),
        ("makespan,system", "Expecting value"),
        (good.replace('"mop"', '"mob"'), "system is 'mob'; allowed: mop, celery, ray, ddp"),
        (good.replace('"makespan_s": 0.0', '"makespan_s": "long"'), "makespan_s is 'long'"),
        (good.replace('"config": 1', '"config": 99'), "a record is {'config': 99"),
        (good.replace('"records": [', '"records": [], "why": "", "machine": ["'), "delimiter"),
    ):
        told = refused(capsys, file, f"{good}\n{text}\n", books)
        assert f"line 2 of {file} is none that this benchmark wrote (" in told
        assert said in told
    with pytest.raises(SystemExit) as end:
        books.Book(file, SYSTEMS)
    assert end.value.code == 2
    assert "cannot be read" in refused(capsys, tmp_path, None, books)
    assert "cannot be read" in refused(capsys, file, b"\xff\xfe", books)


def test_a_line_that_was_cut_off_takes_no_other_with_it(tables, tmp_path):
    books = importlib.import_module("compare_book")
    path, known = tmp_path / "compare.jsonl", {"configs": 2, "rows": 8, "epochs": 2}
    book = books.Book(path, SYSTEMS)
    book.add(outcome(tables, "mop", makespan_s=10.0, **known))
    path.write_text(path.read_text().rstrip("\n"))
    book.add(outcome(tables, "ddp", makespan_s=30.0, **known))
    assert books.Book(path, SYSTEMS).of(("fashion", 2, 2, 8, 2, "own")) == book.of(
        ("fashion", 2, 2, 8, 2, "own")
    )


def test_a_round_loses_nothing_to_a_few_systems_that_run_elsewhere(tables, tmp_path, capsys):
    books = importlib.import_module("compare_book")
    known = {"configs": 2, "rows": 8, "epochs": 2}
    book, whole = books.Book(None, SYSTEMS), ("fashion", 2, 2, 8, 2, "own")
    book.add(outcome(tables, "mop", machine="old", **known))
    book.add(outcome(tables, "ddp", machine="old", why="it fell over", **known))
    with pytest.raises(SystemExit) as end:
        book.missing(whole, 0, ["ddp"], "new")
    assert end.value.code == 2
    assert "was begun on another machine or day, and would lose what it has of mop" in (
        capsys.readouterr().err
    )
    assert book.missing(whole, 0, ["mop", "ddp"], "new") == ["mop", "ddp"]
    book.add(outcome(tables, "mop", machine="new", why="it failed here", **known))
    assert [(o.system, o.machine) for o in book.of(whole)] == [("mop", "old"), ("ddp", "old")]


def test_what_was_measured_with_other_settings_of_malloc_is_another_comparison(tables):
    books = importlib.import_module("compare_book")
    book = books.Book(None, SYSTEMS)
    book.add(outcome(tables, "mop", configs=2, rows=8, epochs=2, malloc="kept"))
    assert book.of(("fashion", 2, 2, 8, 2, "own")) == []
    assert len(book.of(("fashion", 2, 2, 8, 2, "kept"))) == 1


def test_the_picture_has_a_bar_and_a_line_for_each_system(tables):
    plots = importlib.import_module("compare_plot")
    found = [
        outcome(tables, "mop", makespan_s=10.0),
        outcome(tables, "ddp", makespan_s=30.0),
        outcome(tables, "ray", why="it fell over"),
    ]
    spec = plots.chart_spec([("fashion, 2 ranks", found, 0.1)])
    bars, lines = spec["vconcat"][0]["hconcat"]
    shown = bars["data"]["values"]
    assert [(row["system"], row["ratio"]) for row in shown] == [("mop", 1.0), ("ddp", 3.0)]
    values = lines["data"]["values"]
    assert {row["system"] for row in values} == {"mop", "ddp"}
    assert max(row["seconds"] for row in values) == 30.0


DENORMALS = """
import threading

def tenth():
    return float(torch.tensor([1e-38]) * 0.1)

def train():
    build({"arch": "mlp", "lr": 0.1, "weight_decay": 0.0, "batch_size": 2})
    begun_there = threading.Thread(target=lambda: found.append(tenth()))
    begun_there.start()
    begun_there.join()
    found.append(tenth())

import torch
from compare_model import build
found = [tenth()]  # who only looks at the configs is not changed
thread = threading.Thread(target=train)
thread.start()
thread.join()
print([number > 0 for number in [*found, tenth()]])
"""


def test_who_trains_computes_without_denormals():
    done = subprocess.run(
        [sys.executable, "-c", DENORMALS],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[True, False, False, True]\n"
