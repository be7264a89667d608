"""What is said of a rank that is lost or hangs, and what can be found out about why."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mophpc.errors import LostError
from mophpc.run.faults.places import Whereabouts, is_stopped, realm

_TAIL_BYTES = 65536
_STACK_LOOK_S = 0.05
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.+)')


def memory_kills() -> int:
    """Return how many processes this host has killed for lack of memory since it was started."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def lost(found: Sequence[Whereabouts], *, memory: bool) -> LostError:
    """Return the error that names ranks whose processes are gone.

    Args:
        found: where they were; not in the order in which they went, which nobody knows.
        memory: whether this host has killed a process for lack of memory meanwhile.
    """
    cause = f"it is lost: its process has ended without a word{_when(found[0])}"
    why = "; this host has just killed a process for lack of memory" if memory else ""
    also = "; ".join(str(where) for where in found[1:4])
    also += f"; and {len(found) - 4} more" if len(found) > 4 else ""
    also = f"; others at the same time, for it or with it: {also}" if also else ""
    return LostError(found[0].place, f"{cause}{why}{also}")


def hangs(
    where: Whereabouts, seconds: float, log: Path, shown: str, *, patience_s: float = 0.0
) -> LostError:
    """Return the error that names a rank which gets on no more.

    Args:
        where: it was last.
        seconds: without a minibatch.
        log: that has its stack.
        shown: the same, to be read.
        patience_s: how long to wait for its stack, which is being written perhaps.
    """
    cause = f"it hangs: no minibatch for {seconds:.0f} s"
    if where.realm == realm() and is_stopped(where.pid):
        return LostError(where.place, f"{cause}; its process {where.pid} was stopped by a signal")
    deadline = time.monotonic() + patience_s
    while (frame := innermost(log)) is None and time.monotonic() < deadline:
        time.sleep(_STACK_LOOK_S)
    if frame is None:
        return LostError(where.place, f"{cause}, and it left no stack{_when(where)}")
    return LostError(where.place, f"{cause}; it is {frame} (stacks in {shown})")


def stalled(places: Sequence[Whereabouts], seconds: float) -> LostError:
    """Return the error that says that all ranks wait for each other."""
    own = places[0]
    others = "; ".join(str(where) for where in places[1:4])
    more = f"; and {len(places) - 4} more" if len(places) > 4 else ""
    cause = f"all ranks have waited for each other for {seconds:.0f} s: {others or 'only it'}{more}"
    return LostError(own.place, cause)


def _when(where: Whereabouts) -> str:
    words = {"set-up": " in set-up", "wait": " between two visits", "over": " after its visits"}
    return words.get(where.doing, "")


def innermost(log: Path) -> str | None:
    """Return where the newest stack of a rank's log was, as `in f (file.py, line 3)`."""
    with suppress(OSError):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        stacks: list[list[tuple[str, str, str]]] = []
        for line in lines:
            if line.startswith(("Thread 0x", "Current thread 0x")):
                stacks.append([])
            elif stacks and (found := _FRAME.match(line)) is not None:
                stacks[-1].append((found[1], found[2], found[3]))
        for stack in reversed(stacks):
            if any(function == "run_rank" for _, _, function in stack):
                file_name, number, function = stack[0]
                return f"in {function} ({file_name}, line {number})"
    return None
