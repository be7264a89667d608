"""Signs of life, and what is said of ranks that give none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mophpc.errors import InterruptError, LostError, Place
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.run.faults import lookout
from mophpc.run.faults.hanging import Hanging, _neighbours
from mophpc.run.faults.loss import hangs, innermost, lost
from mophpc.run.faults.places import (
    OVER,
    Sign,
    Whereabouts,
    born,
    own_whereabouts,
    place_file,
    read_place,
    read_places,
)
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.faults.watch import Watch
from mophpc.run.folder import RunFolder

AT = Place(1, 2, "n1", "c003-lr=0.1", 4, 2)


def sleeper(rank: int) -> tuple[subprocess.Popen[bytes], Whereabouts]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    own = own_whereabouts(rank, 3)
    return process, replace(own, pid=process.pid, born=born(process.pid))


def folder_of(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.make()
    return folder


def test_a_rank_says_where_it_is(tmp_path: Path) -> None:
    sign = Sign(own_whereabouts(1, 2))
    sign.at(AT)  # before there is a file
    sign.open(tmp_path)
    with sign.visits():
        sign.batches += 3
        sign.beat(waits=False, limit_s=5.0)
        found = read_place(tmp_path, 1)
        assert found is not None
        assert (found.config, found.epoch, found.shard) == ("c003-lr=0.1", 4, 2)
        assert (found.doing, found.batches, found.beats) == ("visit", 3, 1)
        assert not found.is_gone
    assert place_file(tmp_path, 1).stat().st_size == 2048
    sign.close("failed")
    sign.close("ended")
    assert [where.state for where in read_places(tmp_path)] == ["failed"]


def test_a_name_of_any_length_leaves_the_file_whole(tmp_path: Path) -> None:
    sign = Sign(own_whereabouts(0, 1))
    sign.open(tmp_path)
    for name in ("x" * 5000, "é" * 5000, "🦘" * 5000, "\udcff"):
        sign.at(replace(AT, config=name))
        found = read_place(tmp_path, 0)
        assert found is not None
        assert found.config is not None
        assert found.config == name[:350].replace("\udcff", "?")
    sign.close("ended")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rank": 0}', "[" * 2000])
def test_a_damaged_file_says_nothing(tmp_path: Path, text: str) -> None:
    place_file(tmp_path, 0).parent.mkdir()
    place_file(tmp_path, 0).write_text(text)
    assert read_place(tmp_path, 0) is None
    assert read_places(tmp_path) == []


def test_where_nothing_can_be_written_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "places").write_text("a file where the folder should be")
    sign = Sign(own_whereabouts(0, 1))
    sign.open(tmp_path)
    with sign.visits():
        sign.beat(waits=False, limit_s=1.0)
    sign.close("ended")


def test_the_number_of_a_process_that_has_ended_means_nothing() -> None:
    own = own_whereabouts(0, 1)
    assert not own.is_gone
    assert replace(own, born=own.born + 1).is_gone
    assert not replace(own, realm="another host", born=1).is_gone


def test_only_the_process_that_a_rank_has_named_itself_is_ended(tmp_path: Path) -> None:
    """A file in the run folder may name any process, and numbers are given again."""
    ranks = [sleeper(rank) for rank in (1, 2)]
    processes = [process for process, _ in ranks]
    (_, other), (_, rank) = ranks
    try:
        with StopFlag() as stop:
            watch = Watch(LocalTransport(LocalWorld(2), 0), stop, survives=True)
            watch._ranks = [watch.sign.own, replace(rank, rank=1, born=rank.born + 1)]
            for named in (other, replace(rank, rank=1)):
                watch._folder = folder_of(tmp_path)
                watch._hanging = Named(replace(named, rank=1))  # type: ignore[assignment]  # looks
                watch._loss = None
                watch._look_around()
                assert [process.poll() for process in processes] == [None, None]
            watch._ranks = [watch.sign.own, replace(rank, rank=1)]
            watch._loss = None
            watch._look_around()
            assert processes[1].wait(10.0) == -signal.SIGKILL
            assert processes[0].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Named:
    """Finds that a rank hangs which is where a file says."""

    def __init__(self, where: Whereabouts) -> None:
        self._where = where

    def look(self) -> tuple[LostError, Whereabouts]:
        return LostError(self._where.place, "it hangs"), self._where


def test_a_first_minibatch_has_more_time() -> None:
    sign = Sign(own_whereabouts(0, 1))
    sign.hang_s = 10.0
    sign.at(AT)
    with sign.visits():
        assert sign.limit_s == 30.0
        sign.batches += 1
        assert sign.limit_s == 10.0
    with sign.visits():
        assert sign.limit_s == 10.0


def test_a_loss_comes_before_the_signal_that_follows_it() -> None:
    with StopFlag() as stop:
        assert stop.signalled_s is None
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptError):
            stop.check()
        assert stop.signalled_s is not None
        stop.end(LostError(AT, "it is lost"))
        with pytest.raises(LostError, match=r"rank 1 of 2 on n1, config c003-lr=0\.1, epoch 4"):
            stop.check()


def test_of_several_nobody_claims_to_know_which_was_first() -> None:
    where = own_whereabouts(0, 3)
    text = str(lost([replace(where, rank=rank) for rank in (1, 2)], memory=True))
    assert "rank 1 of 3" in text
    assert "others at the same time, for it or with it: rank 2 of 3" in text
    assert "has just killed a process for lack of memory" in text


def test_the_innermost_call_is_that_of_the_newest_stack_that_trains(tmp_path: Path) -> None:
    log = tmp_path / "log"
    frame = '  File "{}", line 7 in {}\n'
    old = "Thread 0x1 (most recent call first):\n" + frame.format("a.py", "old")
    old += frame.format("conduct.py", "run_rank")
    new = "Thread 0x1 (most recent call first):\n" + frame.format("b.py", "training_step")
    new += frame.format("conduct.py", "run_rank") + "\n"
    other = "Current thread 0x2 (most recent call first):\n" + frame.format("watch.py", "_run")
    log.write_text(old + "words\n" + new + other)
    assert innermost(log) == "in training_step (b.py, line 7)"
    log.write_text("words")
    assert innermost(log) is None
    assert innermost(tmp_path / "none") is None


def test_each_rank_has_another_that_looks_at_it() -> None:
    own = own_whereabouts(0, 5)
    ranks = [replace(own, rank=rank, realm="ab"[rank % 2]) for rank in range(5)]
    looked_at = [_neighbours(ranks, rank) for rank in range(5)]
    assert looked_at == [[2, 1], [3, 0], [4], [1], [0]]
    assert _neighbours(ranks[:1], 0) == []


def test_a_neighbour_that_shows_no_sign_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    signs = [Sign(own_whereabouts(rank, 2)) for rank in range(2)]
    for sign in signs:
        sign.hang_s = 0.2
        sign.open(tmp_path)
    signs[1].at(AT)
    signs[1].batches += 1
    hanging = Hanging(signs[0], [sign.own for sign in signs], folder, 0.2)
    try:
        with signs[1].visits():
            found = watched(hanging)
    finally:
        hanging.close()
    assert found[1].rank == 1
    assert "config c003-lr=0.1, epoch 4, shard 2: it hangs: no minibatch for" in str(found[0])


def test_the_stack_comes_in_time_though_the_visit_before_had_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """User code may take Python's lock in a visit before the watch has looked at it."""
    armed: list[float] = []
    spy = SimpleNamespace(
        dump_traceback_later=lambda seconds, **_: armed.append(seconds),
        cancel_dump_traceback_later=lambda: None,
    )
    monkeypatch.setattr("mophpc.run.faults.hanging.faulthandler", spy)
    sign = Sign(own_whereabouts(0, 1))
    sign.open(tmp_path)
    hanging = Hanging(sign, [sign.own], folder_of(tmp_path), 2.0)
    try:
        sign.at(AT)
        with sign.visits():
            time.sleep(0.25)
            assert hanging.look() is None
            assert armed[-1] == 6.0  # the config's first minibatch: it may be compiled
            sign.batches += 1
        with sign.visits():
            assert read_place(tmp_path, 0) == sign.own  # a neighbour waits no longer than that
            assert (sign.own.limit_s, armed[-1]) == (2.0, 2.0)
        before = len(armed)
        with sign.visits():
            assert len(armed) == before  # else there is no need, and it takes a thread
    finally:
        hanging.close()
    with sign.visits():
        assert len(armed) == before


def test_the_stack_of_a_neighbour_is_waited_for(tmp_path: Path) -> None:
    log, where = tmp_path / "log", replace(own_whereabouts(1, 2), pid=0, realm="another host")
    stack = "Thread 0x1 (most recent call first):\n" + '  File "a.py", line 7 in waits\n'
    stack += '  File "conduct.py", line 8 in run_rank\n'
    writer = threading.Timer(0.3, log.write_text, (stack,))
    writer.start()
    try:
        assert "it left no stack" in str(hangs(where, 4.0, log, "log"))
        found = str(hangs(where, 4.0, log, "log", patience_s=30.0))
    finally:
        writer.join()
    assert "it is in waits (a.py, line 7) (stacks in log)" in found


def test_a_rank_that_was_suspended_is_not_blamed_for_that(tmp_path: Path) -> None:
    sign = Sign(own_whereabouts(0, 1))
    sign.hang_s = 0.4
    sign.open(tmp_path)
    sign.at(AT)
    sign.batches += 1
    hanging = Hanging(sign, [sign.own], folder_of(tmp_path), 0.4)
    try:
        with sign.visits():
            sign.batches += 1
            time.sleep(0.25)
            assert hanging.look() is None
            time.sleep(1.0)  # as after SIGSTOP and SIGCONT: nobody could look meanwhile
            assert hanging.look() is None
            found = watched(hanging)  # and then it may hang as well
    finally:
        hanging.close()
    assert "it hangs: no minibatch for" in str(found[0])


def test_ranks_that_wait_for_each_other_are_told_so(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    signs = [Sign(own_whereabouts(rank, 2)) for rank in range(2)]
    for sign in signs:
        sign.open(tmp_path)
    signs[0].at(replace(AT, rank=0))
    signs[1].over()
    signs[1].beat(waits=False, limit_s=0.0)
    hanging = Hanging(signs[0], [sign.own for sign in signs], folder, 0.5)
    try:
        found = watched(hanging, signs[0])
    finally:
        hanging.close()
    assert "all ranks have waited for each other" in str(found[0])
    assert read_place(tmp_path, 1) is not None
    assert signs[1].own.doing == OVER


def watched(hanging: Hanging, waits: Sign | None = None) -> tuple[LostError, Whereabouts]:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if waits is not None:
            waits.waits += 1
        if (found := hanging.look()) is not None:
            return found
    raise AssertionError("nobody was named")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux has it")
@pytest.mark.parametrize("state", ["running", "interrupted"])
def test_a_process_names_the_rank_that_ended_without_a_word(tmp_path: Path, state: str) -> None:
    ranks = [sleeper(rank) for rank in range(2)]
    try:
        place_file(tmp_path, 0).parent.mkdir()
        told = replace(ranks[1][1], state=state, config="c003", epoch=4, shard=2)
        place_file(tmp_path, 1).write_text(json.dumps(asdict(told)))
        process = subprocess.Popen(
            [sys.executable, "-m", "mophpc.run.faults.lookout", str(tmp_path), "0", "0"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps([asdict(where) for _, where in ranks]).encode())
        process.stdin.close()
        process.stdin = None
        time.sleep(0.1)
        ranks[1][0].kill()
        _, err = process.communicate(timeout=20)
    finally:
        for sleeping, _ in ranks:
            sleeping.kill()
            sleeping.wait()
    failures = sorted(path.name for path in tmp_path.glob("failure-*"))
    if state == "running":
        assert "rank 1 of 3" in err.decode()
        assert "config c003, epoch 4, shard 2: it is lost" in err.decode()
        assert failures == ["failure-rank-0001.json"]
    else:
        assert err == b""
        assert failures == []


def test_the_process_is_wanted_where_no_rank_can_speak() -> None:
    if not hasattr(os, "pidfd_open"):
        pytest.skip("Linux has it")
    assert lookout.is_wanted({"PMI_SIZE": "4"}, 4)
    assert lookout.is_wanted({"OMPI_COMM_WORLD_SIZE": "2"}, 1)
    assert not lookout.is_wanted({"OMPI_COMM_WORLD_SIZE": "4"}, 2)
