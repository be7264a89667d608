"""State dicts as JSON plus tensors: what travels beside the arena, without pickle."""

from __future__ import annotations

import base64
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mophpc.errors import StateError

Tensors = dict[str, Tensor]

_MAPPINGS: dict[str, Any] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
_SEQUENCES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def split(value: Any, path: str, tensors: Tensors) -> Any:
    """Return `value` as JSON; its tensors are put into `tensors` under `path` and their keys.

    Plain values, lists, tuples, sets, dicts with any plain keys, Counter, OrderedDict, deque,
    bytes, complex, numpy arrays and scalars, dtypes and devices come back as they were.

    Raises:
        StateError: a value that cannot be carried; the message names where it is.
    """
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value  # float: JSON text from repr() is exact
    if isinstance(value, Tensor):
        if path in tensors:
            raise StateError(f"two tensors of the state are both called '{path}'")
        tensors[path] = value
        return {"tensor": path, "parameter": isinstance(value, torch.nn.Parameter)}
    if type(value) is list:
        return [split(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    for kind, container in _MAPPINGS.items():
        if type(value) is container:
            return {kind: _pairs(value, path, tensors)}
    for kind, container in _SEQUENCES.items():
        if type(value) is container:
            items = sorted(value, key=repr) if kind != "tuple" else value
            return {kind: [split(v, f"{path}.{i}", tensors) for i, v in enumerate(items)]}
    return _split_rare(value, path, tensors)


def _pairs(value: Mapping[Any, Any], path: str, tensors: Tensors) -> list[Any]:
    in_keys: Tensors = {}
    pairs = [[split(k, path, in_keys), split(v, f"{path}.{k}", tensors)] for k, v in value.items()]
    if in_keys:
        raise StateError(f"the state has a tensor as a key at '{path}', which cannot hop")
    return pairs


def _split_rare(value: Any, path: str, tensors: Tensors) -> Any:
    if isinstance(value, deque):
        items = [split(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
        return {"deque": [value.maxlen, items]}
    if isinstance(value, np.ndarray | np.generic) and not np.asarray(value).dtype.hasobject:
        array = np.asarray(value)
        raw = base64.b64encode(array.tobytes()).decode()
        return {"numpy": [array.dtype.str, list(array.shape), raw, isinstance(value, np.generic)]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.Size):
        return {"tuple": list(value)}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    # A dict or number of a type of its own is carried as the plain one; anything else would need
    # code to come back, which is what pickle is for and why we do not use it.
    if isinstance(value, Mapping):
        return split(dict(value), path, tensors)
    if isinstance(value, int | float):
        return split(int(value) if isinstance(value, int) else float(value), path, tensors)
    raise StateError(
        f"the state holds a {type(value).__name__} at '{path}', which cannot hop; keep numbers, "
        f"strings, lists, dicts, tensors and numpy arrays in a state_dict"
    )


def join(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `split` was given, with tensors taken from `tensors`.

    Raises:
        StateError: a tensor is missing.
    """
    if isinstance(node, list):
        return [join(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    (kind, value), *_ = node.items()
    if kind == "tensor":
        if value not in tensors:
            raise StateError(f"tensor '{value}' is missing from the state")
        return torch.nn.Parameter(tensors[value]) if node["parameter"] else tensors[value]
    if kind in _MAPPINGS:
        return _MAPPINGS[kind]({join(k, tensors): join(v, tensors) for k, v in value})
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](join(v, tensors) for v in value)
    return _join_rare(kind, value, tensors)


def _join_rare(kind: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if kind == "deque":
        return deque((join(v, tensors) for v in value[1]), maxlen=value[0])
    if kind == "numpy":
        dtype, shape, raw, scalar = value
        array = np.frombuffer(base64.b64decode(raw), dtype=np.dtype(dtype)).reshape(shape).copy()
        return array[()] if scalar else array
    if kind == "bytes":
        return base64.b64decode(value)
    if kind == "dtype":
        return dtype_of(value)
    if kind == "device":
        return torch.device(value)
    if kind == "complex":
        return complex(*value)
    raise StateError(f"the state holds an unknown kind of value '{kind}'")


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without the `torch.`."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of that name.

    Raises:
        StateError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise StateError(f"'{name}' is not a torch dtype")
    return dtype
