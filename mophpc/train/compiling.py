"""torch.compile for models that are built anew at every visit.

Code that was compiled for one instance of a model serves the next: torch keeps it with the code
of `forward`, guarded by what it depends on (shapes, dtypes, attributes), and not by the instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from mophpc.train.task import Task

MOST_VARIANTS = 4096
"""Architectures, batch sizes and modes that share the code of one `forward`. Beyond torch's own
limit of 8 it would go on without compiling, so that results depended on what came before."""


def compile_models(task: Task) -> None:
    """Let a Task's models run compiled, if it asks for that."""
    if task.compile is False:
        return
    _allow_variants()
    options: dict[str, Any] = dict(task.compile) if isinstance(task.compile, Mapping) else {}
    task.model.compile(dynamic=False, **options)
    if task.eval_model is not None and task.eval_model is not task.model:
        task.eval_model.compile(dynamic=False, **options)


@cache
def _allow_variants() -> None:
    import torch._dynamo

    limits: Any = torch._dynamo.config
    # Names of torch 2.7 and later, and those before.
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(limits, name):
            setattr(limits, name, MOST_VARIANTS)
    for name in ("accumulated_recompile_limit", "accumulated_cache_size_limit"):
        if hasattr(limits, name):
            setattr(limits, name, 64 * MOST_VARIANTS)
    for name in ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit"):
        if hasattr(limits, name):
            setattr(limits, name, True)
