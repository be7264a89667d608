"""The settings of a search: which fit each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import mophpc
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment, load_experiment
from mophpc.search_settings import METHODS, OPTUNA, Search

NUMBERS = {"lr": mophpc.uniform(0, 1)}
CHOICES = {"a": mophpc.choice([1, 2])}
LISTED = [{"a": 1}, {"a": 2}, {"a": 3}]


@pytest.mark.parametrize(
    ("settings", "method", "sampler"),
    [
        ({"configs": LISTED}, "list", "list"),
        ({"space": CHOICES}, "grid", "grid"),
        ({"search_configs": 3}, "random", "random"),
        ({"method": "tpe", "search_configs": 3}, "tpe", "tpe"),
        ({"method": "QMCSampler", "search_configs": 3}, "QMCSampler", "QMCSampler"),
        ({"method": "halving", "search_configs": 9}, "halving", "random"),
        ({"method": "halving", "space": CHOICES}, "halving", "grid"),
        ({"method": "halving", "configs": LISTED}, "halving", "list"),
        ({"method": "asha", "search_configs": 9, "sampler": "gp"}, "asha", "gp"),
        ({"method": "hyperband"}, "hyperband", "random"),
        ({"method": "hyperband", "sampler": "qmc"}, "hyperband", "qmc"),
        ({"method": "population", "search_configs": 9}, "population", "random"),
        ({"method": "a.py:B"}, "a.py:B", "random"),
        ({"method": "a.b:C", "space": CHOICES}, "a.b:C", "grid"),
        ({"method": "a.b:C", "space": CHOICES, "search_configs": 2}, "a.b:C", "random"),
        ({"method": "a.b:C", "configs": LISTED}, "a.b:C", "list"),
    ],
)
def test_what_is_not_said_follows_from_what_is(settings, method, sampler):
    made = _made(settings)
    assert (made.method, made.sampler) == (method, sampler)


def _made(settings: dict[str, Any]) -> Experiment:
    """Two settings are called `configs`."""
    rest = dict(settings)
    search = {"configs": rest.pop("search_configs")} if "search_configs" in rest else {}
    given = {key: rest.pop(key) for key in ("space", "configs", "epochs", "threads") if key in rest}
    if "configs" not in given:
        given.setdefault("space", NUMBERS)
    return Experiment(**{"build": "m:b", "data": "s", "epochs": 9} | given, search=search | rest)


BAD = [
    ({"method": "best"}, "field 'search.method' is 'best'; allowed: 'grid', 'random', 'list', 'ha"),
    ({"method": "a.b:"}, "field 'search.method' is 'a.b:'; allowed: 'grid', "),
    ({"method": 3}, "field 'search.method' is 3; allowed: string"),
    (
        {"sampler": "best"},
        "field 'search.sampler' is 'best'; allowed: 'grid', 'random', 'list', or ",
    ),
    ({"sampler": "asha"}, "field 'search.sampler' is 'asha'; allowed: 'grid', "),
    ({"method": "halving"}, "space.lr has values without number"),
    (
        {"method": "halving", "sampler": "grid", "space": CHOICES, "search_configs": 3},
        'search.sampler is "grid", which takes no search.configs',
    ),
    ({"method": "tpe"}, 'search.method is "tpe", which needs search.configs'),
    ({"method": "asha", "sampler": "gp"}, 'search.sampler is "gp", which needs search.configs'),
    (
        {"method": "random", "sampler": "tpe", "search_configs": 3},
        'search.method is "random", which takes no search.sampler; allowed with halving, hyper',
    ),
    ({"method": "asha", "sampler": "list"}, 'search.sampler is "list", which needs [[configs]]'),
    (
        {"method": "asha", "sampler": "random", "configs": LISTED, "search_configs": 2},
        'search.sampler is "random", which needs a [space]',
    ),
    ({"method": "tpe", "configs": LISTED}, 'search.method is "tpe", which needs a [space]'),
    (
        {"method": "hyperband", "sampler": "grid"},
        'search.method is "hyperband", which draws as many configs as its brackets hold; allowed ',
    ),
    ({"method": "hyperband", "configs": LISTED}, 'search.method is "hyperband", which draws as '),
    (
        {"method": "hyperband", "search_configs": 5},
        'search.method is "hyperband", which takes no search.configs; how many it tries follows ',
    ),
    (
        {"method": "hyperband", "epochs": 2},
        'search.method is "hyperband", whose second rung is at search.min_epochs * search.reduc'
        "tion = 3 epochs, but epochs is 2; give more epochs or lower one of the two",
    ),
    ({"method": "asha", "search_configs": 3, "min_epochs": 4}, 'search.method is "asha", whose '),
    ({"method": "halving", "search_configs": 3, "reduction": 1}, "field 'search.reduction' is 1; "),
    (
        {"reduction": 2, "search_configs": 3},
        'search.reduction is for halving, hyperband, asha, and search.method is "random"',
    ),
    (
        {"quantile": 0.1, "method": "asha", "search_configs": 3},
        'search.quantile is for population, and search.method is "asha"',
    ),
    (
        {"method": "asha", "search_configs": 3, "patience": 2},
        "search.patience is for methods that train each config for all epochs (grid, random, list",
    ),
    ({"method": "halving", "search_configs": 3, "median": 2}, "search.median is for methods that "),
    (
        {"search_configs": 3, "in_flight": 2},
        "search.in_flight is for methods whose configs come one after another (samplers, asha and",
    ),
    (
        {"search_configs": 3, "options": {"a": 1}},
        "search.options is for a method of your own or an Optuna sampler, and search.method is ",
    ),
    (
        {"method": "m:b", "options": {"a": {"b": [None]}}},
        "field 'search.options.a' is {'b': [None]}; allowed: booleans, integers, floats, strings",
    ),
    (
        {"method": "population", "configs": LISTED},
        'search.method is "population", which needs a [space] to explore',
    ),
    (
        {"method": "population", "search_configs": 4, "epochs": 1},
        'search.method is "population", which compares configs every search.interval = 1 epochs; ',
    ),
    (
        {"method": "population", "search_configs": 4, "quantile": 0.7},
        "field 'search.quantile' is 0.7; allowed: 0 < quantile <= 0.5",
    ),
    (
        {"method": "population", "search_configs": 4, "factors": []},
        "field 'search.factors' is []",
    ),
    (
        {"method": "population", "search_configs": 4, "quantile": math.nan},
        "field 'search.quantile' is nan; allowed: 0 < quantile <= 0.5",
    ),
    (
        {"patience": 0, "search_configs": 4},
        "field 'search.patience' is 0; allowed: 1 or more: the epochs in a row that a config may "
        "make without a better score",
    ),
    (
        {"median": True, "search_configs": 4},
        "field 'search.median' is True; allowed: 1 or more: the epochs of grace that a config "
        "makes before it is compared with the others",
    ),
    (
        {"method": "tpe", "search_configs": 4, "options": {"seed": 5}},
        "search.options has 'seed', but a sampler draws from the experiment's seed; say seed = 5 "
        "at the top of the experiment instead",
    ),
    (
        {"method": "asha", "sampler": "QMCSampler", "search_configs": 4, "options": {"seed": 5}},
        "search.options has 'seed'",
    ),
    (
        {"method": "gp", "search_configs": 4, "threads": 2},
        'search.method is "gp", which sets the number of torch\'s threads while it thinks, and '
        "threads is 2; say threads = 1, or take another sampler",
    ),
    (
        {"method": "m:b", "sampler": "GPSampler", "threads": 3},
        'search.sampler is "GPSampler", which sets',
    ),
]


@pytest.mark.parametrize(("settings", "said"), BAD, ids=lambda v: str(v)[:60])
def test_what_does_not_fit_together_is_refused_in_one_sentence(settings, said):
    with pytest.raises(ExperimentError) as caught:
        _made(settings)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "search",
    [
        {"method": "hyperband", "reduction": 2, "min_epochs": 2, "sampler": "qmc"},
        {"method": "asha", "configs": 7, "in_flight": 3},
        {
            "method": "population",
            "configs": 7,
            "interval": 3,
            "quantile": 0.5,
            "factors": [0.5, 2],
            "explore": ["lr"],
        },
        {"method": "tpe", "configs": 7, "patience": 2, "median": 3, "options": {"gamma": {"a": 1}}},
        {"method": "own.py:Mine", "options": {"seed": 3, "deep": [1, 2.5, {"x": True}]}},
        {},
    ],
    ids=str,
)
def test_the_resolved_experiment_can_be_loaded_again_from_anywhere(tmp_path, search):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "nets.py").write_text("def build(config):\n    return config\n")
    space = {"lr": {"loguniform": [0.1, 1.0]}} if search else {"lr": [0.1]}
    raw = {
        "build": "nets.py:build",
        "data": {"store": "s.zarr"},
        "epochs": 9,
        "space": space,
        "search": search,
    }
    (folder / "e.toml").write_text(tomli_w.dumps(raw))
    first = load_experiment(folder / "e.toml")
    (tmp_path / "run.toml").write_text(tomli_w.dumps(first.resolved({})))
    again = load_experiment(tmp_path / "run.toml")
    assert again == first
    if search.get("method") == "own.py:Mine":
        assert again.search.method == f"{folder}/own.py:Mine"


def test_the_readme_names_every_method_setting_and_default():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    section = text.split("\n## Methods\n")[1].split("\n## ")[0]
    fields = Search.model_fields
    for name in {*METHODS, *OPTUNA, *fields} - {"method", "constraint"}:
        assert f"`{name}" in section, name
    for name in ("reduction", "min_epochs", "quantile", "factors"):
        default = fields[name].get_default(call_default_factory=True)
        assert f"`{name} = {default}`" in section
