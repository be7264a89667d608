"""The GPUs of a rank."""

from __future__ import annotations


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
