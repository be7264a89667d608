"""What a run begins with."""

from __future__ import annotations

import pytest

import mophpc
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment
from mophpc.run.rank0.searching import Searching, begin_search


def nothing_fits(row):
    return False


class Silent:
    """Returns no config."""

    def __init__(self, brief):
        self.brief = brief

    def ask(self, room):
        return []

    def tell(self, result):
        return []


HERE = __file__


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"method": "tpe", "configs": 3, "constraint": nothing_fits},
            f"search.constraint '{HERE}:nothing_fits' allows none of the configs that 'tpe' tried; "
            f"let it allow more, or change the space",
        ),
        (
            {"method": "asha", "sampler": "qmc", "configs": 3, "constraint": nothing_fits},
            f"search.constraint '{HERE}:nothing_fits' allows none of the configs that 'qmc' tried; "
            f"let it allow more, or change the space",
        ),
        (
            {"method": Silent},
            f"search.method '{HERE}:Silent' returned no config to begin with; its ask must return "
            f"at least one",
        ),
        (
            {"method": Silent, "constraint": nothing_fits},
            f"search.method '{HERE}:Silent' returned no config to begin with; its ask must return "
            f"at least one, and search.constraint '{HERE}:nothing_fits' must allow what it draws",
        ),
    ],
    ids=["tpe", "asha", "own", "own and constraint"],
)
def test_why_there_is_nothing_to_begin_with_is_said(search, said):
    if "Silent" not in said:
        pytest.importorskip("optuna")
    made = Experiment(
        build="m:b", data="s", epochs=9, space={"lr": mophpc.uniform(0, 1)}, search=search
    )
    with pytest.raises(ExperimentError) as caught:
        begin_search(made, 2, Searching())
    assert str(caught.value) == said
