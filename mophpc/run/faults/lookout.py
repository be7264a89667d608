"""A process beside the lowest rank of a host, which can still speak when all ranks were killed.

`python -m mophpc.run.faults.lookout RUN KILLS COUNTS` gets its ranks as JSON on its standard input,
and ends with the first of them. MPICH's launcher kills all ranks some milliseconds after one has
died; and where a host has one rank only, nobody else can see how it ends. In a run on several hosts
it also counts, so that the others see that this one can be reached, whatever its ranks are doing.
Where another cannot be, it ends a launcher that waits for it: Open MPI's would wait for ever.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mophpc.files import write_json
from mophpc.launcher import HYDRA, launched_ranks
from mophpc.run.faults.loss import lost, memory_kills
from mophpc.run.faults.places import (
    BEAT_S,
    RUNNING,
    Whereabouts,
    born,
    count_file,
    from_record,
    parent,
    read_place,
)

WIDTH = 12
LAUNCHER_S = 1.5
"""Between two looks at whether the launcher has ended."""
_GENERATIONS = 4
_LAUNCHERS = ("prterun", "prted", "mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy")
_RECENT_S = 10.0
LEAVE_S = 0.3
"""The ranks that live may say it first."""


def is_wanted(environ: Mapping[str, str], on_host: int) -> bool:
    """Return whether the ranks of a host cannot be trusted to see the end of each other."""
    launched = launched_ranks(environ)
    return hasattr(os, "pidfd_open") and (
        on_host == 1 or (launched is not None and launched[1] == HYDRA)
    )


def start(
    run: Path, ranks: Sequence[Whereabouts], *, counts: bool
) -> subprocess.Popen[bytes] | None:
    """Start the process; None where that cannot be.

    Args:
        run: the run folder.
        ranks: of this host, the lowest first.
        counts: whether there are other hosts, which look at how far it has counted.
    """
    try:
        found = spawn("mophpc.run.faults.lookout", run, memory_kills(), int(counts))
        assert found.stdin is not None
        with found.stdin as pipe:
            pipe.write(json.dumps([asdict(where) for where in ranks]).encode())
    except OSError:
        return None
    return found


def spawn(module: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a module as a process beside this rank, which a signal to the ranks does not reach.

    Raises:
        OSError: it cannot be started.
    """
    # Its own MPI, which it does not have, must not be told that it is a rank.
    ours = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDI_", "HYDRA_", "MPI_LOCAL", "SLURM_", "PALS_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environ, process_group=0
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End such a process."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


class Counter:
    """Counts in a file, about every second. An error in writing it ends nothing.

    Args:
        path: of the file; None: nobody looks.
    """

    def __init__(self, path: Path | None) -> None:
        self._count, self._fd = 0, -1
        if path is not None:
            with suppress(OSError):
                path.parent.mkdir(exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(path, flags, 0o644)

    @property
    def pause_ms(self) -> float | None:
        """Until it is to count again; None: never."""
        return None if self._fd < 0 else BEAT_S * 1000.0

    def up(self) -> None:
        """Count."""
        if self._fd < 0:
            return
        self._count += 1
        with suppress(OSError):  # other hosts see it only when it is on disk
            os.pwrite(self._fd, f"{self._count:<{WIDTH}}\n".encode(), 0)
            os.fdatasync(self._fd)


def wait_for_one(ranks: Sequence[Whereabouts], counter: Counter) -> list[Whereabouts]:
    """Wait until processes are gone, and count meanwhile; return whose they were."""
    poll, fds = select.poll(), {}
    for where in ranks:
        with suppress(OSError):
            fds[found := os.pidfd_open(where.pid)] = where
            poll.register(found, select.POLLIN)
    gone = [where for where in ranks if where.is_gone]
    while not gone:  # who is gone a moment later may have been ended for it
        counter.up()
        gone = [fds[fd] for fd, _ in poll.poll(counter.pause_ms)]
    return gone


def launchers_of(pid: int) -> list[tuple[int, int]]:
    """Return numbers and births of the launcher's processes on this host, as far as it has such."""
    found = []
    for _ in range(_GENERATIONS):
        pid = parent(pid)
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() in _LAUNCHERS:
                found.append((pid, born(pid)))
    return found


def end_launchers(launchers: Sequence[tuple[int, int]]) -> None:
    """End a launcher whose ranks have ended; the second signal tells it not to wait for others."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        time.sleep(LAUNCHER_S)
        for pid, birth in launchers:
            if born(pid) == birth:
                with suppress(OSError):
                    os.kill(pid, number)


def _said(run: Path, since_s: float) -> dict[str, Any] | None:
    """Return what a rank has said of a failure in these seconds; None where none has."""
    found: dict[str, Any] | None = None
    for failure in sorted(run.glob("failure-rank-*.json")):
        with suppress(OSError):
            if failure.stat().st_mtime > since_s - _RECENT_S:
                found = found or {}
                with suppress(ValueError, RecursionError):
                    record = json.loads(failure.read_bytes())
                    found |= record if isinstance(record, dict) else {}
    return found


def main(run: Path, kills: int, *, counts: bool) -> None:
    """Wait for a rank to end; name it if neither it nor another rank has said why."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ranks = [from_record(record) for record in json.load(sys.stdin)]
    launchers = launchers_of(ranks[0].pid)
    counter = Counter(count_file(run, ranks[0].rank) if counts else None)
    gone = wait_for_one(ranks, counter)
    seen_s = time.time()
    found = []
    for where in gone:
        last = read_place(run, where.rank)
        same = last is not None and (last.pid, last.born) == (where.pid, where.born)
        found.append(last if last is not None and same else where)
    found = [where for where in found if where.state == RUNNING]
    if found:
        time.sleep(LEAVE_S)
    said = _said(run, seen_s)
    if said is not None and "cut" in said:
        end_launchers(launchers)
    if not found or said is not None:
        return
    loss = lost(found, memory=memory_kills() > kills)
    with suppress(OSError):
        facts = {"place": str(loss.place), "cause": loss.cause}
        write_json(run / f"failure-rank-{loss.place.rank:04d}.json", facts)
    print(f"mophpc: {loss}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), counts=sys.argv[3] == "1")
