"""States on a device with memory of its own: what is where, and when."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from mophpc.errors import StateError
from mophpc.train.arena import Layout, Slot
from mophpc.train.device import CPU, Twin
from mophpc.train.stage import InPlace, Stage, staging_for

SIZE, DEVICE_SIZE = 256, 192
LAYOUT = Layout(
    (
        Slot("weight", "uint8", (DEVICE_SIZE,), (1,), 0),
        Slot("step", "uint8", (64,), (1,), DEVICE_SIZE),
    ),
    SIZE,
    DEVICE_SIZE,
)
LARGE = Layout((Slot("weight", "uint8", (1024,), (1,), 0),), 1024, 1024)


def arena_of(value: int, size: int = SIZE) -> np.ndarray:
    return np.full(size, value, dtype=np.uint8)


def visit(stage: Stage, arena: np.ndarray, held=None, *, add: int = 1):
    """Fetch a state, add a number to every byte of it, as a training would, and release it."""
    home = stage.fetch(arena, LAYOUT, held)
    stage.ready(arena)
    home.device[:DEVICE_SIZE] += add
    home.host[DEVICE_SIZE:] += add
    return stage.release(arena)


@pytest.fixture(params=[0.0, 0.02], ids=["fast", "slow"])
def stage(request):
    return Stage(Twin(request.param))


def test_a_state_is_trained_apart_from_its_arena_and_comes_back(stage):
    arena = arena_of(7)
    home = stage.fetch(arena, LAYOUT)
    stage.ready(arena)
    assert (home.device[:DEVICE_SIZE] == 7).all()
    assert home.host.data_ptr() == arena.ctypes.data
    home.device[:DEVICE_SIZE] = 9
    assert (arena[:DEVICE_SIZE] == 7).all(), "only a copy is trained"
    held = stage.release(arena)
    held.wait()
    assert held.test()
    assert (arena[:DEVICE_SIZE] == 9).all()
    assert (arena[DEVICE_SIZE:] == 7).all()


def test_a_state_that_is_brought_in_ahead_is_not_waited_for():
    stage = Stage(Twin(0.5))
    arena = arena_of(3)
    stage.ahead(arena, LAYOUT)
    stage.ahead(arena, LAYOUT)  # as often as messages are looked after
    assert stage.num_buffers == 1
    threading.Event().wait(1.0)
    visit(stage, arena).wait()
    assert stage.waited_s < 0.4
    visit(stage, arena_of(4)).wait()
    assert stage.waited_s >= 0.4


def test_one_trains_while_the_last_leaves_and_the_next_comes(stage):
    arenas = [arena_of(i) for i in range(8)]
    held = []
    for number, arena in enumerate(arenas):
        home = stage.fetch(arena, LAYOUT)
        if number + 1 < len(arenas):
            stage.ahead(arenas[number + 1], LAYOUT)
        stage.ready(arena)
        home.device[:DEVICE_SIZE] += 100
        held.append(stage.release(arena))
        held[-1].land()
    for number, (own, arena) in enumerate(zip(held, arenas, strict=True)):
        own.wait()
        assert (arena[:DEVICE_SIZE] == number + 100).all()
    assert stage.num_buffers <= 3


class Counting(Twin):
    """Counts what is copied to the device."""

    copied_in = 0

    def copy_in(self, source, target=None):
        self.copied_in += 1
        return super().copy_in(source, target)


@pytest.mark.parametrize("lands", [False, True])
def test_a_state_that_is_trained_again_here_spares_the_way(lands):
    memory = Counting(0.02)
    stage = Stage(memory)
    arena = arena_of(1)
    held = visit(stage, arena)
    if lands:
        held.land()
    held = visit(stage, arena, held)
    assert memory.copied_in == 1, "it was still there"
    held.wait()
    assert (arena == 3).all()


def test_a_state_whose_buffer_was_taken_is_brought_in_again(stage):
    first, others = arena_of(1), [arena_of(50 + i) for i in range(4)]
    held = visit(stage, first)
    held.land()
    for other in others:
        visit(stage, other).wait()
    held = visit(stage, first, held)
    held.wait()
    assert (first == 3).all()


def test_an_arena_that_is_used_for_another_state_has_nothing_of_the_first(stage):
    arena = arena_of(1)
    held = visit(stage, arena)
    held.wait()
    held.drop()
    arena[:] = 40
    visit(stage, arena).wait()
    assert (arena == 41).all()


def test_what_was_reserved_and_forgotten_leaves_nothing(stage):
    arena = arena_of(1)
    stage.reserve(arena, LAYOUT)
    stage.forget(arena)
    arena[:] = 20
    visit(stage, arena).wait()
    assert (arena == 21).all()
    assert stage.num_buffers == 1


def test_a_state_is_sent_from_the_device_only_while_buffers_are_left(stage):
    arenas = [arena_of(i) for i in range(3)]
    assert visit(stage, arenas[0]).direct() is None, "nobody has tried it"
    stage.is_direct = True
    held = visit(stage, arenas[1])
    sent = held.direct()
    assert (sent[:DEVICE_SIZE] == 2).all()
    assert (sent[DEVICE_SIZE:] == 2).all(), "with what stays on the host behind it"
    second = visit(stage, arenas[2])
    assert second.direct() is None, "two are for training"
    second.wait()
    held.drop()
    arenas[0][:] = 10
    assert (visit(stage, arenas[0]).direct() == 11).all()


def test_a_copy_that_has_begun_is_not_sent_directly(stage):
    stage.is_direct = True
    held = visit(stage, arena_of(1))
    held.land()
    assert held.direct() is None


def test_states_of_different_sizes_share_buffers(stage):
    small, large = arena_of(1), arena_of(2, 1024)
    visit(stage, small).wait()
    for _ in range(3):
        home = stage.fetch(large, LARGE)
        stage.ready(large)
        home.device[:] += 1
        held = stage.release(large)
        visit(stage, small).wait()
        held.wait()
    assert (large == 5).all()
    assert (small == 5).all()
    assert stage.num_buffers <= 3


def test_a_device_with_room_for_one_state_trains_without_copies_ahead():
    stage = Stage(Twin(capacity_bytes=SIZE))
    first, second = arena_of(1), arena_of(2)
    home = stage.fetch(first, LAYOUT)
    stage.ready(first)
    stage.ahead(second, LAYOUT)
    home.device[:DEVICE_SIZE] += 1
    held = stage.release(first)
    visit(stage, second).wait()  # waits until the first has left
    held.wait()
    assert (first[:DEVICE_SIZE] == 2).all()
    assert (second == 3).all()
    assert stage.num_buffers == 1


def test_a_device_without_room_for_a_state_says_so():
    stage = Stage(Twin(capacity_bytes=SIZE - 1))
    with pytest.raises(StateError, match=r"no memory for a state of 256 bytes.*fewer ranks share"):
        stage.fetch(arena_of(1), LAYOUT)


def test_memory_is_given_back_before_more_is_taken():
    memory = Twin(capacity_bytes=1024 + SIZE)
    stage = Stage(memory)
    for _ in range(3):
        visit(stage, arena_of(1)).wait()
        large = arena_of(2, 1024)
        stage.fetch(large, LARGE)
        stage.ready(large)
        stage.release(large).wait()
    assert memory.free_bytes >= 0


def test_a_visit_without_its_state_is_a_bug_and_said():
    stage = Stage(Twin())
    with pytest.raises(StateError, match="not fetched"):
        stage.ready(arena_of(1))
    with pytest.raises(StateError, match="no memory on the device"):
        stage.release(arena_of(1))


def test_two_threads_use_it_as_a_rank_does():
    stage = Stage(Twin(0.001))
    arenas = [arena_of(i) for i in range(4)]
    following = [arenas[0]]
    stop = threading.Event()

    def look_ahead() -> None:
        while not stop.is_set():
            stage.ahead(following[0], LAYOUT, held.get(following[0].ctypes.data))

    held: dict[int, object] = {}
    thread = threading.Thread(target=look_ahead)
    thread.start()
    try:
        for step in range(60):
            arena = arenas[step % 4]
            home = stage.fetch(arena, LAYOUT, held.get(arena.ctypes.data))
            stage.ready(arena)
            following[0] = arenas[(step + 1) % 4]
            home.device[:DEVICE_SIZE] += 1
            held[arena.ctypes.data] = own = stage.release(arena)
            own.land()
    finally:
        stop.set()
        thread.join()
    for number, arena in enumerate(arenas):
        held[arena.ctypes.data].wait()
        assert (arena[:DEVICE_SIZE] == number + 15).all()


def test_the_cpu_trains_in_the_arena_itself():
    stage = staging_for(CPU)
    assert isinstance(stage, InPlace)
    arena = arena_of(5)
    stage.ahead(arena, LAYOUT)
    home = stage.fetch(arena, LAYOUT)
    stage.ready(arena)
    home.device[:] = 6
    held = stage.release(arena)
    held.land()
    held.wait()
    assert held.test()
    assert held.direct() is None
    held.drop()
    stage.forget(arena)
    assert (arena == 6).all()
    assert home.device.data_ptr() == torch.from_numpy(arena).data_ptr()


def test_waiting_for_a_buffer_is_counted():
    stage = Stage(Twin(0.05, capacity_bytes=SIZE))
    visit(stage, arena_of(1)).land()
    before = stage.waited_s
    visit(stage, arena_of(2)).wait()
    assert stage.waited_s - before >= 0.08, "the first has to leave, then the second comes"


def test_memory_that_is_taken_before_the_visits_is_what_there_is():
    memory = Twin(capacity_bytes=5 * SIZE)
    stage = Stage(memory)
    visit(stage, arena_of(1)).drop()  # of a pilot
    assert stage.prepare(2 * SIZE) == 2
    left = memory.free_bytes
    arenas = [arena_of(i) for i in range(6)]
    for arena, following in zip(arenas, [*arenas[1:], arenas[0]], strict=True):
        held = visit(stage, arena)
        stage.ahead(following, LAYOUT)
        held.wait()
    assert stage.num_buffers == 2
    assert memory.free_bytes == left
    with pytest.raises(StateError, match="no memory for a state of 10000 bytes"):
        Stage(memory).prepare(10_000)


def test_a_device_that_is_full_is_not_asked_again_and_again():
    asked = []

    class Full(Twin):
        def empty(self, nbytes):
            asked.append(nbytes)
            return super().empty(nbytes)

    stage = Stage(Full(capacity_bytes=SIZE))
    first, second = arena_of(1), arena_of(2)
    stage.fetch(first, LAYOUT)
    stage.ready(first)
    for _ in range(100):
        stage.ahead(second, LAYOUT)
    assert len(asked) == 2


def test_memory_is_given_up_though_helds_are_kept():
    memory = Twin(capacity_bytes=1024 + SIZE)
    stage = Stage(memory)
    kept = [visit(stage, arena_of(i)) for i in range(3)]
    for held in kept:
        held.wait()
    large = arena_of(2, 1024)
    stage.fetch(large, LARGE)
    stage.ready(large)
    assert all(held.test() for held in kept)
