"""Memory for the states of configs."""

from __future__ import annotations

from collections.abc import Callable

from mophpc.hop.transport import Buffer


class ArenaPool:
    """Memory of arenas, reused: at any time as many buffers as arenas were ever held together."""

    def __init__(self, allocate: Callable[[int], Buffer]) -> None:
        self._allocate = allocate
        self._free: list[Buffer] = []
        self._lent: dict[int, Buffer] = {}
        self.most = 0
        """Most buffers that ever existed together."""

    def take(self, nbytes: int) -> Buffer:
        """Return `nbytes` bytes: the smallest free buffer that is large enough, else a new one."""
        fitting = [b for b in self._free if len(b) >= nbytes]
        if fitting:
            buffer = min(fitting, key=len)
            _remove(self._free, buffer)
        else:
            if self._free:  # too small for anything that is wanted now
                _remove(self._free, max(self._free, key=len))
            buffer = self._allocate(nbytes)
        arena = buffer[:nbytes]
        self._lent[arena.ctypes.data] = buffer
        self.most = max(self.most, len(self._lent) + len(self._free))
        return arena

    def give_back(self, arena: Buffer) -> None:
        """Take memory back."""
        self._free.append(self._lent.pop(arena.ctypes.data))


def _remove(buffers: list[Buffer], buffer: Buffer) -> None:
    buffers.pop(next(i for i, other in enumerate(buffers) if other is buffer))
