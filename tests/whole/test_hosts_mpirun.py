"""Runs on two hosts of which one cannot be reached any more, under mpirun."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import TCP, Hosts, why_not
from mpi_launch import end, is_open_mpi, mpirun, started
from whole_testing import command, journal_is_whole, rank_process

from mophpc.run.faults.places import Whereabouts, born, read_places

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]
ENDS_WITHIN_S = 30.0
"""Far less than the run would hang otherwise; benchmarks/faults_hosts.py says how long it takes."""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    why = why_not()
    if why is not None:
        pytest.skip(why)
    with Hosts(tmp_path) as found:
        yield found


@pytest.mark.parametrize("how", ["cut off", "dead"])
def test_a_host_that_cannot_be_reached_is_named_and_all_end(
    capsys: Capture, write_experiment: Write, hosts: Hosts, tmp_path: Path, how: str
) -> None:
    toml, run = write_experiment("unhurried", epochs="epochs = 6"), tmp_path / "run"
    options = ["mophpc", "run", toml, "--out", run, "--progress", "off"]
    said = tmp_path / "said"
    with said.open("w") as out:
        process = started(hosts.command(2, *options), env=TCP, stdout=out, stderr=subprocess.STDOUT)
        try:
            places = wait_for_beats(process, run)
            hosts.cut()
            cut_s = time.monotonic()
            if how == "dead":
                hosts.kill(1, but_session=process.pid)
            while any(born(where.pid) == where.born for where in places):
                assert time.monotonic() < cut_s + ENDS_WITHIN_S
                time.sleep(0.05)
            status = process.wait(timeout=ENDS_WITHIN_S)
        finally:
            end(process)
    text = said.read_text(errors="replace")
    assert status != 0, text
    place = r"rank \d of 4 on mophpc-[ab]\d+, config c00\d.*, epoch \d+, shard \d"
    assert re.search(rf"mophpc: {place}: its host cannot be reached: for \d+ s", text), text
    causes = [json.loads(path.read_text())["cause"] for path in run.glob("failure-rank-*.json")]
    assert causes
    assert all("its host cannot be reached" in cause for cause in causes)
    if how == "dead":
        assert "rank 2 of 4" in text
        return
    assert journal_is_whole(run)
    if not is_open_mpi():  # what follows is the same with every MPI
        return
    done = mpirun(2, *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert command(capsys, "verify", run)[0] == 0


@pytest.mark.skipif(not is_open_mpi(), reason="MPICH's launcher ends all ranks when one dies")
def test_a_rank_of_another_host_that_dies_before_all_have_met_ends_all(
    write_experiment: Write, hosts: Hosts, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["mophpc", "run", write_experiment(), "--out", run, "--survive"]
    words = hosts.command(2, *options)
    words.insert(words.index("-n"), "--with-ft")
    words.insert(words.index("-n"), "ulfm")
    said = tmp_path / "said"
    with said.open("w") as out:
        process = started(words, env=TCP, stdout=out, stderr=subprocess.STDOUT)
        try:
            while (found := rank_process(hosts.pids(1), 3)) is None:
                assert process.poll() is None
                time.sleep(0.002)
            found.kill()
            status = process.wait(timeout=ENDS_WITHIN_S)
        finally:
            end(process)
    text = said.read_text(errors="replace")
    assert status != 0, text
    assert "ended before all 4 ranks had met" in text
    assert not run.exists()
    deadline_s = time.monotonic() + ENDS_WITHIN_S
    while list(tmp_path.glob(".mophpc-*")):  # by which hosts tell each other
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def wait_for_beats(process: subprocess.Popen[str], run: Path) -> list[Whereabouts]:
    """Wait until hosts have heard of each other; return where the ranks are."""
    deadline_s = time.monotonic() + 180.0
    while True:
        places = read_places(run)
        if len(places) == 4 and min(places[0].sent, places[2].sent) >= 3:
            return places
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
