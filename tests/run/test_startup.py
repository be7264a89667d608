"""What looks after a rank until all have met; with real launchers in tests/whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mophpc.launcher import FT_ENABLED
from mophpc.run.faults import lookout, startup
from mophpc.run.faults.places import born


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a launcher."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short pauses, and the signals of before afterwards."""
    for room, name in ((startup, "GRACE_S"), (startup, "LEAVE_S"), (startup, "BEAT_S")):
        monkeypatch.setattr(room, name, 0.05)
    monkeypatch.setattr(lookout, "LAUNCHER_S", 0.05)
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


LookAfter = Callable[..., str]


@pytest.fixture
def look_after(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    launcher: subprocess.Popen[bytes],
    tmp_path: Path,
    quick: None,
) -> LookAfter:
    """Be beside rank 1 of 3, whose end is that of the standard input; return what is said."""

    def run(*, ends: bool) -> str:
        given, taken = os.pipe()
        if ends:
            os.close(taken)
        with os.fdopen(given) as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            launchers = [(launcher.pid, born(launcher.pid))]
            facts = {"rank": 1, "num_ranks": 3, "near": 3, "job": "", "launchers": launchers}
            startup.main(**facts, mark=str(tmp_path / "ends"))
        if not ends:
            os.close(taken)
        return capsys.readouterr().err

    return run


def test_the_end_of_a_rank_ends_the_launcher(
    look_after: LookAfter, launcher: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    said = look_after(ends=True).splitlines()
    assert launcher.wait(timeout=10.0) == -signal.SIGTERM
    assert len(said) == 1
    assert said[0].startswith("mophpc: rank 1 on ")
    assert "ended before all 3 ranks had met" in said[0]
    assert not (tmp_path / "ends").exists()


def test_the_word_of_another_host_ends_the_launcher_too(
    look_after: LookAfter, launcher: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (tmp_path / "ends").touch()
    assert look_after(ends=False) == ""  # it was said there
    assert launcher.wait(timeout=10.0) == -signal.SIGTERM


def test_nothing_is_said_where_the_launcher_has_ended(
    look_after: LookAfter,
    monkeypatch: pytest.MonkeyPatch,
    launcher: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(startup, "born", lambda _: 0)
    assert look_after(ends=True) == ""
    assert launcher.poll() is None
    assert not (tmp_path / "ends").exists()


@pytest.mark.parametrize("ranks", ["1", "4"])
def test_most_runs_need_no_such_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: str
) -> None:
    """One rank, or a launcher that ends the others itself."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", ranks)
    monkeypatch.setenv(FT_ENABLED, "1" if ranks == "1" else "0")
    monkeypatch.setattr(lookout, "spawn", lambda *_: pytest.fail("a process was started"))
    startup.begin(tmp_path / "run")
    startup.met()


def test_the_file_by_which_hosts_tell_each_other_is_where_all_look(tmp_path: Path) -> None:
    found = startup.mark_of(tmp_path / "not" / "yet", "prterun-../n1@1")
    assert found == tmp_path / ".mophpc-prterun-n1-1-ends"
