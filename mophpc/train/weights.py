"""A config's weights as safetensors."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from mophpc.train.task import Task
from mophpc.weights_file import KEY, UNSET, seal


class Weights:
    """A copy of `task.model`'s state dict, on the host."""

    def __init__(self, task: Task) -> None:
        # safetensors refuses tensors that share storage, and all of ours share the arena.
        self._tensors = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in task.model.state_dict().items()
            if hasattr(value, "detach")
        }

    def write(self, path: Path) -> int:
        """Write the weights, whole or not at all; return the bytes written.

        The file loads with `model.load_state_dict(safetensors.torch.load_file(path))`,
        and `mophpc.weights_file.check_weights` finds damage.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.unlink(missing_ok=True)  # never through a link that somebody has put there
        try:
            try:
                save_file(self._tensors, scratch, metadata={KEY: UNSET})
            except SafetensorError as error:
                raise OSError(str(error)) from error
            with scratch.open("rb+") as file:
                seal(file)
                file.flush()
                os.fsync(file.fileno())
            nbytes = scratch.stat().st_size
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        return nbytes
