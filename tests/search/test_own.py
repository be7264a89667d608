"""Methods of the user's own, and what is said of mistakes in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import SPACE, experiment, rides

import mophpc
from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment, load_experiment
from mophpc.search import Brief, Continue, Copy, Result, Start, Stop, make_method, make_rows
from mophpc.search.checked import Checked, Shape

SHIPPED = Path(__file__).parents[2] / "launch" / "experiments"


class Half:
    """Is given as itself."""

    def __init__(self, brief):
        self.brief = brief
        self.begun = False

    def ask(self, room):
        if self.begun:
            return []
        self.begun = True
        return [Start(row, self.brief.epochs) for row in self.brief.draw(self.brief.options["n"])]

    def tell(self, result):
        return []


def flat(values, epochs):
    return 1.0


def test_a_class_can_be_given_from_python_and_the_experiment_comes_back():
    made = experiment(Half, options={"n": 3})
    assert made.search.method == f"{__file__}:Half"
    assert [(ride.status, ride.epochs) for ride in rides(made)] == [("done", 9)] * 3
    record = {**made.model_dump(exclude_none=True), "configs": []}
    assert Experiment.model_validate(record) == made


def test_the_brief_holds_what_the_experiment_says():
    made = experiment(Half, options={"n": 3, "deep": {"a": [1, 2.0, "x"]}}, seed=5)
    brief = make_method(made, 6)._method._method.brief
    assert isinstance(brief, Brief)
    assert (dict(brief.space), brief.epochs, brief.seed, brief.room) == (SPACE, 9, 5, 6)
    assert brief.options == {"n": 3, "deep": {"a": [1, 2.0, "x"]}}


def test_draws_are_those_of_random_search_and_never_end():
    made = experiment(Half, options={"n": 5})
    rows = [dict(ride.values) for ride in rides(made)]
    assert rows == make_rows(experiment("random", configs=5))
    assert made.sampler == "random"
    assert experiment(Half, space={"a": [1, 2]}, options={"n": 3}).sampler == "grid"
    grid = rides(experiment(Half, space={"a": [1, 2]}, options={"n": 3}), score=flat)
    assert [ride.values for ride in grid] == [{"a": 1}, {"a": 2}]


def test_draws_may_come_from_optuna_which_learns_the_scores(monkeypatch):
    pytest.importorskip("optuna")
    from mophpc.search.samplers import OptunaSource

    learnt = []
    monkeypatch.setattr(OptunaSource, "learn", lambda self, *given: learnt.append(given))
    found = rides(experiment(Half, sampler="tpe", options={"n": 4}), order=7)
    assert sorted(learnt) == [(i, ride.score) for i, ride in enumerate(found)]


def test_listed_configs_can_be_drawn_too():
    made = Experiment(
        build="m:b", data="s", epochs=2, configs=[{"a": 1}, {"b": 2}],
        search={"method": Half, "options": {"n": 9}},
    )  # fmt: skip
    assert [dict(ride.values) for ride in rides(made, score=flat)] == [{"a": 1}, {"b": 2}]


def test_the_shipped_one_halves_after_every_epoch():
    made = load_experiment(SHIPPED / "digits_own.toml")
    for order in range(5):
        found = rides(made, order=order, score=lambda values, epochs: values["lr"])
        assert sorted(ride.epochs for ride in found) == [1] * 8 + [2] * 4 + [3] * 2 + [4, 5]
        best = min(found, key=lambda ride: ride.values["lr"])
        assert best.status == "done"

    def falling(values, epochs):
        return math.inf if values["lr"] > 0.01 and epochs == 2 else values["lr"]

    found = rides(made, score=falling)
    assert {ride.status for ride in found} <= {"done", "stopped", "diverged"}


def test_the_one_in_the_readme_does_as_it_says(tmp_path):
    text = (SHIPPED.parents[1] / "README.md").read_text()
    (code,) = [part for part in text.split("```") if part.startswith("python\n# halves.py")]
    (tmp_path / "halves.py").write_text(code.removeprefix("python\n"))
    made = experiment(f"{tmp_path}/halves.py:Halves", epochs=5)
    for order in range(5):
        found = rides(made, order=order, score=lambda values, epochs: values["lr"])
        assert sorted(ride.epochs for ride in found) == [1] * 8 + [2] * 4 + [3] * 2 + [4, 5]
        assert min(found, key=lambda ride: ride.values["lr"]).status == "done"


def test_a_file_beside_the_experiment_is_found(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def make(brief):\n    return Nothing()\n" + NOTHING)
    (tmp_path / "e.toml").write_text(
        'build = "mine.py:make"\nepochs = 2\ndata = "s"\nspace.a = [1]\n'
        'search.method = "mine.py:make"\n'
    )
    monkeypatch.chdir("/")
    made = load_experiment(tmp_path / "e.toml")
    assert make_method(made, 1).ask(1) == []
    assert made.resolved({})["search"]["method"] == f"{tmp_path}/mine.py:make"


NOTHING = """
class Nothing:
    def ask(self, room):
        return []
    def tell(self, result):
        return []
"""


def failing(brief):
    raise KeyError("x")


def empty(brief):
    return Nothing()


class Nothing:
    pass


def without_brief():
    pass


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (failing, r"search.method '.*:failing' raised KeyError: 'x'; it is called with one arg"),
        (empty, r"search.method '.*:empty' made a Nothing, which lacks ask and tell; it needs "),
        (without_brief, r"raised TypeError: .*takes 0 positional.*a mophpc.search.Brief"),
        ("nowhere.py:Name", r"there is no file '.*nowhere.py'"),
        (
            f"{__file__}:Missing",
            "has no function 'Missing'; it has Half, Nothing, Puppet",
        ),
    ],
)
def test_a_method_that_cannot_be_made_is_named(method, said):
    with pytest.raises(ExperimentError, match=said):
        make_method(experiment(method), 2)


def test_a_method_without_a_name_is_refused():
    with pytest.raises(ExperimentError, match="lambda>'; it must be a function at the top"):
        experiment(lambda brief: None)


class Puppet:
    """Says what it is told to say."""

    def __init__(self, starts: Any, decisions: Any = ()) -> None:
        self.starts, self.decisions = starts, decisions

    def ask(self, room):
        return self.starts(room) if callable(self.starts) else self.starts

    def tell(self, result):
        return self.decisions(result) if callable(self.decisions) else self.decisions


ROW = {"lr": 0.5, "tie": 1}
DEEP = {"arch": mophpc.choice(["a", "b"]), "k": mophpc.choice([1], when={"arch": "a"})}


def checked(starts: Any, decisions: Any = (), space: Any = SPACE) -> Checked:
    return Checked(Puppet(starts, decisions), 9, Shape(space), "own")


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        (None, "own: ask returned a NoneType; allowed: a list of Start"),
        ([ROW], "own: ask returned a dict; allowed: a list of Start"),
        ([Start(ROW, 10)], "own: ask returned epochs = 10; allowed: 1 to 9"),
        ([Start(ROW, 0)], "own: ask returned epochs = 0; allowed: 1 to 9"),
        ([Start(ROW, 1.5)], "own: ask returned epochs = 1.5; allowed: 1 to 9"),
        ([Start(ROW, True)], "own: ask returned epochs = True; allowed: 1 to 9"),
        ([Start(ROW, 5, 5)], "own: ask returned then = 5; allowed: 0 to 4, the epochs left"),
        ([Start(ROW, 5, 0, "a")], "own: ask returned group = 'a'; allowed: an integer"),
        ([Start([1], 5)], "own: ask returned values = [1]; allowed: a mapping of hyperparameters"),
        ([Start({"lr": 0.5}, 1)], "own: ask returned a config that lacks 'tie'"),
        ([Start(ROW | {"x": 1}, 1)], "own: ask returned a config that has 'x'; allowed: lr, tie"),
        (
            [Start(ROW | {"lr": [1]}, 1)],
            "own: ask returned lr = [1]; allowed: a boolean, integer, float or string",
        ),
        (lambda room: 1 / 0, "own: ask raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_ask_must_not_return_is_named(starts, said):
    with pytest.raises(ExperimentError) as caught:
        checked(starts).ask(1)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("decisions", "said"),
    [
        (None, "own: tell returned a NoneType; allowed: a list of Continue, Copy or Stop"),
        (Stop(0), "own: tell returned a Stop; allowed: a list of Continue, Copy or Stop"),
        ([0], "own: tell returned an int; allowed: a list of Continue, Copy or Stop"),
        (
            [Continue(0, 2)],
            "own: tell returned epochs = 2 for config 0; allowed: 3 to 9, since it has made 2",
        ),
        (
            [Continue(0, 10)],
            "own: tell returned epochs = 10 for config 0; allowed: 3 to 9, since it has made 2",
        ),
        (
            [Continue(0, 9, 1)],
            "own: tell returned then = 1 for config 0; allowed: 0 to 0, the epochs left",
        ),
        ([Stop(1)], "own: tell returned Stop(config_id=1); allowed: a config that waits (0)"),
        (
            [Stop(7)],
            "own: tell returned Stop(config_id=7); allowed: the id of a config (there are 2, "
            "from 0)",
        ),
        (
            [Stop(0), Continue(0, 3)],
            "own: tell returned Continue(config_id=0, epochs=3, then=0); allowed: one decision on "
            "a config",
        ),
        (
            [Copy(0, 1, ROW, 5)],
            f"own: tell returned {Copy(0, 1, ROW, 5)}; allowed: a config that waits (0)",
        ),
        (
            [Copy(0, 0, ROW, 5)],
            f"own: tell returned {Copy(0, 0, ROW, 5)}; allowed: the copy of another config",
        ),
        (lambda result: [].pop(), "own: tell raised IndexError: pop from empty list"),
    ],
)
def test_what_tell_must_not_return_is_named(decisions, said):
    method = checked([Start(ROW, 2), Start(ROW, 2)], decisions)
    method.ask(1)
    with pytest.raises(ExperimentError) as caught:
        method.tell(Result(0, 2, 1.0))
    assert str(caught.value) == said


def test_a_copy_has_the_epochs_of_its_source_and_its_own_values():
    said: list[Any] = []
    method = checked([Start(ROW, 4), Start(ROW, 2)], lambda result: said)
    method.ask(1)
    method.tell(Result(0, 4, 1.0))
    said = [Copy(1, 0, {"lr": 0.1}, 6), Stop(0)]
    with pytest.raises(ExperimentError, match="a config that lacks 'tie'"):
        method.tell(Result(1, 2, 2.0))
    said = [Stop(0), Copy(1, 0, ROW, 4)]
    with pytest.raises(
        ExperimentError, match="epochs = 4 for config 1, a copy of config 0; allowed: 5 to 9, s"
    ):
        method.tell(Result(1, 2, 2.0))
    said = [Stop(0), Copy(1, 0, ROW, 5)]
    assert method.tell(Result(1, 2, 2.0)) == said
    said = [Continue(1, 5)]
    with pytest.raises(
        ExperimentError, match="epochs = 5 for config 1; allowed: 6 to 9, since it has made 5"
    ):
        method.tell(Result(1, 5, 2.0))


def test_conditions_of_the_space_are_kept():
    with pytest.raises(ExperimentError, match=r"'k', which exists only when \{'arch': 'a'\}"):
        checked([Start({"arch": "b", "k": 1}, 1)], space=DEEP).ask(1)
    with pytest.raises(ExperimentError, match="lacks 'k'"):
        checked([Start({"arch": "a"}, 1)], space=DEEP).ask(1)
    assert len(checked([Start({"arch": "b"}, 1)], space=DEEP).ask(1)) == 1


def test_numbers_of_numpy_become_pythons():
    row = {"lr": np.float64(0.5), "tie": np.int64(2)}
    (start,) = checked([Start(row, 1)]).ask(1)
    assert [type(value) for value in start.values.values()] == [float, int]


def test_values_are_finite_numbers():
    with pytest.raises(ExperimentError, match="own: ask returned lr = nan; allowed: finite num"):
        checked([Start(ROW | {"lr": math.nan}, 1)]).ask(1)


def test_integers_of_numpy_are_integers():
    method = checked([Start(ROW, np.int64(2), np.int32(1))], [Continue(np.int64(0), np.int64(3))])
    (start,) = method.ask(1)
    assert [type(number) for number in (start.epochs, start.then)] == [int, int]
    (decision,) = method.tell(Result(0, 2, 1.0))
    assert [type(number) for number in (decision.config_id, decision.epochs)] == [int, int]


def test_whatever_a_method_raises_is_said():
    def interrupt(given):
        raise KeyboardInterrupt

    with pytest.raises(ExperimentError, match="own: ask raised KeyboardInterrupt"):
        checked(interrupt).ask(1)
    method = checked([Start(ROW, 2)], interrupt)
    method.ask(1)
    with pytest.raises(ExperimentError, match="own: tell raised KeyboardInterrupt"):
        method.tell(Result(0, 2, 1.0))


def test_no_more_is_drawn_and_started_than_can_be_told_apart():
    made = make_method(experiment(Half, options={"n": 100_000}), 2)
    with pytest.raises(ExperimentError, match="asked for 100000 configs; allowed: 0 to 32768"):
        made.ask(2)
    method = checked([Start(ROW, 1)] * 20_000)
    method.ask(1)
    with pytest.raises(ExperimentError, match="ask returned config 40000; allowed: 32768 configs"):
        method.ask(1)


def test_a_config_that_is_over_is_not_decided_on():
    method = checked([Start(ROW, 9)], [Stop(0)])
    method.ask(1)
    with pytest.raises(ExperimentError, match=r"a config that waits \(none\)"):
        method.tell(Result(0, 9, 1.0, is_over=True))
