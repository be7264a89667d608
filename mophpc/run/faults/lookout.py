"""A process beside the lowest rank of a host, which can still speak when all ranks were killed.

`python -m mophpc.run.faults.lookout RUN KILLS` gets its ranks as JSON on its standard input, and
ends with the first of them. MPICH's launcher kills all ranks some milliseconds after one has died;
and where a host has one rank only, nobody else can see how it ends.
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

from mophpc.files import write_json
from mophpc.launcher import HYDRA, launched_ranks
from mophpc.run.faults.loss import lost, memory_kills
from mophpc.run.faults.places import RUNNING, Whereabouts, from_record, read_place

LEAVE_S = 0.3
"""The ranks that live may say it first."""


def is_wanted(environ: Mapping[str, str], on_host: int) -> bool:
    """Return whether the ranks of a host cannot be trusted to see the end of each other."""
    launched = launched_ranks(environ)
    return hasattr(os, "pidfd_open") and (
        on_host == 1 or (launched is not None and launched[1] == HYDRA)
    )


def start(run: Path, ranks: Sequence[Whereabouts]) -> subprocess.Popen[bytes] | None:
    """Start the process; None where that cannot be."""
    # Its own MPI, which it does not have, must not be told that it is a rank.
    ours = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDI_", "HYDRA_", "MPI_LOCAL", "SLURM_", "PALS_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "mophpc.run.faults.lookout", str(run), str(memory_kills())]
    try:
        found = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environ, process_group=0
        )
        assert found.stdin is not None
        with found.stdin as pipe:
            pipe.write(json.dumps([asdict(where) for where in ranks]).encode())
    except OSError:
        return None
    return found


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process."""
    process.kill()
    process.wait()


def wait_for_one(ranks: Sequence[Whereabouts]) -> list[Whereabouts]:
    """Wait until processes are gone; return whose they were."""
    poll, fds = select.poll(), {}
    for where in ranks:
        with suppress(OSError):
            fds[found := os.pidfd_open(where.pid)] = where
            poll.register(found, select.POLLIN)
    gone = [where for where in ranks if where.is_gone]
    while not gone:  # who is gone a moment later may have been ended for it
        gone = [fds[fd] for fd, _ in poll.poll()]
    return gone


def main(run: Path, kills: int) -> None:
    """Wait for a rank to end; name it if neither it nor another rank has said why."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    gone = wait_for_one([from_record(record) for record in json.load(sys.stdin)])
    seen_s = time.time()
    found = []
    for where in gone:
        last = read_place(run, where.rank)
        same = last is not None and (last.pid, last.born) == (where.pid, where.born)
        found.append(last if last is not None and same else where)
    found = [where for where in found if where.state == RUNNING]
    if not found:
        return
    time.sleep(LEAVE_S)
    for failure in run.glob("failure-rank-*.json"):
        with suppress(OSError):
            if failure.stat().st_mtime > seen_s - 2.0:
                return
    loss = lost(found, memory=memory_kills() > kills)
    with suppress(OSError):
        facts = {"place": str(loss.place), "cause": loss.cause}
        write_json(run / f"failure-rank-{loss.place.rank:04d}.json", facts)
    print(f"mophpc: {loss}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
