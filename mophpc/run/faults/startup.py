"""A process beside each rank, until all have met: one that dies before that is named, and all end.

Where ranks are to go on without one that dies, Open MPI's launcher ends nobody for it; and until
MPI has started in all of them, it is MPI itself that waits for it, without end (MPI 4.1, 11.2:
initialisation is collective). `python -m mophpc.run.faults.startup FACTS` waits for its standard
input to end, which is to say, for its rank. A rank that died before it had such a process is missed
by that of the lowest rank of its host. Processes on other hosts learn of it from a file beside the
run folder: the launcher goes on without one of its daemons, and ends with its first process only.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mophpc.launcher import FT_ENABLED, launched_rank, launched_ranks
from mophpc.run.faults import lookout
from mophpc.run.faults.places import born, parent

BEAT_S = 1.0
"""Between two looks at whether another host says that all are to end."""
LOOKS = 5
"""At every fifth it is seen whether all ranks of the host are there; one is missed the second
time."""
GRACE_S = 3.0
"""Within so long the launcher ends by itself where all ranks end."""
LEAVE_S = 2.0
"""So long the file is there at least, from when a launcher has ended."""
_RANK, _NEAR, _JOB = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"

_beside: subprocess.Popen[bytes] | None = None
_has_begun = False


def begin(out: Path) -> None:
    """Have this rank looked after until `met`, if its launcher ends nobody when it dies.

    Args:
        out: the run folder that is to be.
    """
    global _beside, _has_begun  # noqa: PLW0603  # MPI, which it is for, is one in a process too
    launched = launched_ranks(os.environ)
    if _has_begun or os.environ.get(FT_ENABLED) != "1" or launched is None or launched[0] == 1:
        return
    _has_begun = True
    launchers = lookout.launchers_of(os.getpid())  # nobody can tell when this process is gone
    if not launchers:
        return
    job = os.environ.get(_JOB, "")
    facts = {
        "rank": launched_rank(os.environ),
        "num_ranks": launched[0],
        "near": int(os.environ.get(_NEAR, "0")),
        "job": job,
        "launchers": launchers,
        "mark": str(mark_of(out, job)),
    }
    with suppress(OSError):
        _beside = lookout.spawn("mophpc.run.faults.startup", json.dumps(facts))
        atexit.register(met)  # a rank that ends by itself has said why


def met() -> None:
    """All ranks have met, and look after each other from now on; or this one has given up."""
    global _beside  # noqa: PLW0603  # see above
    if _beside is not None:
        lookout.stop(_beside)
        _beside = None


def mark_of(out: Path, job: str) -> Path:
    """Return the file that says to all hosts that the ranks of a job are to end.

    Args:
        out: the run folder that is to be; the file is in the nearest folder that is there.
        job: the launcher's name for it, which no other has.
    """
    near = next(folder for folder in out.resolve().parents if folder.is_dir())
    return near / f".mophpc-{re.sub(r'[^A-Za-z0-9]+', '-', job)}-ends"


def ranks_of(launcher: int, job: str) -> list[int]:
    """Return the ranks of a job that a launcher's process has started here, as far as they live."""
    found = []
    for folder in Path("/proc").iterdir():
        if not (folder.name.isdecimal() and parent(pid := int(folder.name)) == launcher):
            continue
        with suppress(OSError, ValueError, KeyError):
            items = (folder / "environ").read_bytes().split(b"\0")
            values = dict(item.split(b"=", 1) for item in items if b"=" in item)
            if born(pid) and values.get(_JOB.encode(), b"") == job.encode():
                found.append(int(values[_RANK.encode()]))
    return sorted(found)


def wait(rank: int, near: int, launcher: int, job: str, mark: Path) -> str:
    """Wait until a rank is gone; return which, in words, or nothing where another host says it."""
    is_missed, looks = False, 0
    while not select.select([sys.stdin], [], [], BEAT_S)[0]:
        looks += 1
        if mark.exists():
            return ""
        if looks % LOOKS:
            continue
        there = ranks_of(launcher, job)
        missing = near - len(there)
        if is_missed and missing > 0 and there[:1] == [rank]:
            return f"{missing} of the {near} ranks"
        is_missed = missing > 0
    return f"rank {rank}"


def main(
    *,
    rank: int,
    num_ranks: int,
    near: int,
    job: str,
    launchers: Sequence[tuple[int, int]],
    mark: str,
) -> None:
    """Wait for the end of the rank that has started this process, or for that of another one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    launcher, birth = launchers[0]
    who = wait(rank, near, launcher, job, Path(mark))
    if who:
        time.sleep(GRACE_S)
    if born(launcher) != birth:
        return
    if who:
        with suppress(OSError):
            Path(mark).touch()
        print(
            f"mophpc: {who} on {socket.gethostname()} ended before all {num_ranks} ranks had met, "
            f"and MPI cannot start without: all are ended; run the same command again",
            file=sys.stderr,
            flush=True,
        )
    lookout.end_launchers(launchers)
    time.sleep(LEAVE_S)  # the others may look for it yet
    Path(mark).unlink(missing_ok=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
