"""Configs drawn from a space, or all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import mophpc
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment, load_experiment
from mophpc.search import make_configs, make_rows
from mophpc.search.draw import draw, every_combination

SPACE = {
    "arch": mophpc.choice(["mlp", "cnn"]),
    "width": mophpc.integer(1, 3, when={"arch": "mlp"}),
    "kernel": mophpc.choice([3, 5], when={"arch": "cnn"}),
    "lr": mophpc.loguniform(1e-4, 1e-1),
    "dropout": mophpc.uniform(0.0, 0.5, step=0.25),
}


def test_a_grid_has_branches_of_their_own_lengths():
    space = {name: own for name, own in SPACE.items() if name != "lr"}
    rows = list(every_combination(space))
    assert len(rows) == 3 * 3 + 2 * 3
    assert rows[0] == {"arch": "mlp", "width": 1, "dropout": 0.0}
    assert rows[1] == {"arch": "mlp", "width": 1, "dropout": 0.25}
    assert rows[-1] == {"arch": "cnn", "kernel": 5, "dropout": 0.5}
    assert all(("width" in row) != ("kernel" in row) for row in rows)


def test_a_config_has_a_hyperparameter_only_where_its_condition_holds():
    rows = draw(SPACE, 200, seed=3)
    assert {row["arch"] for row in rows} == {"mlp", "cnn"}
    for row in rows:
        assert ("width" in row) == (row["arch"] == "mlp")
        assert ("kernel" in row) == (row["arch"] == "cnn")
        assert list(row) == [name for name in SPACE if name in row]


def test_draws_are_the_seeds_and_no_others():
    first = draw(SPACE, 20, seed=1)
    assert draw(SPACE, 20, seed=1) == first
    assert draw(SPACE, 40, seed=1)[:20] == first, "more configs are added behind"
    assert draw(SPACE, 20, seed=2) != first
    wider = {"extra": mophpc.uniform(0, 1)} | SPACE
    again = [{k: v for k, v in row.items() if k != "extra"} for row in draw(wider, 20, seed=1)]
    assert again == first, "a dimension that is added changes none of the others"


def test_dimensions_are_independent_and_uniform():
    space = {name: mophpc.uniform(0, 1) for name in "abcd"}
    values = np.array([list(row.values()) for row in draw(space, 2000, seed=5)])
    correlation = np.corrcoef(values.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.08  # 3.6 standard deviations
    for column in values.T:
        counts, _ = np.histogram(column, bins=10, range=(0, 1))
        assert counts.min() > 150
        assert counts.max() < 250


def test_no_config_is_drawn_twice():
    space = {"a": mophpc.choice([1, 2, 3]), "b": mophpc.choice([True, False])}
    rows = draw(space, 6, seed=0)
    assert len({tuple(row.items()) for row in rows}) == 6
    with pytest.raises(ExperimentError, match=r"search.configs is 7, but after 6 configs no other"):
        draw(space, 7, seed=0)


def test_a_constraint_is_kept():
    def fits(row):
        return row["arch"] == "cnn" or row["width"] < 3

    rows = draw(SPACE, 100, seed=3, constraint=fits)
    assert all(fits(row) for row in rows)
    assert {row.get("width") for row in rows} == {1, 2, None}
    space = {name: own for name, own in SPACE.items() if name != "lr"}
    assert len(list(every_combination(space, fits))) == 2 * 3 + 2 * 3


FILE = """
def build(config): ...
def small(config): return config["a"] + config["b"] < 4
def none(config): return False
def wrong(config): return "yes"
def raising(config): return config["c"]
"""
TOML = """
build = "tune.py:build"
epochs = 1
data = "s"
[search]
constraint = "tune.py:{constraint}"
[space]
a = [1, 2, 3]
b = {{ integer = [1, 3] }}
"""


def experiment_of(tmp_path: Path, constraint: str) -> Experiment:
    (tmp_path / "tune.py").write_text(FILE)
    (tmp_path / "tune.toml").write_text(TOML.format(constraint=constraint))
    return load_experiment(tmp_path / "tune.toml")


def test_a_constraint_of_a_file_is_found_beside_it(tmp_path, monkeypatch):
    experiment = experiment_of(tmp_path, "small")
    monkeypatch.chdir("/")
    assert make_rows(experiment) == [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}]
    names = [config.name for config in make_configs(experiment)]
    assert names == ["c000-a=1,b=1", "c001-a=1,b=2", "c002-a=2,b=1"]
    assert experiment.resolved({})["search"]["constraint"] == f"{tmp_path}/tune.py:small"


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ("none", "allows no combination of the space; there is nothing to try"),
        ("wrong", "search.constraint returned a str; it must return a bool"),
        ("raising", r"search.constraint raised KeyError: 'c' for \{'a': 1, 'b': 1\}"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_wrong_constraint_is_named(tmp_path, constraint, said):
    with pytest.raises(ExperimentError, match=said):
        make_rows(experiment_of(tmp_path, constraint))


def test_a_constraint_that_refuses_all_draws_ends_the_search():
    with pytest.raises(ExperimentError, match="after 0 configs no other was found in 1000 draws"):
        draw(SPACE, 1, seed=0, constraint=lambda row: False)


def test_the_method_follows_from_what_is_given():
    common = {"build": "m:build", "data": "s", "epochs": 1}
    assert Experiment(space={"a": [1]}, **common).method == "grid"
    assert Experiment(configs=[{"a": 1}], **common).method == "list"
    drawn = Experiment(space=SPACE, search={"configs": 5}, seed=9, **common)
    assert drawn.method == "random"
    assert len(make_configs(drawn)) == 5
    with pytest.raises(
        ExperimentError, match=r"space.lr has values without number.*search.configs"
    ):
        Experiment(space=SPACE, **common)


def test_draws_do_not_depend_on_the_hash_seed():
    program = (
        "import mophpc; from mophpc.search.draw import draw;"
        "print(draw({'lr': mophpc.loguniform(1e-4, 1), 'b': mophpc.choice([1, 2])}, 5, seed=4))"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    ]
    assert all(one == other for one, other in pairwise(found))
    assert found[0].count("lr") == 5
