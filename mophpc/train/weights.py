"""A config's final weights as safetensors."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from mophpc.train.task import Task


def save_weights(task: Task, path: Path) -> int:
    """Write `task.model`'s state dict, whole or not at all; return its bytes.

    The file loads with `model.load_state_dict(safetensors.torch.load_file(path))`.
    """
    # safetensors refuses tensors that share storage, and all of ours share the arena.
    tensors = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in task.model.state_dict().items()
        if hasattr(value, "detach")
    }
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            save_file(tensors, scratch)
        except SafetensorError as error:
            raise OSError(f"the weights cannot be written to '{path}': {error}") from error
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        nbytes = scratch.stat().st_size
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return nbytes
