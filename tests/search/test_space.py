"""From a space or a list to configs."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mophpc.experiment import Experiment
from mophpc.search import make_configs


def experiment(**settings: Any) -> Experiment:
    return Experiment(build="m:build", data="s", epochs=1, **settings)


def test_a_space_gives_every_combination_and_the_last_changes_fastest():
    configs = make_configs(experiment(space={"arch": ["mlp", "cnn"], "lr": [0.1, 1e-5]}))
    assert [dict(c.values) for c in configs] == [
        {"arch": "mlp", "lr": 0.1},
        {"arch": "mlp", "lr": 1e-5},
        {"arch": "cnn", "lr": 0.1},
        {"arch": "cnn", "lr": 1e-5},
    ]
    assert [c.name for c in configs][1:3] == ["c001-arch=mlp,lr=1e-05", "c002-arch=cnn,lr=0.1"]
    assert [c.config_id for c in configs] == [0, 1, 2, 3]


def test_only_what_varies_is_in_a_name():
    configs = make_configs(experiment(space={"depth": [3], "lr": [0.1, 0.2]}))
    assert [str(c) for c in configs] == ["c000-lr=0.1", "c001-lr=0.2"]
    assert configs[0].values["depth"] == 3
    assert make_configs(experiment(space={"lr": [0.1]}))[0].name == "c000"


def test_a_list_of_configs_is_taken_as_it_is():
    rows = [{"lr": 0.1, "arch": "a"}, {"lr": 0.1, "width": 8}, {"lr": 0.1}]
    configs = make_configs(experiment(configs=rows))
    assert [dict(c.values) for c in configs] == rows
    assert [c.name for c in configs] == ["c000-arch=a", "c001-width=8", "c002"]


def test_types_of_values_stay_as_they_are():
    values = [1, 1.0, True, "1"]
    configs = make_configs(experiment(space={"v": values}))
    assert [type(c.values["v"]) for c in configs] == [int, float, bool, str]


names = st.text("abcAB_", min_size=1, max_size=4)
values = st.one_of(
    st.integers(),
    st.booleans(),
    st.text(max_size=90),
    st.floats(allow_nan=False, allow_infinity=False),
)
spaces = st.dictionaries(
    names,
    st.lists(values, min_size=1, max_size=4, unique_by=lambda v: (type(v), v)),
    min_size=1,
    max_size=4,
)


@given(spaces)
def test_names_are_unique_and_fit_for_files(space):
    configs = make_configs(experiment(space=space))
    total = 1
    for own in space.values():
        total *= len(own)
    assert len(configs) == total
    assert len({c.name for c in configs}) == len({c.name.lower() for c in configs}) == total
    for config in configs:
        assert len(config.name) < 100
        assert "/" not in config.name
        assert config.name.isprintable()
        assert not set(config.name) & set(' \\:*?"<>|')


def test_many_configs_have_ids_of_equal_length():
    configs = make_configs(experiment(space={"a": list(range(40)), "b": list(range(40))}))
    assert configs[7].name.startswith("c0007-")
    assert configs[-1].name.startswith("c1599-")
