"""Other hyperparameters for a state that was trained with some: what changes in its optimizer.

Where the optimizers that `build` makes from the old hyperparameters and from the new ones differ,
the state is changed alike: a number is multiplied by how many times as large the new one is, so
that a learning rate keeps its place in its schedule, and anything else is replaced. The numbers of
an lr scheduler, such as its lowest rate, are treated in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mophpc.errors import ExperimentError
from mophpc.train.task import Task


def explore(task: Task, old: Task, new: Task) -> None:
    """Change the optimizer and the lr scheduler of a Task.

    Args:
        task: bound to the state.
        old: as `build` makes it from the hyperparameters that the state was trained with.
        new: as `build` makes it from those that it is trained with from now on.

    Raises:
        ExperimentError: the optimizers have different parameter groups.
    """
    groups = task.optimizer.param_groups
    if not len(groups) == len(old.optimizer.param_groups) == len(new.optimizer.param_groups):
        raise ExperimentError(
            f"the new hyperparameters make an optimizer of {len(new.optimizer.param_groups)} "
            f"parameter groups, and the state has {len(groups)}"
        )
    changes = zip(groups, old.optimizer.param_groups, new.optimizer.param_groups, strict=True)
    for group, before, after in changes:
        for key in after:
            if key != "params" and key in before and _differ(before[key], after[key]):
                group[key] = changed(group[key], before[key], after[key])
    schedulers = (task.lr_scheduler, old.lr_scheduler, new.lr_scheduler)
    for own, was, now in zip(*map(_schedulers, schedulers), strict=True):
        for key, after in vars(now).items():
            numbers = [getattr(part, key, None) for part in (own, was)] + [after]
            if all(map(_is_numeric, numbers)) and _differ(numbers[1], after):
                setattr(own, key, changed(*numbers))


def changed(value: Any, before: Any, after: Any) -> Any:
    """Return what becomes of a value of the state, where build's changed from before to after."""
    if all(_is_number(item) for item in (value, before, after)) and before:
        return value * (after / before)
    lists = [item for item in (value, before, after) if isinstance(item, list)]
    if len(lists) == 3 and len({len(item) for item in lists}) == 1:
        return [changed(*items) for items in zip(*lists, strict=True)]
    return after


def _is_numeric(value: Any) -> bool:
    """Whether it is a number, or a list of numbers."""
    return _is_number(value) or (isinstance(value, list) and all(map(_is_number, value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _differ(before: Any, after: Any) -> bool:
    return repr(before) != repr(after)


def _schedulers(scheduler: Any) -> Iterator[Any]:
    """Yield a scheduler and those that it is made of."""
    if scheduler is not None:
        yield scheduler
        for part in getattr(scheduler, "_schedulers", ()):
            yield from _schedulers(part)
