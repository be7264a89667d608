"""A case of each kind of `benchmarks/faults_fuzz.py`, which has as many as one likes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(300)  # the world is made first, by a run and half of one
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KINDS = (
    *("experiment", "store", "states", "journal", "metrics", "metrics of an ended run"),
    *("results", "weights", "weights of a cut run", "experiment of a run", "status", "places"),
    *("plan", "plan of a cut run", "costs", "events", "links"),
)
FOUND = (
    ("results", 650),  # a config_id that is a word
    ("results", 11447729883),  # damaged twice
    ("journal", 1000000),  # no whole line
)
"""Cases that were bad once."""


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    """The benchmark's cases, and a world in which they are carried out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("fuzz_cases")


@pytest.fixture(scope="module")
def world(fuzz: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store, a run that has ended, and one that was cut off."""
    return fuzz.World(tmp_path_factory.mktemp("damaged") / "a" / "b")


def test_every_kind_has_a_case(fuzz: Any) -> None:
    assert tuple(fuzz.KINDS) == KINDS


@pytest.mark.parametrize(("kind", "number"), [*((kind, 5) for kind in KINDS), *FOUND])
def test_damage_is_named_or_does_no_harm(fuzz: Any, world: Any, kind: str, number: int) -> None:
    outcome = fuzz.case(world, kind, number)
    assert not outcome.is_bad, outcome


def test_what_is_bad_is_seen(fuzz: Any, world: Any) -> None:
    def said(status: int, err: str, raised: str = "", *, hangs: bool = False) -> str:
        end = fuzz.Said(status, "", err, raised, hangs)
        return str(fuzz.judge(world, end, lambda *_: "other weights"))

    assert said(2, "mophpc: it is damaged; restore it") == "refused"
    assert said(0, "") == "wrong success: other weights"
    assert said(2, "mophpc: one\nmophpc: two") == "not one sentence but 2"
    assert said(1, "mophpc: rank 0 of 2: KeyError: 'x'") == "an internal error"
    assert said(1, "Traceback (most recent call last):") == "traceback"
    assert said(0, "", "KeyError: 'x'") == "raised KeyError: 'x'"
    assert said(0, "", hangs=True) == "hang"
    (world.outside / "new").touch()
    assert said(2, "mophpc: it is damaged") == "outside: files outside were changed"
    (world.root / "spilt").touch()
    assert said(2, "mophpc: it is damaged") == "outside: there is spilt now"
    (world.root / "spilt").unlink()
