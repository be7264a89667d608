"""The benchmark of accuracy without its training: its words, its book, its table, its end."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
from bench_testing import ends_its_rank, refused, write_launcher

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COMPARISON = ["fashion", 2, 8, 60_000]

TRAIN = """
import sys
sys.path[:0] = [sys.argv[1]]
import accuracy
def train(arguments, tried, due, book):
    accuracy.train_hopping(accuracy.Spec(2, 1, 1, [], sys.argv[2], sys.argv[2]))
accuracy.train = train
accuracy.main(["--seeds", "1"])
"""


@pytest.fixture
def accuracy(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("accuracy")
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(BENCHMARKS) in str(
            sys.modules[name].__file__
        ):
            sys.modules.pop(name)


@pytest.fixture
def nothing_trains(accuracy, monkeypatch):
    def train(*arguments):
        pytest.fail("something was trained")

    for name in ("train_hopping", "train_alone"):
        monkeypatch.setattr(accuracy, name, train)
    monkeypatch.setattr(accuracy, "adopt", lambda: None)
    monkeypatch.setattr(accuracy.shutil, "which", lambda name: f"/bin/{name}")


def line(system, seed, values, **other):
    facts = {"comparison": COMPARISON, "system": system, "seed": seed, "accuracies": values}
    return json.dumps({**facts, **other})


@pytest.mark.usefixtures("nothing_trains")
@pytest.mark.parametrize("option", ["--seeds", "--ranks", "--epochs", "--rows"])
@pytest.mark.parametrize("value", ["0", "-2", "x"])
def test_numbers_that_mean_nothing(accuracy, capsys, option, value):
    err = refused(accuracy.main, capsys, [option, value])
    assert option in err
    assert f"'{value}'" in err


@pytest.mark.usefixtures("nothing_trains")
def test_rows_files_and_data_that_cannot_be(accuracy, capsys, tmp_path, monkeypatch):
    for words, told in (
        (["--rows", "3", "--ranks", "4"], "each of 4 ranks needs one"),
        (["--book", str(tmp_path)], "it is a folder"),
        (["--book", str(tmp_path / "no" / "book.jsonl")], "there is no folder"),
        (["--source", str(tmp_path)], f"{tmp_path} has no file"),
        (["--source", str(tmp_path / "no")], "no"),
    ):
        assert told in refused(accuracy.main, capsys, words)
    for part, kind in (("train", "images"), ("train", "labels"), ("t10k", "images")):
        (tmp_path / f"{part}-{kind}-idx.gz").write_bytes(b"no gzip at all")
    assert "is damaged" in refused(accuracy.main, capsys, ["--source", str(tmp_path)])
    monkeypatch.setattr(accuracy.shutil, "which", lambda name: None)
    assert "no mpirun on PATH" in refused(accuracy.main, capsys, [])


@pytest.mark.usefixtures("nothing_trains")
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ('{"comparison": ["fash', "is no JSON"),
        ("\xff", "is no JSON"),
        ("[1]", "is no line of this benchmark"),
        ('{"comparison": [], "system": "mop", "seed": 1}', "lacks 'accuracies'"),
        (line("ddp", 1, [0.5] * 16), 'has the system "ddp"; allowed: mop, sequential'),
        (line("mop", "1", [0.5] * 16), 'has the seed "1"'),
        (line("mop", 1, ["high"] * 16), "has accuracies that are no numbers from 0 to 1"),
        (line("mop", 1, 0.5), "has accuracies that are no numbers from 0 to 1"),
        (line("mop", 1, [0.5] * 15), "has 15 accuracies; allowed: 16"),
    ],
)
def test_a_wrong_line_of_the_book_is_named(accuracy, capsys, tmp_path, wrong, told):
    book = tmp_path / "book.jsonl"
    book.write_bytes(f"{line('mop', 1, [0.5] * 16)}\n{wrong}\n".encode("latin-1"))
    before = book.read_bytes()
    err = refused(accuracy.main, capsys, ["--book", str(book)])
    assert f"{book}:2 {told}" in err
    assert "delete that line, or name another --book" in err
    assert book.read_bytes() == before


def test_a_line_that_has_no_end_gets_one(accuracy, tmp_path):
    path = tmp_path / "book.jsonl"
    path.write_text(line("mop", 1, [0.5, 0.25]))
    accuracy.Book(path, COMPARISON, 2).add("sequential", 1, {1: 0.5, 0: 0.75})
    accuracy.Book(path, COMPARISON, 2).add("mop", 2, {0: 0.5, 1: 0.5})
    assert path.read_text().count("\n") == 3
    book = accuracy.Book(path, COMPARISON, 2)
    assert book.of("mop", [1, 2]) == [[0.5, 0.5], [0.25, 0.5]]
    assert book.of("sequential", [1]) == [[0.75], [0.5]]
    assert not accuracy.Book(path, ["fashion", 4, 8, 60_000], 2).has("mop", 1)


@pytest.mark.usefixtures("nothing_trains")
def test_a_whole_book_needs_no_data(accuracy, capsys, tmp_path):
    book = tmp_path / "book.jsonl"
    lines = [line("mop", seed, [0.9 + seed / 1000] * 16) for seed in (1, 2, 3)]
    lines += [line("sequential", seed, [0.9] * 16) for seed in (1, 2, 3)]
    book.write_text("\n".join(lines))
    assert accuracy.main(["--book", str(book), "--source", str(tmp_path / "no")]) == 0
    out = capsys.readouterr().out
    # 0.1, 0.2 and 0.3 points: 0.1 / sqrt(3), whatever the number of configs.
    assert "| +0.200, standard error over seeds 0.058 | yes |" in out
    assert "16 of 16 configs, at most +0.20" in out


def test_seeds_are_what_is_independent(accuracy, capsys):
    # Configs differ by far, but a seed's all alike.
    hopped = [[0.1, 0.102], [0.5, 0.502], [0.9, 0.902]]
    sequential = [[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]
    assert accuracy.over_seeds(hopped, sequential) == pytest.approx((0.1, 0.1))
    accuracy.tell("x", [{"lr": n} for n in range(3)], [[0.5]] * 3, [[0.5]] * 3)
    assert "standard error" not in capsys.readouterr().out


def test_what_seeds_alone_would_do_is_told(accuracy, capsys):
    seeds = importlib.import_module("seeds")
    # Each method's own seeds are 0.3 points apart (one sigma): means of three, by 0.3 * sqrt(2/3).
    spread = [0.897, 0.9, 0.903]
    assert seeds.noise([spread], [spread]) == pytest.approx(0.3 * (2 / 3) ** 0.5)
    assert seeds.chance(0.3) == pytest.approx(0.6827, abs=1e-4)
    assert seeds.chance(0.0) == 1.0
    configs = [{"lr": n} for n in range(4)]
    accuracy.tell("x", configs, [spread] * 4, [spread] * 4)
    out = capsys.readouterr().out
    assert "0.24 points (one sigma), and would leave 3.1 of 4 within 0.3" in out


def test_help_says_how_long_it_takes(accuracy, capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--help"])
    assert "Takes 50 minutes" in capsys.readouterr().out


def test_no_rank_stays_behind_when_it_is_ended(tmp_path):
    write_launcher(tmp_path / "mpirun")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-c", TRAIN, str(BENCHMARKS), str(tmp_path)]
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    assert ends_its_rank(command, environment, tmp_path / "rank")
