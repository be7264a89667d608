"""What a user's code keeps beside the state, so that a visit cannot go on elsewhere in its middle.

All that a Task has beside its state is built anew for each visit: a counter in the closure of a
`training_step` begins anew with each visit, and that is right. In a visit's middle it is not. It
cannot be carried, but it can be seen: the values within reach are noted when a visit begins, and a
visit stops only where they are again as they were.
"""

from __future__ import annotations

import random
import sys
import types
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mophpc.train.bind import modules_of
from mophpc.train.task import Task

_MOST_VALUES = 4000
_MOST_ITEMS = 64
"""Of a list or dict that are looked at, beside its length."""
_MOST_DEPTH = 6
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_FOREIGN = frozenset({"torch", "numpy", "mophpc", "torchvision"}) | sys.stdlib_module_names
_MODULE_KEYS = frozenset(vars(nn.Module()))
"""What torch itself keeps in a module; parameters and buffers are state."""

Values = dict[str, object]


def look(task: Task) -> Values:
    """Return what there is within reach of a Task's training, beside its state, by name."""
    return _Look(task).values


def changed(before: Values, task: Task) -> str | None:
    """Return the name of a value that has changed, or None."""
    now = look(task)
    for name in before.keys() | now.keys():
        if name not in before or name not in now or before[name] != now[name]:
            return name
    return None


class _Look:
    def __init__(self, task: Task) -> None:
        self.values: Values = {}
        self._seen: set[int] = {id(task)}
        carried = (task.optimizer, task.lr_scheduler, *task.extras.values())
        self._seen |= {id(part) for part in carried}
        modules = list(modules_of(task))
        for prefix, module in modules:
            for name, part in module.named_modules():
                self._seen.add(id(part))
                self._module(f"{prefix}.{name}" if name else prefix, part)
        for name in ("training_step", "batch_transform", "loss"):
            self._walk(name, getattr(task, name), 0)

    def _module(self, path: str, part: nn.Module) -> None:
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            for hook in hooks.values():
                self._walk(f"{path}'s hook", hook, 1)
        if type(part).__module__.partition(".")[0] == "torch":
            return
        for key, value in vars(part).items():
            if key not in _MODULE_KEYS:
                self._walk(f"{path}.{key}", value, 1)

    def _walk(self, path: str, value: Any, depth: int) -> None:
        if len(self.values) >= _MOST_VALUES:
            return
        if isinstance(value, _PLAIN):
            self.values[path] = repr(value)  # since 1 == 1.0 == True
            return
        if id(value) in self._seen or isinstance(value, type | types.ModuleType | nn.Module):
            return
        self._seen.add(id(value))
        told = _told(value)
        if told is not None:
            self.values[path] = told
        elif depth < _MOST_DEPTH:
            for name, inner in _inside(value):
                self._walk(f"{path}{name}", inner, depth + 1)
            if isinstance(value, list | tuple | set | frozenset | dict | deque):
                self.values[f"{path}'s length"] = len(value)


def _told(value: Any) -> object:
    """Return what tells whether a value has changed; None if what is in it does."""
    if isinstance(value, Tensor):
        return id(value), value.data_ptr(), 0 if value.is_inference() else value._version
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.nbytes <= 1 << 16 else id(value)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if type(value).__module__ == "itertools":
        return repr(value)
    return None


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value refers to, with names."""
    if isinstance(value, Mapping):
        for key in list(value)[:_MOST_ITEMS]:
            yield f"[{key!r}]", value[key]
    elif isinstance(value, list | tuple | deque):
        for index in range(min(len(value), _MOST_ITEMS)):
            yield f"[{index}]", value[index]
    elif isinstance(value, partial):
        yield "", value.func
        yield "'s arguments", (value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield "", value.__func__
        yield "'s self", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _FOREIGN:
        for key, inner in vars(value).items():
            yield f".{key}", inner
        call = vars(type(value)).get("__call__")
        if call is not None:
            yield "", call


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    if (function.__module__ or "").partition(".")[0] in _FOREIGN:
        return
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"'s {name}", cell.cell_contents
        except ValueError:  # it has no value yet
            yield f"'s {name}", None
    for name, value in vars(function).items():
        yield f".{name}", value
    yield "'s defaults", (function.__defaults__, function.__kwdefaults__)
    for name in code.co_names:
        if name in function.__globals__:
            yield f"'s {name}", function.__globals__[name]
