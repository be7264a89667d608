"""The typed settings of an experiment, from TOML and from Python."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import mophpc
from mophpc import Data, Experiment, Objective, Schedule
from mophpc.errors import ExperimentError
from mophpc.experiment import Search, load_experiment

FULL = """
build = "nets.py:build"
epochs = 3
seed = 7
threads = 2

[data]
store = "../rows.zarr"
memory_bytes = 1000
stage = "/local"

[objective]
metric = "accuracy"
mode = "max"

[schedule]
policy = "round-robin"
lookahead = 2

[search]
method = "grid"

[space]
arch = ["mlp", "cnn"]
lr = [0.1, 1]
bias = [true, false]
"""

SMALL = """
build = "nets.py:build"
epochs = 1
data.store = "rows.zarr"
space.lr = [0.1]
"""


def write(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "nets.py").write_text("def build(config):\n    return config\n")
    path = folder / "experiment.toml"
    path.write_text(text)
    return path


def test_a_file_and_a_python_call_mean_the_same(tmp_path):
    folder = tmp_path / "sub"
    path = write(folder, FULL)
    expected = Experiment(
        build=f"{folder}/nets.py:build",
        data=Data(store=f"{tmp_path}/rows.zarr", memory_bytes=1000, stage="/local"),
        epochs=3,
        seed=7,
        threads=2,
        objective=Objective(metric="accuracy", mode="max"),
        schedule=Schedule(policy="round-robin", lookahead=2),
        search=Search(method="grid"),
        space={"arch": ("mlp", "cnn"), "lr": [0.1, 1], "bias": [True, False]},
    )
    assert load_experiment(path) == expected
    assert expected.objective.maximise
    types = [type(v) for v in expected.space["lr"].choice + expected.space["bias"].choice]
    assert types == [float, int, bool, bool]


def build_here(config):
    return config


def test_a_function_and_a_path_may_be_given_from_python(tmp_path):
    made = Experiment(build=build_here, data=tmp_path / "rows.zarr", epochs=1, configs=[{"a": 1}])
    assert made.build == f"{__file__}:build_here"
    assert made.load_build()({"a": 1}) == {"a": 1}
    assert made.data == Data(store=str(tmp_path / "rows.zarr"))
    assert Experiment(build="m:b", data="s", epochs=1, configs=[{"a": 1}]).data.store == "s"


def test_what_is_not_given_has_its_default(tmp_path):
    found = load_experiment(write(tmp_path, SMALL))
    assert (found.seed, found.threads, found.schedule.lookahead) == (0, 1, 3)
    assert found.objective == Objective(metric="valid_loss")
    assert not found.objective.maximise
    assert found.data == Data(store=f"{tmp_path}/rows.zarr")


def test_a_store_may_be_given_in_short_and_is_relative_to_the_file_too(tmp_path):
    found = load_experiment(write(tmp_path, SMALL.replace("data.store", "data")))
    assert found == load_experiment(write(tmp_path, SMALL))


@pytest.mark.parametrize(
    "text", [FULL, SMALL, SMALL.replace("space.lr = [0.1]", "[[configs]]\nlr = 0.1\na = 'x'")]
)
def test_the_resolved_experiment_can_be_loaded_again_from_anywhere(tmp_path, text):
    first = load_experiment(write(tmp_path / "a", text))
    record = first.resolved({"python": "3.11", "store": "abc"})
    elsewhere = tmp_path / "run.toml"
    elsewhere.write_text(tomli_w.dumps(record))
    assert load_experiment(elsewhere) == first
    versions = tomllib.loads(elsewhere.read_text())["versions"]
    assert versions["store"] == "abc"
    assert len(versions["build_sha256"]) == 64


def test_the_resolved_experiment_of_a_call_has_whole_paths(tmp_path, monkeypatch):
    write(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    data = Data(store="rows.zarr", stage="local")
    record = Experiment(build="nets.py:build", data=data, epochs=1, space={"a": [1]}).resolved({})
    assert record["build"] == f"{tmp_path}/nets.py:build"
    assert record["data"] == {"store": f"{tmp_path}/rows.zarr", "stage": f"{tmp_path}/local"}


def test_settings_do_not_change(tmp_path):
    found = load_experiment(write(tmp_path, SMALL))
    with pytest.raises(ValueError, match="frozen"):
        found.epochs = 2


BAD = [
    # Unknown fields come first: a misspelt one is also a missing one.
    ({"epoch": 3}, ["epochs"], "unknown field 'epoch'; allowed here: build, data, epochs, seed"),
    ({"data.stor": "x"}, [], "unknown field 'data.stor'; allowed here: store, memory_bytes, stage"),
    ({"objective.goal": "x"}, [], "unknown field 'objective.goal'; allowed here: metric, mode"),
    ({"schedule.x": 1}, [], "unknown field 'schedule.x'; allowed here: policy, costs"),
    ({"search.x": 1}, [], "unknown field 'search.x'; allowed here: method"),
    ({}, ["epochs"], "field 'epochs' is missing"),
    ({}, ["build"], "field 'build' is missing"),
    ({}, ["data"], "field 'data' is missing"),
    ({"data": {}}, [], "field 'data.store' is missing"),
    ({"epochs": 0}, [], "field 'epochs' is 0; allowed: at least 1"),
    ({"epochs": "3"}, [], "field 'epochs' is '3'; allowed: integer"),
    ({"epochs": 1.5}, [], "field 'epochs' is 1.5; allowed: integer"),
    ({"epochs": True}, [], "field 'epochs' is True; allowed: integer"),
    ({"seed": -1}, [], "field 'seed' is -1; allowed: at least 0"),
    ({"seed": 2**32}, [], "field 'seed' is 4294967296; allowed: less than 4294967296"),
    ({"threads": 0}, [], "field 'threads' is 0; allowed: at least 1"),
    ({"build": 3}, [], "field 'build' is 3; allowed: string"),
    ({"data.store": 3}, [], "field 'data.store' is 3; allowed: string"),
    ({"data": 3}, [], "field 'data' is 3; allowed: a table of fields"),
    ({"data.memory_bytes": 0}, [], "field 'data.memory_bytes' is 0; allowed: at least 1"),
    (
        {"schedule.policy": "best"},
        [],
        "field 'schedule.policy' is 'best'; allowed: 'balanced', 'random' or 'round-robin'",
    ),
    ({"schedule.lookahead": 0}, [], "field 'schedule.lookahead' is 0; allowed: at least 1"),
    ({"faults.hang_s": -1.0}, [], "field 'faults.hang_s' is -1.0; allowed: "),
    ({"objective.mode": "most"}, [], "field 'objective.mode' is 'most'; allowed: 'min' or 'max'"),
    ({"objective.metric": "acc"}, [], "objective: metric 'acc' needs a mode: say mode = \"max\""),
    ({"search.method": "best"}, [], "field 'search.method' is 'best'; allowed: 'grid', 'random'"),
    ({"search.method": "random"}, [], 'search.method is "random", which needs search.configs'),
    (
        {"search.method": "grid", "search.configs": 3},
        [],
        'search.method is "grid", which takes no search.configs',
    ),
    ({"search.configs": 0}, [], "field 'search.configs' is 0; allowed: at least 1"),
    ({"space.lr": {}}, [], "space.lr has nothing; allowed: a list, or a table with one of choice"),
    ({"space.lr": {"uniform": [1, 2], "choice": [1]}}, [], "space.lr has uniform, choice; all"),
    ({"space.lr": {"choice": []}}, [], "field 'space.lr.choice' is []; allowed: a list of at"),
    (
        {"space.lr": {"uniform": [0.5, 0.1]}},
        [],
        "space.lr uniform = [0.5, 0.1]: the lower bound is",
    ),
    ({"space.lr": {"uniform": [1]}}, [], "field 'space.lr.uniform' is [1.0]; allowed: a list of 2"),
    ({"space.lr": {"integer": [1, 2, 3]}}, [], "field 'space.lr.integer' is [1, 2, 3]; allowed: "),
    ({"space.lr": {"loguniform": 3}}, [], "field 'space.lr.loguniform' is 3; allowed: a list of 2"),
    ({"space.lr": [0.1, float("nan")]}, [], "space.lr holds nan; allowed: finite numbers"),
    ({"space.lr": {"choice": [float("inf")]}}, [], "space.lr holds inf; allowed: finite numbers"),
    ({"configs": [{"lr": float("nan")}]}, ["space"], "configs.0.lr holds nan; allowed: finite"),
    (
        {"track.wandb": {"projekt": "x"}},
        [],
        "unknown field 'track.wandb.projekt'; allowed here: project, entity, mode",
    ),
    ({"track.wandb": {"project": ""}}, [], "field 'track.wandb.project' is ''; allowed: text that"),
    (
        {"checkpoints.states": "never"},
        [],
        "field 'checkpoints.states' is 'never'; allowed: 'epoch', 'off', or minutes above 0",
    ),
    ({"checkpoints.states": True}, [], "field 'checkpoints.states' is True; allowed: 'epoch', 'o"),
    ({"checkpoints.states": 0}, [], "field 'checkpoints.states' is 0; allowed: 'epoch', 'off', or"),
    ({"space.lr": {"uniform": ["a", 1]}}, [], "field 'space.lr.uniform.0' is 'a'; allowed: n"),
    ({"space.lr": {"uniform": [0, 1], "step": 0}}, [], "field 'space.lr.step' is 0; allowed: g"),
    (
        {"space.lr": {"uniform": [0, 1], "stp": 1}},
        [],
        "unknown field 'space.lr.stp'; allowed here: when, uniform, step",
    ),
    (
        {"space.lr": {"loguniform": [0, 1]}},
        [],
        "space.lr loguniform = [0.0, 1.0]: the lower bound m",
    ),
    (
        {"space.lr": {"integer": [1.5, 2]}},
        [],
        "field 'space.lr.integer.0' is 1.5; allowed: i",
    ),
    ({"space.lr": {"integer": [3, 2]}}, [], "space.lr integer = [3, 2]: the lower bound is above"),
    (
        {"space.lr": {"uniform": [0, 1]}},
        [],
        "space.lr has values without number, of which",
    ),
    ({"search.method": "list"}, [], 'search.method is "list", which needs [[configs]]'),
    ({"space.lr": []}, [], "field 'space.lr' is []; allowed: a list of at least 1 value"),
    ({"space.lr": 0.1}, [], "field 'space.lr' is 0.1; allowed: list"),
    ({"space.lr": [0.1, 0.1]}, [], "space.lr holds a value twice"),
    ({"space.lr": [[0.1]]}, [], "field 'space.lr.0' is [0.1]; allowed: a boolean, integer, float "),
    ({"space": {"learning rate": [1]}}, [], "field 'space.learning rate' is 'learning rate'; "),
    ({"space": {"1a": [1]}}, [], "field 'space.1a' is '1a'; allowed: a name of letters, digits"),
    ({"space": {}}, [], "there is nothing to try: give a [space] or a list of [[configs]]"),
    ({"configs": [{"lr": 1}]}, [], "give either a [space] or a list of [[configs]], not both"),
    ({"configs": [{"lr": [1]}]}, ["space"], "field 'configs.0.lr' is [1]; allowed: a boolean, in"),
    ({"configs": {"lr": 1}}, ["space"], "field 'configs' is {'lr': 1}; allowed: list"),
]


def settings(changes: dict[str, Any], without: list[str]) -> dict[str, Any]:
    raw = tomllib.loads(SMALL)
    for name in without:
        del raw[name]
    for place, value in changes.items():
        target = raw
        *parents, last = place.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return raw


@pytest.mark.parametrize(("changes", "without", "message"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_field_is_named_in_one_sentence_with_what_is_allowed(
    tmp_path, changes, without, message
):
    path = write(tmp_path, tomli_w.dumps(settings(changes, without)))
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: {message}")
    assert "\n" not in said
    assert "pydantic" not in said
    assert caught.value.exit_status == 2


def test_the_same_is_said_of_a_python_call():
    with pytest.raises(ExperimentError) as caught:
        Experiment(build="m:b", data="s", epochs=0, space={"a": [1]})
    assert str(caught.value) == "field 'epochs' is 0; allowed: at least 1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; give a TOML file"),
        ("epochs = ", "not TOML: "),
        ("a = 1\na = 2\n", "not TOML: "),
        ("", "field '"),
    ],
)
def test_a_file_that_is_none_is_said_so(tmp_path, text, message):
    path = tmp_path / "experiment.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ExperimentError, match=message):
        load_experiment(path)


def test_a_file_that_is_not_text_is_said_so(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ExperimentError, match="not TOML: "):
        load_experiment(path)


def test_a_build_that_is_not_there_is_said_so(tmp_path):
    text = SMALL.replace("nets.py:build", "nets.py:create")
    with pytest.raises(ExperimentError, match=r"has no function 'create'; it has build"):
        load_experiment(write(tmp_path, text)).load_build()


def test_the_experiments_that_are_shipped_can_be_loaded():
    folder = Path(__file__).parent.parent / "launch" / "experiments"
    paths = sorted(folder.glob("*.toml"))
    assert paths
    for path in paths:
        load_experiment(path).load_build()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: mophpc.Search(constraint=lambda _: True), "constraint: constraint is '"),
        (lambda: mophpc.Search(method=3), "field 'method' is 3; allowed: string"),
        (lambda: mophpc.Search(reduktion=3), "unknown field 'reduktion'; allowed here: method, "),
        (lambda: mophpc.Objective(metric="accuracy"), "metric 'accuracy' needs a mode: say mode"),
        (mophpc.Data, "field 'store' is missing"),
        (lambda: mophpc.Device(use="gpu"), "field 'use' is 'gpu'; allowed: "),
        (lambda: mophpc.Schedule(lookahead=0), "field 'lookahead' is 0; allowed: at least 1"),
        (lambda: mophpc.Hop(checksum=1), "field 'checksum' is 1; allowed: boolean"),
        (lambda: mophpc.Faults(silent_s=0.5), "field 'faults.silent_s' is 0.5; allowed: 0, or 3 "),
        (lambda: mophpc.Faults(hang_s=-1), "field 'hang_s' is -1; allowed: "),
        (lambda: mophpc.Signals(also=["SIGX"]), "field 'signals.also"),
        (lambda: mophpc.Checkpoints(states="never"), "field 'checkpoints.states' is 'never'"),
    ],
)
def test_a_mistake_in_a_part_is_one_sentence(make, said):
    with pytest.raises(ExperimentError, match=f"^{re.escape(said)}") as caught:
        make()
    assert "\n" not in str(caught.value)
