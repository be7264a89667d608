"""Messages are looked after while a rank trains, by a thread or between minibatches."""

from __future__ import annotations

import threading
import time

import pytest

from mophpc.errors import HopError
from mophpc.hop import progress as module
from mophpc.hop.progress import Progress

LIMIT_S = 10.0


def wait_for(event: threading.Event) -> None:
    assert event.wait(LIMIT_S)


@pytest.fixture
def make():
    made = []

    def make_one(step, *, threaded, crowding=1.0):
        made.append(Progress(step, threaded=threaded, crowding=crowding))
        return made[-1]

    yield make_one
    for progress in made:
        progress.end()


def test_a_thread_looks_after_messages_while_the_rank_trains(make):
    stepped = threading.Event()

    def step() -> bool:
        assert threading.current_thread() is not threading.main_thread()
        stepped.set()
        return False

    with make(step, threaded=True):
        wait_for(stepped)  # the training calls nothing


def test_nobody_looks_after_messages_while_the_rank_does_not_train(make):
    steps = []
    progress = make(lambda: bool(steps.append(1)), threaded=True)
    with progress:
        while not steps:
            time.sleep(1e-3)
    count = len(steps)
    time.sleep(0.05)
    assert len(steps) == count


def test_what_the_messages_raise_is_raised_by_the_training(make):
    raised = threading.Event()

    def step() -> bool:
        raised.set()
        raise HopError("lost")

    progress = make(step, threaded=True)
    with pytest.raises(HopError, match="lost"), progress:  # noqa: PT012  # as a training does
        wait_for(raised)
        while True:
            progress.between()
            time.sleep(1e-3)


def test_what_the_messages_raise_after_the_last_batch_is_raised_too(make):
    raised = threading.Event()

    def step() -> bool:
        raised.set()
        raise HopError("lost")

    with pytest.raises(HopError, match="lost"), make(step, threaded=True):
        wait_for(raised)


def test_what_the_training_raises_comes_first(make):
    raised = threading.Event()

    def step() -> bool:
        raised.set()
        raise HopError("lost")

    progress = make(step, threaded=True)
    with pytest.raises(ValueError, match="training"), progress:  # noqa: PT012  # the body raises
        wait_for(raised)
        raise ValueError("training")


def test_who_holds_the_lock_is_not_disturbed(make):
    steps = []
    with make(lambda: bool(steps.append(1)), threaded=True) as progress, progress.lock:
        count = len(steps)
        time.sleep(0.05)
        assert len(steps) == count


def test_a_training_that_looks_itself_is_seldom_disturbed(make):
    steps = {True: 0, False: 0}

    def step() -> bool:
        steps[threading.current_thread() is threading.main_thread()] += 1
        return False

    progress = make(step, threaded=True)
    begin_s = time.perf_counter()
    with progress:
        while time.perf_counter() - begin_s < 0.5:
            time.sleep(5e-4)
            progress.between()
    assert steps[True] > steps[False] > 0


def test_while_nothing_flows_looks_become_seldom(make):
    """A look at every minibatch would be a large part of small ones."""
    steps = []
    progress = make(lambda: bool(steps.append(1)), threaded=True)
    begin_s = time.perf_counter()
    with progress:
        while time.perf_counter() - begin_s < 0.5:
            time.sleep(5e-4)
            progress.between()
    # Pauses of 1 ms for 10 ms, then of a tenth of the time, then of 50 ms: about 30 looks.
    assert len(steps) < 100


def test_ranks_that_share_a_core_look_less_often(make):
    made = [make(lambda: False, threaded=False, crowding=each) for each in (0.5, 1.0, 2.0, 1e9)]
    pauses = [progress._pause_s(0.03) for progress in made]  # nothing flowed for 30 ms
    assert pauses == pytest.approx([3e-3, 3e-3, 6e-3, 30e-3])


def test_a_thread_leaves_messages_to_a_training_that_looks(make, monkeypatch):
    monkeypatch.setattr(module, "THREAD_PAUSES", LIMIT_S / module.PAUSE_S)

    def step() -> bool:
        return threading.current_thread() is not threading.main_thread()

    progress = make(step, threaded=True)
    with progress:
        begin_s = time.perf_counter()
        while time.perf_counter() - begin_s < 0.2:
            progress.between()
        assert not progress._flowing.is_set()  # the thread's step would have set it


def test_short_trainings_leave_messages_to_the_thread(make, monkeypatch):
    for name in ("PAUSE_S", "REST_S"):  # the thread sleeps all the time
        monkeypatch.setattr(module, name, 10 * LIMIT_S)
    monkeypatch.setattr(module, "FIRST_S", 0.05)
    steps = []
    progress = make(lambda: bool(steps.append(1)), threaded=True)
    begin_s = time.perf_counter()
    with progress:
        while not steps:
            progress.between()
            assert time.perf_counter() - begin_s < LIMIT_S
    assert time.perf_counter() - begin_s >= 0.05


def test_bytes_that_the_training_sees_flow_wake_the_thread(make, monkeypatch):
    monkeypatch.setattr(module, "QUIET", 1e-3)  # after some milliseconds it sleeps for long
    monkeypatch.setattr(module, "REST_S", 10 * LIMIT_S)
    flows, woken = threading.Event(), threading.Event()

    def step() -> bool:
        if threading.current_thread() is not threading.main_thread() and flows.is_set():
            woken.set()
        return flows.is_set()

    progress = make(step, threaded=True)
    with progress:
        time.sleep(0.2)  # the thread's third pause has begun: 20 s and more
        flows.set()
        progress.between()
        wait_for(woken)


def test_without_a_thread_messages_are_looked_after_between_batches(make):
    steps = []

    def step() -> bool:
        steps.append(threading.current_thread())
        return False

    with make(step, threaded=False) as progress:
        begin_s = time.perf_counter()
        while len(steps) < 3:
            progress.between()
            assert time.perf_counter() - begin_s < LIMIT_S
    assert set(steps) == {threading.current_thread()}
    assert time.perf_counter() - begin_s >= 2e-3  # and not at every one


def test_without_a_thread_a_quiet_training_puts_no_look_of_the_next_one_off(make, monkeypatch):
    monkeypatch.setattr(module, "QUIET", 1e-3)  # after some milliseconds it looks no more
    monkeypatch.setattr(module, "REST_S", 10 * LIMIT_S)
    steps = []
    progress = make(lambda: bool(steps.append(1)), threaded=False)
    with progress:
        time.sleep(0.2)
        progress.between()
    assert len(steps) == 1
    with progress:
        begin_s = time.perf_counter()
        while len(steps) < 2:
            progress.between()
            assert time.perf_counter() - begin_s < LIMIT_S


def test_what_they_raise_without_a_thread_is_raised_there(make):
    def step() -> bool:
        raise HopError("lost")

    progress = make(step, threaded=False)
    with pytest.raises(HopError, match="lost"), progress:
        progress.between()


def test_it_ends_from_within_a_visit_and_twice(make):
    progress = make(lambda: False, threaded=True)
    with progress:
        progress.end()
    progress.end()
    assert not progress._thread.is_alive()
