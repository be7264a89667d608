"""State dicts as JSON plus tensors."""

from __future__ import annotations

import enum
import json
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mophpc.errors import StateError
from mophpc.train.tree import Tensors, dtype_of, join, split


def there_and_back(value: Any) -> Any:
    tensors: Tensors = {}
    node = split(value, "state", tensors)
    return join(json.loads(json.dumps(node)), tensors)


def same(a: Any, b: Any) -> bool:
    """Equal in value and in type, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return same(list(a), list(b)) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, deque):
        return a.maxlen == b.maxlen and same(list(a), list(b))
    return a == b


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.sampled_from([torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("meta")]),
    st.builds(np.array, st.lists(st.floats(width=32, allow_nan=False), max_size=3)),
    st.builds(np.float32, st.floats(width=32, allow_nan=False)),
    st.builds(lambda n: np.arange(n * 2).reshape(2, n)[:, ::2], st.integers(0, 4)),
    st.builds(torch.tensor, st.lists(st.integers(0, 9), max_size=3)),
    st.builds(lambda n: torch.full((n,), 0.5, dtype=torch.bfloat16), st.integers(0, 3)),
    st.sets(st.integers()),
    st.frozensets(st.text("ab")),
)
keys = st.one_of(
    st.lists(st.text("abc"), max_size=3, unique=True),
    st.lists(st.integers() | st.tuples(st.integers(), st.text("x")), max_size=3, unique=True),
    st.lists(st.none() | st.floats(allow_nan=False), max_size=3, unique_by=str),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, max_size=3)
    pairs = st.tuples(keys, st.lists(inner, min_size=3, max_size=3))
    return st.one_of(
        some,
        some.map(tuple),
        st.builds(deque, some, st.none() | st.integers(3, 5)),
        pairs.map(lambda p: dict(zip(*p, strict=False))),
        pairs.map(lambda p: OrderedDict(zip(*p, strict=False))),
        st.lists(st.integers(0, 3)).map(Counter),
    )


@given(st.recursive(plain, containers, max_leaves=12))
def test_a_value_comes_back_as_it_was(value):
    assert same(there_and_back(value), value)


@pytest.mark.parametrize("value", [float("inf"), -0.0, 1e-323, 0.1 + 0.2, 10**30])
def test_numbers_come_back_exactly(value):
    assert repr(there_and_back(value)) == repr(value)
    assert str(there_and_back(float("nan"))) == "nan"


class Level(enum.IntEnum):
    HIGH = 3


class Own(dict):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Level.HIGH, 3),
        (Own(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (torch.Size([2, 3]), (2, 3)),
        (np.str_("x"), "x"),
    ],
)
def test_types_of_their_own_come_back_as_the_plain_ones(value, expected):
    assert there_and_back(value) == expected
    assert not isinstance(there_and_back(value), Own | Level)


def test_tensors_are_named_by_their_place():
    tensors: Tensors = {}
    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    split({"state": {0: {"step": a}}, "list": [b, (c,)]}, "extras.second", tensors)
    assert {name: t.numel() for name, t in tensors.items()} == {
        "extras.second.state.0.step": 1,
        "extras.second.list.0": 2,
        "extras.second.list.1.0": 3,
    }


def test_a_parameter_comes_back_as_one():
    found = there_and_back({"w": torch.nn.Parameter(torch.ones(2))})
    assert isinstance(found["w"], torch.nn.Parameter)


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        print,
        range(3),
        Pair(1, 2),
        torch.nn.Linear(1, 1),
        torch.Generator(),
        np.array([object()]),
        enum.Enum("Kind", "A").A,
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_carried_is_named_with_its_place(value):
    with pytest.raises(StateError, match=r"'state\.deep\.0', which cannot hop"):
        split({"deep": [value]}, "state", {})


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(StateError, match=r"both called 's\.1'"):
        split({1: torch.ones(1), "1": torch.ones(1)}, "s", {})


def test_a_tensor_as_a_key_is_refused():
    with pytest.raises(StateError, match=r"a tensor as a key at 's\.a'"):
        split({"a": {torch.ones(1): 1}}, "s", {})


def test_a_missing_tensor_and_an_unknown_kind_are_refused():
    node = split([torch.ones(1)], "s", {})
    with pytest.raises(StateError, match=r"tensor 's\.0' is missing"):
        join(node, {})
    with pytest.raises(StateError, match="unknown kind of value 'pickle'"):
        join({"pickle": "gASV"}, {})
    with pytest.raises(StateError, match="'nn' is not a torch dtype"):
        dtype_of("nn")
