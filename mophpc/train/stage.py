"""States between an arena in the host's memory and a copy of it on the device that trains.

While one config trains, the next one's state is copied in and the last one's out, so a few
buffers on the device are enough, whatever the number of configs. What a rank's two threads do here
(one trains, one looks after messages) is one after the other.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

import torch
from torch import Tensor

from mophpc.errors import StateError
from mophpc.train.arena import Arena, Home, Layout
from mophpc.train.device import Copy, Device, Memory

NO_ROOM = (
    "the device has no memory for a state of {} bytes beside what training takes; let fewer ranks "
    "share it, or train smaller models or batches"
)

LEAST_BUFFERS = 2
"""One that is trained in, and one to which the next state is copied meanwhile."""


class Held(Protocol):
    """A state after its visit, until its bytes are in the arena again or on their way elsewhere."""

    def land(self) -> None:
        """Begin to bring it into the arena, where it is not yet."""

    def test(self) -> bool:
        """Return whether its bytes are in the arena; begins to bring them there."""

    def wait(self) -> None:
        """Return when its bytes are in the arena."""

    def direct(self) -> Tensor | None:
        """Return all its bytes on the device, to be sent from there; None where that cannot be."""

    def drop(self) -> None:
        """Let go of the device's memory: nobody needs the state any more."""


class Staging(Protocol):
    """Brings states to where they are trained."""

    waited_s: float
    """Seconds that training has waited for copies."""
    is_direct: bool
    """Whether MPI may send from the device's memory."""

    def prepare(self, nbytes: int) -> int:
        """Take memory for states of at most so many bytes; return for how many."""

    def ahead(self, arena: Arena, layout: Layout, held: Held | None = None) -> None:
        """Begin to bring a state in, if there is room: its visit is next."""

    def fetch(self, arena: Arena, layout: Layout, held: Held | None = None) -> Home:
        """Return memory for a state, with its bytes on their way there."""

    def reserve(self, arena: Arena, layout: Layout) -> Home:
        """Return memory for a state that does not exist yet, or is not in its arena yet."""

    def ready(self, arena: Arena) -> None:
        """Return when what was fetched is there; its visit begins."""

    def release(self, arena: Arena) -> Held:
        """End a visit."""

    def forget(self, arena: Arena) -> None:
        """The state for which memory was reserved will not be trained here."""


class _Landed:
    def land(self) -> None:
        pass

    def test(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def direct(self) -> Tensor | None:
        return None

    def drop(self) -> None:
        pass


class InPlace:
    """The CPU trains in the arenas themselves."""

    waited_s = 0.0
    is_direct = False

    def prepare(self, nbytes: int) -> int:  # noqa: ARG002
        """See `Staging`."""
        return 0

    def ahead(self, arena: Arena, layout: Layout, held: Held | None = None) -> None:
        """See `Staging`."""

    def fetch(self, arena: Arena, layout: Layout, held: Held | None = None) -> Home:  # noqa: ARG002
        """See `Staging`."""
        return Home.of(arena)

    def reserve(self, arena: Arena, layout: Layout) -> Home:  # noqa: ARG002
        """See `Staging`."""
        return Home.of(arena)

    def ready(self, arena: Arena) -> None:
        """See `Staging`."""

    def release(self, arena: Arena) -> Held:  # noqa: ARG002
        """See `Staging`."""
        return _Landed()

    def forget(self, arena: Arena) -> None:
        """See `Staging`."""


class _Buffer:
    """Memory on the device, and what it is used for."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.arena: Arena | None = None
        """Whose state it is for; None: it is free."""
        self.layout: Layout | None = None
        self.coming: Copy | None = None
        self.going: Copy | None = None
        self.is_active = False
        self.is_sent = False
        """MPI reads it."""
        self.keeps: DeviceHeld | None = None
        """A state whose newest bytes it still has, also when it is free."""

    def settle(self) -> None:
        """Notice that it has become free."""
        if self.going is not None and self.going.test():
            self.going = self.arena = None

    @property
    def is_hint(self) -> bool:
        """Whether all it has is what will be needed next."""
        return self.arena is not None and self.keeps is None and not self.is_active


class DeviceHeld:
    """See `Held`: a state in a buffer of a `Stage`."""

    def __init__(self, stage: Stage, buffer: _Buffer, arena: Arena) -> None:
        self._stage = stage
        self.buffer = buffer
        self.arena = arena
        self._going: Copy | None = None
        self._is_dropped = False

    @property
    def has_left(self) -> bool:
        """Whether a copy to the arena has begun."""
        return self._going is not None

    def land(self) -> None:
        """See `Held`."""
        with self._stage.lock:
            if self._going is None and not self._is_dropped:
                self._going = self._stage.copy_out(self.buffer)

    def test(self) -> bool:
        """See `Held`."""
        self.land()
        return self._going is None or self._going.test()

    def wait(self) -> None:
        """See `Held`."""
        self.land()
        if self._going is not None:
            self._going.wait()

    def direct(self) -> Tensor | None:
        """See `Held`."""
        with self._stage.lock:
            return self._stage.lend(self.buffer) if self._going is None else None

    def drop(self) -> None:
        """See `Held`."""
        with self._stage.lock:
            self._is_dropped = True
            if self.buffer.keeps is self:
                self._stage.let_go(self.buffer)


class Stage:
    """A few buffers on a device, and the copies to and from them.

    Args:
        memory: the device's.
        most: buffers at most; beyond two, a state can be copied out while the next one trains.
    """

    def __init__(self, memory: Memory, *, most: int = 3) -> None:
        self.lock = threading.RLock()
        self.waited_s = 0.0
        self.is_direct = False
        self._memory = memory
        self._most = max(most, LEAST_BUFFERS)
        self._buffers: list[_Buffer] = []

    @property
    def num_buffers(self) -> int:
        """How many there are now."""
        return len(self._buffers)

    def prepare(self, nbytes: int) -> int:
        """See `Staging`.

        Raises:
            StateError: not even one fits.
        """
        with self.lock:
            for buffer in list(self._buffers):
                self._discard(buffer)
            while len(self._buffers) < self._most and self._add(nbytes) is not None:
                pass
            if not self._buffers:
                raise StateError(NO_ROOM.format(nbytes))
            return len(self._buffers)

    def ahead(self, arena: Arena, layout: Layout, held: Held | None = None) -> None:
        """See `Staging`."""
        with self.lock:
            # Where a buffer has newer bytes than the arena, there is nothing to bring in.
            newer = any(b.keeps is not None and _same(b.keeps.arena, arena) for b in self._buffers)
            if newer or (held is not None and not held.test()):
                return
            buffer = self._of(arena)
            if buffer is None and (buffer := self._free(layout.nbytes)) is not None:
                _give(buffer, arena, layout)
            if buffer is not None and not buffer.is_active:
                self._copy_in(buffer)

    def fetch(self, arena: Arena, layout: Layout, held: Held | None = None) -> Home:
        """See `Staging`."""
        with self.lock:
            buffer = self._kept_by(held)
            if buffer is not None and held is not None:
                if isinstance(held, DeviceHeld) and held.has_left:
                    self._wait(held)  # what is being copied out must not change
                _give(buffer, arena, layout)
            else:
                if held is not None:
                    self._wait(held)
                buffer = self._of(arena) or self._claim(arena, layout)
                self._copy_in(buffer)
            return _home(buffer, arena, layout)

    def reserve(self, arena: Arena, layout: Layout) -> Home:
        """See `Staging`."""
        with self.lock:
            return _home(self._of(arena) or self._claim(arena, layout), arena, layout)

    def ready(self, arena: Arena) -> None:
        """See `Staging`."""
        with self.lock:
            buffer = self._of(arena)
            if buffer is None:
                raise StateError("a state was not fetched before its visit")
            buffer.is_active = True
            coming = buffer.coming
        if coming is not None:  # without the lock: messages go on meanwhile
            self._wait(coming)

    def release(self, arena: Arena) -> Held:
        """See `Staging`."""
        with self.lock:
            buffer = self._of(arena)
            if buffer is None:
                raise StateError("a state has no memory on the device after its visit")
            held = DeviceHeld(self, buffer, arena)
            buffer.is_active, buffer.coming, buffer.keeps = False, None, held
            return held

    def forget(self, arena: Arena) -> None:
        """See `Staging`."""
        with self.lock:
            buffer = self._of(arena)
            if buffer is not None:
                self.let_go(buffer)

    def copy_out(self, buffer: _Buffer) -> Copy:
        """Begin to bring the newest bytes of a buffer's state into its arena."""
        arena, layout = _owner(buffer)
        size = layout.device_nbytes
        target = torch.from_numpy(arena[:size])
        buffer.going = self._memory.copy_out(buffer.memory[:size], target)
        return buffer.going

    def lend(self, buffer: _Buffer) -> Tensor | None:
        """Return a state's bytes on the device for MPI to send, if buffers enough are left."""
        sent = sum(other.is_sent for other in self._buffers)
        if not self.is_direct or sent >= self._most - LEAST_BUFFERS:
            return None
        arena, layout = _owner(buffer)
        tail = torch.from_numpy(arena[layout.device_nbytes :])
        buffer.memory[layout.device_nbytes : layout.nbytes].copy_(tail)
        self._memory.mark().wait()  # MPI knows nothing of streams: it reads what is there
        buffer.is_sent = True
        return buffer.memory[: layout.nbytes]

    def let_go(self, buffer: _Buffer) -> None:
        """Take a buffer back, whatever it has."""
        for copy in (buffer.coming, buffer.going):
            if copy is not None:
                copy.wait()
        if buffer.keeps is not None and buffer.going is None and not buffer.is_sent:
            self._memory.mark().wait()  # the end of its visit may still write it
        buffer.arena = buffer.layout = buffer.coming = buffer.going = buffer.keeps = None
        buffer.is_active = buffer.is_sent = False

    def _wait(self, copy: Copy | Held) -> None:
        """Wait for the sake of a visit, and count it."""
        begin_s = time.perf_counter()
        copy.wait()
        self.waited_s += time.perf_counter() - begin_s

    def _copy_in(self, buffer: _Buffer) -> None:
        """Begin to copy a state in, unless that has begun."""
        if buffer.coming is None:
            arena, layout = _owner(buffer)
            size = layout.device_nbytes
            source = torch.from_numpy(arena[:size])
            _, buffer.coming = self._memory.copy_in(source, buffer.memory[:size])

    def _kept_by(self, held: Held | None) -> _Buffer | None:
        """Return the buffer that still has a state's newest bytes."""
        for buffer in self._buffers:
            if held is not None and buffer.keeps is held:
                return buffer
        return None

    def _of(self, arena: Arena) -> _Buffer | None:
        """Return the buffer that is for the state that this arena has or will have."""
        for buffer in self._buffers:
            own = buffer.arena
            if own is not None and _same(own, arena) and buffer.keeps is None:
                return buffer
        return None

    def _free(self, nbytes: int) -> _Buffer | None:
        """Return a buffer that is large enough and free, or a new one if there may be one more."""
        for buffer in self._buffers:
            buffer.settle()
        fitting = [b for b in self._buffers if b.arena is None and len(b.memory) >= nbytes]
        if fitting:
            # One that still has a state might spare it the way back.
            return min(fitting, key=lambda buffer: (buffer.keeps is not None, len(buffer.memory)))
        return self._add(nbytes) if len(self._buffers) < self._most else None

    def _add(self, nbytes: int) -> _Buffer | None:
        """Return a new buffer; None where there is no room for it."""
        try:
            self._buffers.append(_Buffer(self._memory.empty(nbytes)))
        except torch.OutOfMemoryError:
            # It is not tried again at each look: torch gives up all that it keeps before it fails.
            self._most = len(self._buffers)
            return None
        return self._buffers[-1]

    def _discard(self, buffer: _Buffer) -> None:
        """Give up the memory of a buffer; whoever still knows the buffer has nothing of it."""
        self.let_go(buffer)
        buffer.memory = buffer.memory[:0].clone()
        self._buffers.remove(buffer)

    def _claim(self, arena: Arena, layout: Layout) -> _Buffer:
        """Return a buffer for a state; wait until there is one.

        Raises:
            StateError: the device has no room.
        """
        while (buffer := self._free(layout.nbytes)) is None:
            self._make_room(layout.nbytes)
        _give(buffer, arena, layout)
        return buffer

    def _make_room(self, nbytes: int) -> None:
        """Free a buffer, or the memory of one that is free but too small."""
        leaving = [b for b in self._buffers if b.keeps and b.arena is not None and not b.is_sent]
        small = [b for b in self._buffers if b.arena is None]
        hints = [b for b in self._buffers if b.is_hint]
        if small:
            self._discard(max(small, key=lambda buffer: len(buffer.memory)))
            self._most = max(self._most, len(self._buffers) + 1)
        elif leaving and leaving[0].keeps is not None:
            self._wait(leaving[0].keeps)
        elif hints:
            self.let_go(hints[0])
        else:
            raise StateError(NO_ROOM.format(nbytes))


def _same(arena: Arena, other: Arena) -> bool:
    return bool(arena.ctypes.data == other.ctypes.data)


def _give(buffer: _Buffer, arena: Arena, layout: Layout) -> None:
    buffer.arena, buffer.layout = arena, layout
    buffer.coming = buffer.going = buffer.keeps = None


def _owner(buffer: _Buffer) -> tuple[Arena, Layout]:
    """Return whose state a buffer is for."""
    if buffer.arena is None or buffer.layout is None:
        raise StateError("a buffer on the device is for no state")
    return buffer.arena, buffer.layout


def _home(buffer: _Buffer, arena: Arena, layout: Layout) -> Home:
    return Home(buffer.memory[: layout.nbytes], torch.from_numpy(arena))


def staging_for(device: Device, most: int = 3) -> Staging:
    """Return the way in which states get to a device."""
    return InPlace() if device.memory is None else Stage(device.memory, most=most)


def scratch_home(device: Device, layout: Layout, start: Arena | None = None) -> Home:
    """Return memory for a state that no visit is made with, with the bytes of `start` or 0."""
    host = torch.zeros(layout.nbytes, dtype=torch.uint8)
    if start is not None:
        host.copy_(torch.from_numpy(start))
    memory = device.memory
    return Home(host if memory is None else memory.empty(layout.nbytes).copy_(host), host)


def bytes_of(home: Home, layout: Layout) -> Arena:
    """Return a copy of a state's bytes, on the host."""
    found = home.host.clone()
    size = layout.device_nbytes
    found[:size] = home.device[:size].cpu()
    return found.numpy()
