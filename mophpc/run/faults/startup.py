"""A process beside each rank, until all have met: one that dies before that is named, and all end.

Where ranks are to go on without one that dies, Open MPI's launcher ends nobody for it; and until
MPI has started in all of them, it is MPI itself that waits for it, without end (MPI 4.1, 11.2:
initialisation is collective). `python -m mophpc.run.faults.startup FACTS` waits for its standard
input to end, which is to say, for its rank. A rank that died before it had such a process is missed
by that of the lowest rank of its host.
"""

from __future__ import annotations

import atexit
import json
import os
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

LOOK_S = 5.0
"""Between two looks at whether all ranks of the host are there; one is missed at the second."""
GRACE_S = 3.0
"""Within so long the launcher ends by itself where all ranks end."""
_RANK, _NEAR, _JOB = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"

_beside: subprocess.Popen[bytes] | None = None
_has_begun = False


def begin() -> None:
    """Have this rank looked after until `met`, if its launcher ends nobody when it dies."""
    global _beside, _has_begun  # noqa: PLW0603  # MPI, which it is for, is one in a process too
    launched = launched_ranks(os.environ)
    if _has_begun or os.environ.get(FT_ENABLED) != "1" or launched is None or launched[0] == 1:
        return
    _has_begun = True
    launchers = lookout.launchers_of(os.getpid())  # nobody can tell when this process is gone
    if not launchers:
        return
    facts = {
        "rank": launched_rank(os.environ),
        "num_ranks": launched[0],
        "near": int(os.environ.get(_NEAR, "0")),
        "job": os.environ.get(_JOB, ""),
        "launchers": launchers,
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


def wait(rank: int, near: int, launcher: int, job: str) -> str:
    """Wait until a rank of this host is gone; return which, in words."""
    is_missed = False
    while not select.select([sys.stdin], [], [], LOOK_S)[0]:
        there = ranks_of(launcher, job)
        missing = near - len(there)
        if is_missed and missing > 0 and there[:1] == [rank]:
            return f"{missing} of the {near} ranks"
        is_missed = missing > 0
    return f"rank {rank}"


def main(
    *, rank: int, num_ranks: int, near: int, job: str, launchers: Sequence[tuple[int, int]]
) -> None:
    """Wait for the end of the rank that has started this process, or for that of another one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    launcher, birth = launchers[0]
    who = wait(rank, near, launcher, job)
    time.sleep(GRACE_S)
    if born(launcher) == birth:
        print(
            f"mophpc: {who} on {socket.gethostname()} ended before all {num_ranks} ranks had met, "
            f"and MPI cannot start without: all are ended; run the same command again",
            file=sys.stderr,
            flush=True,
        )
        lookout.end_launchers(launchers)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
