"""Where configs are trained: the CPU, a GPU, or a stand-in for one; all that is known of GPUs.

Each rank has one device, chosen by its number on its host before MPI starts: an MPI that can send
from GPU memory looks at the current device when it is initialised.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mophpc.errors import LaunchError

ALIGNMENT, DEVICE_ALIGNMENT = 64, 512
"""Of tensors in an arena, bytes: a cache line, and enough for every vector load."""

LOOK_EVERY = 32
"""On a GPU losses are looked at after so many batches and at a visit's end: who looks at each one
waits for the GPU, and the GPU then waits for Python."""


class Copy(Protocol):
    """Bytes on their way between a device and the host."""

    def test(self) -> bool:
        """Return whether they are there."""

    def wait(self) -> None:
        """Return when they are there."""


class Memory(Protocol):
    """The memory of a device that has its own, and copies that go on beside the computation."""

    @property
    def free_bytes(self) -> int:
        """How much more could be allocated now."""

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is in this memory."""

    def pinned(self, nbytes: int) -> Tensor:
        """Return (nbytes,) uint8 on the host, from where and to where copies go in the background.

        The caching allocator of torch rounds large sizes up to a power of two.
        """

    def empty(self, nbytes: int) -> Tensor:
        """Return (nbytes,) uint8 on the device.

        Raises:
            torch.OutOfMemoryError: there is no room.
        """

    def copy_in(self, source: Tensor, target: Tensor | None = None) -> tuple[Tensor, Copy]:
        """Begin to copy from the host; return the tensor on the device, a new one without `target`.

        Nothing that was computed so far may use `target` any more.
        """

    def copy_out(self, source: Tensor, target: Tensor) -> Copy:
        """Begin to copy to the host what has been computed so far."""

    def mark(self) -> Copy:
        """Return what is there when all that was computed so far is."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a rank trains on."""

    kind: str
    """`cpu`, `cuda` or `twin`."""
    where: torch.device
    name: str
    memory: Memory | None = None
    """None: training works on the arenas themselves."""
    identity: str = ""
    """The same for two ranks of a host only where they share a device."""

    @property
    def alignment(self) -> int:
        """Bytes; as the allocator's own, where kernels are chosen by it (cuBLAS's are)."""
        return ALIGNMENT if self.memory is None else DEVICE_ALIGNMENT

    @property
    def look_every(self) -> int:
        """After how many batches losses are looked at."""
        return 1 if self.memory is None else LOOK_EVERY

    def holds(self, tensor: Tensor) -> bool:
        """Whether this device works on a tensor; else it is one that stays on the CPU."""
        return self.memory is None or self.memory.holds(tensor)

    def use(self) -> None:
        """Make it the current device of the calling thread, for MPI too."""
        if self.where.type == "cuda":
            torch.cuda.set_device(self.where)
            torch.cuda.current_stream(self.where).query()  # binds the context to the thread


CPU = Device("cpu", torch.device("cpu"), "CPU")


def choose_device(use: str, indices: Sequence[int], local_rank: int) -> Device:
    """Return the device of a rank, and make it the current one of this thread.

    Args:
        use: `auto` (a GPU where there is one), `cpu`, `cuda` or `twin`.
        indices: GPU of each rank of a host, by local rank, again from the first where there are
            more ranks; empty: one after the other.
        local_rank: the rank's number among those of its host.

    Raises:
        LaunchError: there is no such GPU.
    """
    if use == "twin":
        return Device("twin", torch.device("cpu"), "stand-in for a GPU", Twin())
    if use == "cpu" or (use == "auto" and not torch.cuda.is_available()):
        return CPU
    count = torch.cuda.device_count()
    if count == 0:
        raise LaunchError(
            "device.use is 'cuda', but this rank sees no GPU; ask for GPUs per node "
            "(--gpus-per-node), look at CUDA_VISIBLE_DEVICES, or say device.use = 'cpu'"
        )
    index = indices[local_rank % len(indices)] if indices else local_rank % count
    if index >= count:
        raise LaunchError(
            f"device.indices names GPU {index}, but this rank sees {count}; "
            f"allowed: 0 to {count - 1}"
        )
    where = torch.device("cuda", index)
    torch.cuda.set_device(where)
    facts = torch.cuda.get_device_properties(where)
    identity = str(getattr(facts, "uuid", index))
    return Device("cuda", where, facts.name, Accelerator(where, torch.cuda), identity)


def pattern(memory: Memory, nbytes: int) -> tuple[Any, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Return bytes in a device's memory that differ from place to place, and the same here."""
    numbers = np.arange(nbytes // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = numbers.view(np.uint8)
    source, copied = memory.copy_in(torch.from_numpy(expected))
    copied.wait()
    return source, expected


def be_deterministic() -> None:
    """Let equal inputs give equal bytes on a GPU too; operations that cannot will raise."""
    # cuBLAS reads this when its first handle is made (in its manual, "Results reproducibility").
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False  # only what is wrong would read it
    torch.backends.cudnn.benchmark = False


class _Recorded:
    """A copy on a stream of a GPU."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def test(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()


class Accelerator:
    """The memory of one GPU, with a stream for each direction.

    Args:
        where: the GPU.
        torch_module: torch's for such GPUs, as `torch.cuda`; typed loosely, since it is untyped.
    """

    def __init__(self, where: torch.device, torch_module: Any) -> None:
        self._where = where
        self._module = torch_module
        self._in = torch_module.Stream(where)
        self._out = torch_module.Stream(where)
        self._rows = torch_module.Stream(where)  # they must not queue behind states

    @property
    def free_bytes(self) -> int:
        """See `Memory`."""
        self._module.empty_cache()  # what torch keeps for later is not free for other ranks
        return int(self._module.mem_get_info(self._where)[0])

    def holds(self, tensor: Tensor) -> bool:
        """See `Memory`."""
        return tensor.device.type == self._where.type

    def pinned(self, nbytes: int) -> Tensor:
        """See `Memory`."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def empty(self, nbytes: int) -> Tensor:
        """See `Memory`."""
        found = torch.empty(nbytes, dtype=torch.uint8, device=self._where)
        # The allocator gives away what kernels under way still write: they come first.
        self._in.wait_stream(self._module.current_stream(self._where))
        return found

    def copy_in(self, source: Tensor, target: Tensor | None = None) -> tuple[Tensor, Copy]:
        """See `Memory`."""
        compute = self._module.current_stream(self._where)
        stream = self._rows if target is None else self._in
        with self._module.stream(stream):
            if target is None:
                target = torch.empty_like(source, device=self._where)
                # Or the allocator would give its bytes away while `compute` still reads them.
                target.record_stream(compute)
            target.copy_(source, non_blocking=True)
            return target, self._recorded(stream)

    def copy_out(self, source: Tensor, target: Tensor) -> Copy:
        """See `Memory`."""
        self._out.wait_stream(self._module.current_stream(self._where))
        with self._module.stream(self._out):
            target.copy_(source, non_blocking=True)
            return self._recorded(self._out)

    def mark(self) -> Copy:
        """See `Memory`."""
        return self._recorded(self._module.current_stream(self._where))

    def _recorded(self, stream: Any) -> Copy:
        # Blocking: a thread that waits leaves its core to others.
        event = self._module.Event(blocking=True)
        event.record(stream)
        return _Recorded(event)


class _Later:
    """A copy that a thread makes."""

    def __init__(self, done: Future[Any]) -> None:
        self._done = done

    def test(self) -> bool:
        if self._done.done():
            self._done.result()
        return self._done.done()

    def wait(self) -> None:
        self._done.result()


class Twin:
    """A stand-in for a GPU: CPU memory apart from the arenas', copied to and from by a thread.

    To try staging where there is no GPU. Bytes that are on their way read as garbage, and tensors
    without dimensions stay on the host, as an optimizer's step counts do.

    Args:
        delay_s: how long each copy takes at least.
        capacity_bytes: how much can be allocated.
    """

    GARBAGE = 0xC5

    def __init__(self, delay_s: float = 0.0, capacity_bytes: int = 1 << 62) -> None:
        self._delay_s = delay_s
        self.free_bytes = capacity_bytes
        self._thread = ThreadPoolExecutor(1, "twin")

    def holds(self, tensor: Tensor) -> bool:
        """See `Memory`."""
        return tensor.ndim > 0

    def pinned(self, nbytes: int) -> Tensor:
        """See `Memory`."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def empty(self, nbytes: int) -> Tensor:
        """See `Memory`."""
        if nbytes > self.free_bytes:
            raise torch.OutOfMemoryError(f"{nbytes} bytes do not fit into the stand-in")
        self.free_bytes -= nbytes
        found = torch.full((nbytes,), self.GARBAGE, dtype=torch.uint8)
        weakref.finalize(found, self._give_back, nbytes)
        return found

    def _give_back(self, nbytes: int) -> None:
        self.free_bytes += nbytes

    def copy_in(self, source: Tensor, target: Tensor | None = None) -> tuple[Tensor, Copy]:
        """See `Memory`."""
        target = torch.empty_like(source) if target is None else target
        return target, self._copy(source, target)

    def copy_out(self, source: Tensor, target: Tensor) -> Copy:
        """See `Memory`."""
        return self._copy(source, target)

    def mark(self) -> Copy:
        """See `Memory`."""
        return _Later(self._thread.submit(int))

    def _copy(self, source: Tensor, target: Tensor) -> Copy:
        target.view(torch.uint8).fill_(self.GARBAGE)

        def copy() -> None:
            time.sleep(self._delay_s)
            target.copy_(source)

        return _Later(self._thread.submit(copy))
