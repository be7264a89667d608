"""Signals become an error at the next safe point."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from mophpc.errors import InterruptError
from mophpc.run.faults.stopping import FORCED, SIGNALS, StopFlag


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    after = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_raised_by_the_next_check(number):
    with StopFlag() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        for _ in range(2):
            with pytest.raises(InterruptError, match=f"^interrupted by {number.name}$") as caught:
                stop.check()
    assert caught.value.exit_status == 75


def test_a_second_ctrl_c_ends_the_process_at_once():
    program = """
import os, signal
from mophpc.run.faults.stopping import StopFlag
with StopFlag():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("not any more", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == FORCED
    assert done.stdout == "still here\n"
    assert "the last states may be lost" in done.stderr


def test_once_visits_have_begun_a_signal_is_for_those_who_write_states():
    with StopFlag(["SIGUSR1"]) as stop:
        stop.is_orderly = True
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        stop.check()
        assert stop.signal_name == "SIGUSR1"


def test_the_user_s_own_handler_comes_back():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert calls == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert calls == [1]
        with pytest.raises(InterruptError, match="SIGTERM"):
            stop.check()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_after_the_last_run_of_a_process_no_signal_ends_it_at_any_moment():
    program = """
import os, signal, threading, time
from mophpc.run.faults.stopping import StopFlag

def send():
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)

with StopFlag(["SIGUSR1"], is_last=True):
    threading.Thread(target=send, daemon=True).start()
    time.sleep(0.1)
time.sleep(0.1)
print("still here", flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr


def test_in_another_thread_signals_are_left_alone():
    found = []

    def body() -> None:
        with StopFlag() as stop:
            found.append(signal.getsignal(signal.SIGINT))
            stop.check()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
