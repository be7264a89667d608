"""Hyperparameters that people set by hand."""

from __future__ import annotations

import pytest

import mophpc
from mophpc.errors import RequestError
from mophpc.overrides import added, check_values, cloned, parse_settings


def experiment(**settings) -> mophpc.Experiment:
    given = {"build": "x.py:build", "data": "x.zarr", "epochs": 2, "search": {"configs": 3}}
    return mophpc.Experiment(**given | settings)


SPACE = experiment(
    space={
        "arch": ["mlp", "cnn"],
        "lr": {"loguniform": [1e-4, 1e-1]},
        "dropout": {"uniform": [0.0, 0.5], "step": 0.1},
        "width": {"integer": [64, 512], "when": {"arch": "mlp"}},
        "kernel": {"choice": [3, 5], "when": {"arch": ["cnn"]}},
        "bias": [True, False],
        "batch": [16, 32.5],
    }
)
LIST = experiment(
    search={}, configs=[{"lr": 0.1, "n": 1}, {"lr": 0.2, "n": 2, "note": "a"}, {"lr": 1, "n": 3}]
)
MLP = {"arch": "mlp", "lr": 0.01, "dropout": 0.1, "width": 64, "bias": True, "batch": 16}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=3e-4", 3e-4),
        ("lr = 0.5 ", 0.5),
        ("lr=.5", 0.5),
        ("lr=1.", 1.0),
        ("lr=-.5e3", -500.0),
        ("lr=true", True),
        ("lr=True", "True"),
        ("lr=12", 12),
        ("lr=1_000", 1000),
        ("lr=007", "007"),
        ("lr=cnn", "cnn"),
        ("lr='3'", "3"),
        ('lr="a=b"', "a=b"),
        ("lr=a=b", "a=b"),
        ("lr=", ""),
        ("lr=2026-11-24", "2026-11-24"),
        ("lr=1\nother=2", "1\nother=2"),
        ("lr=1 # no", 1),
    ],
)
def test_a_value_is_one_of_toml_or_a_string(text, value):
    found = parse_settings([text])
    assert found == {"lr": value}
    assert type(found["lr"]) is type(value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["lr"], "--set is 'lr'; allowed: NAME=VALUE, as in --set lr=3e-4"),
        (["=3"], "--set is '=3'; allowed: NAME=VALUE"),
        (["a b=3"], "--set is 'a b=3'; allowed"),
        (["lr=1", "lr=2"], "--set gives 'lr' twice; leave one out"),
        (["lr=[1, 2]"], "--set lr is a list; allowed: a boolean, a number or a string"),
        (["lr={a = 1}"], "--set lr is a table; allowed"),
    ],
)
def test_what_sets_nothing_is_refused(given, said):
    with pytest.raises(RequestError) as found:
        parse_settings(given)
    assert str(found.value).startswith(said)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ({"lr": 0.01, "arch": "cnn", "kernel": 5, "bias": False, "dropout": 0.3}, None),
        ({"lr": 3}, "lr = 3.0 is outside the space: 0.0001 to 0.1"),
        ({"lr": 0.0}, "lr = 0.0 is outside the space: 0.0001 to 0.1"),
        ({"width": 1024}, "width = 1024 is outside the space: 64 to 512"),
        ({"dropout": 0.25}, "dropout = 0.25 is between the steps of the space"),
        ({"dropout": 0.75}, "dropout = 0.75 is outside the space: 0.0 to 0.5"),
        ({"arch": "rnn"}, "arch = 'rnn' is none of those in the space: 'mlp', 'cnn'"),
        ({"kernel": 7}, "kernel = 7 is none of those in the space: 3, 5"),
    ],
)
def test_what_the_space_never_has_is_noted(values, note):
    found, notes = check_values(values, SPACE)
    assert found == values
    assert notes == ([note] if note else [])


def test_whole_numbers_become_numbers_where_these_are_meant():
    found, _ = check_values({"lr": 1, "batch": 16}, SPACE)
    assert [type(value) for value in found.values()] == [float, int]
    found, _ = check_values({"lr": 1, "n": 4, "note": "x"}, LIST)
    assert [type(value) for value in found.values()] == [int, int, str]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"lrr": 1.0},
            "the run has no hyperparameter 'lrr'; allowed: arch, batch, bias, dropout, kernel, lr, "
            "width",
        ),
        ({"lr": "high"}, "lr is 'high'; allowed: a number"),
        ({"lr": True}, "lr is true; allowed: a number"),
        ({"lr": float("inf")}, "lr is inf; allowed: a number"),
        ({"lr": 10**400}, "lr is 1" + 38 * "0" + "…; allowed: a number"),
        ({"width": 64.0}, "width is 64.0; allowed: an integer"),
        ({"bias": 1}, "bias is 1; allowed: true or false"),
        ({"batch": "16"}, "batch is '16'; allowed: an integer or a number"),
        ({"arch": 3}, "arch is 3; allowed: a string, as in --set arch='\"3\"'"),
    ],
)
def test_unknown_names_and_wrong_types_are_refused(values, said):
    with pytest.raises(RequestError) as found:
        check_values(values, SPACE)
    assert str(found.value).startswith(said)


def test_a_clone_has_what_its_original_has_but_for_the_changes():
    assert cloned(MLP, {"lr": 1}, SPACE) == MLP | {"lr": 1.0}
    other = cloned(MLP, {"arch": "cnn", "kernel": 3}, SPACE)
    assert other == {key: MLP[key] for key in MLP if key != "width"} | {"arch": "cnn", "kernel": 3}
    assert list(other) == ["arch", "lr", "dropout", "kernel", "bias", "batch"]
    assert cloned({"lr": 0.1, "n": 1}, {"note": "b"}, LIST) == {"lr": 0.1, "n": 1, "note": "b"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "cnn"}, "a value is missing for kernel; add --set kernel=..."),
        ({"kernel": 3}, "'kernel' has no effect here: it exists only with arch = 'cnn'"),
        ({"x": 3}, "the run has no hyperparameter 'x'"),
    ],
)
def test_a_clone_that_cannot_be_is_refused(changes, said):
    with pytest.raises(RequestError) as found:
        cloned(MLP, changes, SPACE)
    assert str(found.value).startswith(said)


def test_a_new_config_must_be_whole():
    assert added(MLP, SPACE) == MLP
    assert added({"n": 7, "lr": 0.3}, LIST) == {"n": 7, "lr": 0.3}
    with pytest.raises(RequestError) as found:
        added({"arch": "mlp", "lr": 0.1, "bias": True, "batch": 16}, SPACE)
    assert str(found.value) == (
        "a value is missing for dropout, width; add --set dropout=... --set width=..."
    )
    with pytest.raises(RequestError, match="missing for n; add --set n="):
        added({"lr": 0.3}, LIST)
