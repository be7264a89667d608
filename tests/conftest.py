"""Two kinds of session: plain, and `--with-mpi` under mpirun, where every rank runs pytest.

Under mpirun the ranks run the same MPI tests in step. After each phase of a test they gather their
verdicts, so that a failure on one rank is a failure, with that rank's traceback, on all of them.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import threading
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpi4py import MPI

# One thread per rank, and so one rounding: before anything imports torch or numpy.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

hypothesis.settings.register_profile(
    "mophpc",
    deadline=None,
    database=None,
    derandomize="CI" in os.environ or "--with-mpi" in sys.argv,  # ranks must draw the same
)
hypothesis.settings.load_profile("mophpc")

LONELY_S = 20.0  # a rank whose test has failed waits so long for the others to fail or to pass
FROM_LAUNCHER = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rank says of one phase of a test."""

    outcome: str
    summary: str
    text: str
    sections: tuple[tuple[str, str], ...]


class MpiSession:
    """The part of a pytest session that the ranks do together."""

    def __init__(self, comm: MPI.Comm, stderr_fd: int) -> None:
        self.comm = comm
        self._stderr_fd = stderr_fd

    def say(self, text: str) -> None:
        """Write past pytest's capture: for a rank that may not live to report."""
        lines = f"\n==== rank {self.comm.rank} of {self.comm.size}: {text}\n"
        os.write(self._stderr_fd, lines.encode())

    def gather(self, nodeid: str, mine: Verdict) -> list[Verdict]:
        """Return the verdicts of all ranks. Collective.

        A failed rank whose peers are still in the test, waiting for it perhaps, tells why it
        failed and ends the run.
        """
        arrival = self.comm.Ibarrier()
        patience = time.monotonic() + LONELY_S
        while not arrival.Test():
            time.sleep(0.001)
            if mine.outcome == "failed" and time.monotonic() > patience:
                self.say(f"failed in {nodeid}, and other ranks are still in it\n{mine.text}")
                self.comm.Abort(1)
        # As a plain tuple: a folder of tests with a conftest.py of its own shadows this module's
        # name, by which pickle would look the class up.
        return [Verdict(*theirs) for theirs in self.comm.allgather(astuple(mine))]

    def guard(self, nodeid: str, timeout_s: float) -> threading.Timer:
        """Start a timer that shows every thread of this rank and ends the run."""

        def expire() -> None:
            self.say(f"no end of {nodeid} after {timeout_s:g} s")
            faulthandler.dump_traceback(file=self._stderr_fd)
            time.sleep(2.0)  # the first rank to leave takes the others with it: let them show too
            os._exit(1)

        timer = threading.Timer(timeout_s, expire)
        timer.daemon = True
        timer.start()
        return timer


_session = pytest.StashKey[MpiSession]()
_guard = pytest.StashKey[threading.Timer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--with-mpi", action="store_true", help="run the tests marked mpi, on the ranks of mpirun"
    )


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--with-mpi"):
        return
    from mpi4py import MPI

    told = next((int(os.environ[name]) for name in FROM_LAUNCHER if name in os.environ), 1)
    if told != MPI.COMM_WORLD.size:
        raise pytest.UsageError(
            f"mpirun started {told} ranks, but mpi4py sees {MPI.COMM_WORLD.size}: "
            f"they belong to different MPIs (this is {' '.join(map(str, MPI.get_vendor()))})"
        )
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        stderr_fd = os.dup(2)
    config.stash[_session] = MpiSession(MPI.COMM_WORLD.Dup(), stderr_fd)
    # Of its own: pytest tidies up old folders, and ranks would do so in each other's.
    folder = Path(tempfile.gettempdir(), f"pytest-of-uid-{os.getuid()}-rank-{MPI.COMM_WORLD.rank}")
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
    if MPI.COMM_WORLD.rank > 0:
        # Rank 0 reports for all. The writer is pytest's, and there is no public way to hush it.
        reporter: Any = config.pluginmanager.getplugin("terminalreporter")
        reporter._tw._file = Path(os.devnull).open("w")  # noqa: SIM115 - open until the end


def pytest_report_header(config: pytest.Config) -> str | None:
    session = config.stash.get(_session, None)
    if session is None:
        return None
    from mpi4py import MPI

    name, version = MPI.get_vendor()
    vendor = f"{name} {'.'.join(map(str, version))}"
    return f"mpi: {vendor}, rank {session.comm.rank} of {session.comm.size}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    session = config.stash.get(_session, None)
    sorted_out: dict[bool, list[pytest.Item]] = {True: [], False: []}
    for item in items:
        sorted_out[bool(item.get_closest_marker("mpi")) == bool(session)].append(item)
    config.hook.pytest_deselected(items=sorted_out[False])
    items[:] = sorted_out[True]
    if session is None:
        return
    for item in items:
        marker = item.get_closest_marker("mpi")
        min_size = marker.kwargs.get("min_size", 1) if marker else 1
        if session.comm.size < min_size:
            item.add_marker(pytest.mark.skip(reason=f"needs {min_size} ranks"))


def pytest_collection_finish(session: pytest.Session) -> None:
    mpi = session.config.stash.get(_session, None)
    if mpi is None:
        return
    mine = ([item.nodeid for item in session.items], session.testsfailed)
    if any(theirs != mine for theirs in mpi.comm.allgather(mine)):
        reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
        for report in reporter.stats.get("error", []):
            mpi.say(report.longreprtext)
        mpi.comm.Barrier()
        raise pytest.UsageError("the ranks have not collected the same tests")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outside of what turns failures into xfail
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    session = item.config.stash.get(_session, None)
    if session is None:
        return report
    crash = getattr(report.longrepr, "reprcrash", None)
    summary = crash.message.partition("\n")[0] if crash else ""
    verdicts = session.gather(
        item.nodeid,
        Verdict(report.outcome, summary, report.longreprtext, tuple(report.sections)),
    )
    failed = {rank: said for rank, said in enumerate(verdicts) if said.outcome == "failed"}
    outcomes = {said.outcome for said in verdicts}
    if failed:
        report.longrepr = "\n\n".join(
            f"rank {rank} of {session.comm.size}: {said.summary}\n{said.text}"
            for rank, said in failed.items()
        )
        report.sections = [
            (f"{title}, rank {rank}", content)
            for rank, said in failed.items()
            for title, content in said.sections
        ]
    elif len(outcomes) > 1:
        report.longrepr = "the ranks disagree: " + ", ".join(
            f"rank {rank} {said.outcome}" for rank, said in enumerate(verdicts)
        )
    else:
        return report
    report.outcome = "failed"
    # On the ranks that had passed or skipped, nothing may still speak of an expected failure.
    report.__dict__.pop("wasxfail", None)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    session = item.config.stash.get(_session, None)
    if session is None:
        return None
    item.stash[_guard] = session.guard(item.nodeid, settings.timeout)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool | None:
    guard = item.stash.get(_guard, None)
    if guard is None:
        return None
    guard.cancel()
    return True


@pytest.fixture
def comm(request: pytest.FixtureRequest) -> MPI.Comm:
    """A communicator over all ranks that no other test uses. Collective."""
    # Never freed: that is collective too, and would hang where a test has failed.
    return request.config.stash[_session].comm.Dup()


@pytest.fixture
def shared_path(comm: MPI.Comm, tmp_path: Path) -> Path:
    """A fresh folder, the same one on every rank. Collective."""
    shared: Path = comm.bcast(tmp_path)
    return shared
