"""Beats of hosts: when one is given up, and when it is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.run.faults import heartbeat, lookout
from mophpc.run.faults.heartbeat import Heartbeat
from mophpc.run.faults.places import (
    ENDED,
    VISIT,
    Sign,
    born,
    count_file,
    firsts_of,
    own_whereabouts,
    parent,
    place_file,
)

SILENT_S = 6.0


class Hosts:
    """Two hosts of two ranks; the lowest of the second, rank 2, listens to the first, rank 0."""

    def __init__(self, run: Path, patch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.now_s = 100.0
        patch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        own = own_whereabouts(0, 4)
        self.ranks = [
            replace(own, rank=rank, host=f"n{rank // 2}", realm="ab"[rank // 2], pid=1000 + rank)
            for rank in range(4)
        ]
        world = LocalWorld(4)
        self.signs = [Sign(where) for where in self.ranks]
        for sign in self.signs:
            sign.open(run)
        self.first, self.second = (
            Heartbeat(LocalTransport(world, rank), self.signs[rank], self.ranks, run, SILENT_S)
            for rank in (0, 2)
        )
        self.count = 0

    def pass_s(
        self,
        seconds: float,
        *,
        mpi: bool = True,
        file: bool = True,
        sends: bool = False,
        lives: bool = False,
    ) -> str | None:
        """Let time pass; return what the second host says at last of the first.

        Args:
            seconds: that pass.
            mpi: whether beats come.
            file: whether the first host counts in the run folder.
            sends: whether it says there that it sends beats.
            lives: whether its lowest rank says there that it lives.
        """
        said = None
        for _ in range(round(seconds * 2)):
            self.now_s += 0.5
            if mpi:
                self.first.test()
            self.second.test()
            if file:
                self.count += 1
                count_file(self.run, 0).write_text(f"{self.count:<12}\n")
            if sends:
                self.signs[0].sent += 1
            if mpi or sends or lives:
                self.signs[0].say_sent()
            said = said or self.second.look()
        return None if said is None else str(said)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    found = Hosts(tmp_path, monkeypatch)
    assert found.pass_s(4.0) is None
    yield found
    for sign in found.signs:
        sign.close(ENDED)


def test_the_lowest_ranks_of_the_hosts_speak() -> None:
    own = own_whereabouts(0, 5)
    ranks = [replace(own, rank=rank, realm="abbac"[rank]) for rank in range(5)]
    assert firsts_of(ranks) == [0, 1, 4]


def test_a_host_of_which_nothing_comes_is_given_up(hosts: Hosts) -> None:
    hosts.signs[0].own = replace(hosts.signs[0].own, doing=VISIT, config="c001", epoch=2, shard=3)
    assert hosts.pass_s(1.0) is None
    assert hosts.pass_s(SILENT_S - 1.0, mpi=False, file=False) is None
    said = hosts.pass_s(2.0, mpi=False, file=False)
    assert said == (
        "rank 0 of 4 on n0, config c001, epoch 2, shard 3: its host cannot be reached: for 6 s "
        "nothing has come from it, neither by MPI nor in the run folder; on the same host: rank 1"
    )


def test_beats_that_are_lost_on_the_way_are_enough(hosts: Hosts) -> None:
    assert hosts.pass_s(SILENT_S - 1.0, mpi=False, sends=True) is None
    said = hosts.pass_s(2.0, mpi=False, sends=True)
    assert said is not None
    assert "for 6 s nothing has come from it by MPI, which it has sent" in said


def test_one_way_alone_may_be_silent(hosts: Hosts) -> None:
    assert hosts.pass_s(100.0, mpi=False) is None, "C code that holds Python's lock"
    assert hosts.pass_s(4.0) is None
    assert hosts.pass_s(100.0, file=False) is None, "a file server that is away"
    assert hosts.pass_s(100.0, mpi=False, file=False, lives=True) is None, "nobody counts there"


def test_one_that_has_never_been_seen_is_not_missed_in_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(tmp_path, monkeypatch)
    count_file(tmp_path, 0).write_text("77\n")  # of an earlier run
    place_file(tmp_path, 0).unlink()
    assert hosts.pass_s(4.0, file=False) is None
    assert hosts.pass_s(100.0, mpi=False, file=False) is None


def test_one_that_sets_up_for_longer_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts(tmp_path, monkeypatch)
    assert hosts.pass_s(100.0, mpi=False, lives=True) is None


@pytest.mark.parametrize("seen_s", [0.0, 0.5, 1.0, 1.5])
def test_one_that_dies_at_the_very_beginning_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_s: float
) -> None:
    hosts = Hosts(tmp_path, monkeypatch)
    assert hosts.pass_s(seen_s) is None
    said = hosts.pass_s(2 * SILENT_S, mpi=False, file=False)
    assert said is not None
    assert "neither by MPI nor in the run folder" in said


def test_who_could_not_listen_blames_nobody(hosts: Hosts) -> None:
    for _ in range(20):  # a minibatch of 20 s, without a thread for messages
        hosts.now_s += 1.0
        assert hosts.second.look() is None
    assert hosts.pass_s(SILENT_S - 1.0, mpi=False, file=False) is None
    hosts.now_s += 60.0  # as after SIGSTOP
    assert hosts.second.look() is None
    assert hosts.pass_s(SILENT_S - 1.0, mpi=False, file=False) is None
    assert hosts.pass_s(2.0, mpi=False, file=False) is not None


def test_one_that_has_ended_is_not_missed(hosts: Hosts) -> None:
    hosts.signs[0].close(ENDED)
    assert hosts.pass_s(100.0, mpi=False, file=False) is None


def test_the_last_beat_closes_the_way(hosts: Hosts) -> None:
    for own, other in ((hosts.first, hosts.second), (hosts.second, hosts.first)):
        own.end()
        other.test()
    assert hosts.first.is_closed
    assert hosts.second.is_closed
    assert hosts.pass_s(100.0, mpi=False, file=False) is None


@pytest.mark.parametrize("text", ["", "x", "-5", "9" * 100, "\x00\xff"])
def test_a_damaged_count_is_none(hosts: Hosts, text: str) -> None:
    count_file(hosts.run, 0).write_text(text)
    assert hosts.pass_s(2.0, file=False) is None
    place_file(hosts.run, 0).write_text(text)
    hosts.second.look()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux has it")
def test_the_process_beside_a_rank_counts_as_long_as_that_lives(tmp_path: Path) -> None:
    sleeping = subprocess.Popen(["sleep", "60"])
    where = replace(own_whereabouts(3, 4), pid=sleeping.pid, born=born(sleeping.pid), state=ENDED)
    command = [sys.executable, "-m", "mophpc.run.faults.lookout", str(tmp_path), "0", "1"]
    counting = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        assert counting.stdin is not None
        with counting.stdin as pipe:
            pipe.write(json.dumps([asdict(where)]).encode())
        seen: set[int] = set()
        deadline_s = time.monotonic() + 60.0
        while len(seen) < 2:
            assert time.monotonic() < deadline_s
            assert counting.poll() is None
            if count_file(tmp_path, 3).exists():
                seen.add(int(count_file(tmp_path, 3).read_text() or "0"))
            time.sleep(0.05)
        sleeping.kill()
        sleeping.wait()
        assert counting.wait(timeout=60) == 0
    finally:
        for process in (sleeping, counting):
            process.kill()
            process.wait()


@pytest.mark.parametrize("is_stubborn", [False, True])
def test_the_launcher_is_found_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_stubborn: bool
) -> None:
    monkeypatch.setattr(lookout, "LAUNCHER_S", 0.05)
    launcher = tmp_path / "prterun"
    shutil.copy(shutil.which("sh") or "", launcher)
    script = "trap '' TERM;" if is_stubborn else ""
    started = subprocess.Popen([launcher, "-c", f"{script} sleep 60; true"])
    try:
        deadline_s = time.monotonic() + 60.0
        while not (children := psutil.Process(started.pid).children()):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        rank = children[0]
        assert parent(rank.pid) == started.pid
        assert lookout.launchers_of(rank.pid) == [(started.pid, born(started.pid))]
        lookout.end_launchers([(started.pid, born(started.pid) + 1)])  # another has its number
        assert started.poll() is None
        lookout.end_launchers(lookout.launchers_of(rank.pid))
        assert started.wait(timeout=60) == -(signal.SIGKILL if is_stubborn else signal.SIGTERM)
        assert lookout.launchers_of(os.getpid()) == []
    finally:
        started.kill()
        started.wait()
        rank.kill()
