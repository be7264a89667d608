"""Where each rank is: a small file per rank in the run folder, for when it cannot say so itself.

`places/rank-0002` is one line of JSON, padded with spaces, which a rank overwrites when a visit
begins and about every second. What a process has written stays when it is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mophpc.errors import Place

SET_UP, VISIT, WAIT, OVER = "set-up", "visit", "wait", "over"
"""What a rank is doing: it sets up; trains, evaluates and saves; anything else; it has made all its
visits."""
RUNNING, ENDED, FAILED, INTERRUPTED = "running", "ended", "failed", "interrupted"
"""Of a rank: a file that says `running`, of a process that is gone, is that of a lost rank."""
_WORDS = {SET_UP: "in set-up", VISIT: "in", WAIT: "before or after", OVER: "after its visits"}
FIRST = 3.0
"""A config's first minibatch on a rank may take so many times as long: it may be compiled."""
BEAT_S = 1.0
"""Between two beats of a host to another."""
_BYTES = 2048
_NAME_LENGTH = 350


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """A rank, its process, and where it is."""

    rank: int
    num_ranks: int
    host: str
    realm: str
    """Equal on ranks that see each other's processes."""
    pid: int
    born: int
    """When the process was started, in ticks since its host was; the numbers of processes that
    have ended are given to others."""
    state: str = RUNNING
    doing: str = SET_UP
    config: str | None = None
    """Of the visit that it makes, or was to make next, or made last."""
    epoch: int | None = None
    shard: int | None = None
    batches: int = 0
    """Minibatches trained and evaluated, and everything else that shows that it gets on."""
    beats: int = 0
    """How often the file was written without news."""
    waits: bool = False
    """Whether it was seen to wait for others, and for nothing else."""
    limit_s: float = 0.0
    """After so long without news it hangs; 0: nobody can tell."""
    sent: int = 0
    """Beats that it has sent to the lowest rank of another host, by MPI."""

    @property
    def place(self) -> Place:
        """The same for messages."""
        shown = (self.rank, self.num_ranks, self.host)
        return Place(*shown, self.config, self.epoch, self.shard)

    @property
    def is_gone(self) -> bool:
        """Whether its process was seen to be gone; never where it cannot be seen."""
        return self.realm == realm() and born(self.pid) != self.born

    @property
    def is_lost(self) -> bool:
        """Whether its process is gone, and has not said that it ended."""
        return self.state == RUNNING and self.is_gone

    def __str__(self) -> str:
        place = str(self.place)
        if self.doing == WAIT and self.config is not None:
            return f"{place} (between two visits)"
        return f"{place}, {_WORDS[self.doing]}" if self.doing in (SET_UP, OVER) else place


def born(pid: int) -> int:
    """Return when a process was started, in ticks since its host was; 0: it is not there."""
    found = _stat(pid)
    return 0 if not found or found[0] in "ZX" else int(found[19])


def parent(pid: int) -> int:
    """Return the number of the process that has started another; 0: it is not known."""
    found = _stat(pid)
    return int(found[1]) if found else 0


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of a process, from its state on; nothing if it is not there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # its name, in brackets, may have spaces


def open_process(where: Whereabouts) -> int | None:
    """Return what becomes readable when a process ends; None: there is no such thing here."""
    try:
        return os.pidfd_open(where.pid)
    except (OSError, AttributeError):
        return None


def end_process(where: Whereabouts) -> None:
    """Kill a rank's process if it is there; never another one that has got its number.

    Args:
        where: what the rank has said of itself, to this process and not to a file.
    """
    fd = open_process(where)
    try:
        if where.is_gone or where.realm != realm():
            return
        if fd is None:
            os.kill(where.pid, signal.SIGKILL)
        else:  # was opened before it was looked at: what is looked at is what is killed
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just ended
    finally:
        if fd is not None:
            os.close(fd)


def is_stopped(pid: int) -> bool:
    """Return whether a process of this host was stopped by a signal."""
    found = _stat(pid)
    return bool(found) and found[0] in "Tt"


def realm() -> str:
    """Return a text that is equal for processes that see each other."""
    found = [socket.gethostname()]
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


def own_whereabouts(rank: int, num_ranks: int) -> Whereabouts:
    """Return what is known of this process from its beginning."""
    pid = os.getpid()
    return Whereabouts(rank, num_ranks, socket.gethostname(), realm(), pid, born(pid))


def from_record(record: Any) -> Whereabouts:
    """Return what a record says.

    Raises:
        ValueError: it is none.
    """
    types = {"int": int, "str": str, "bool": bool, "float": float | int}
    types |= {"str | None": str | None, "int | None": int | None}
    if not isinstance(record, dict):
        raise ValueError("not a record")
    names = [field.name for field in fields(Whereabouts)]
    for field in fields(Whereabouts):
        if not isinstance(record.get(field.name), types[str(field.type)]):
            raise ValueError(f"'{field.name}' is missing or wrong")
    found = Whereabouts(**{name: record[name] for name in names})
    if found.state not in (RUNNING, ENDED, FAILED, INTERRUPTED) or found.doing not in _WORDS:
        raise ValueError("a word is not known")
    return found


def place_file(run: Path, rank: int) -> Path:
    """Return where a rank says where it is."""
    return run / "places" / f"rank-{rank:04d}"


def count_file(run: Path, rank: int) -> Path:
    """Return where a host counts whose lowest rank is this one."""
    return run / "places" / f"host-{rank:04d}"


def firsts_of(ranks: Sequence[Whereabouts]) -> list[int]:
    """Return the lowest rank of each host, in order."""
    hosts: dict[str, int] = {}
    for where in ranks:
        hosts.setdefault(where.realm, where.rank)
    return list(hosts.values())


def read_place(run: Path, rank: int) -> Whereabouts | None:
    """Return where a rank was when it last said so; None: it cannot be known."""
    with suppress(OSError, ValueError, RecursionError):
        with place_file(run, rank).open("rb") as file:
            found = from_record(json.loads(file.read(_BYTES)))
        return found if found.rank == rank else None
    return None


def read_places(run: Path) -> list[Whereabouts]:
    """Return what can be known of all ranks of a run, by rank."""
    numbers = (path.name.removeprefix("rank-") for path in (run / "places").glob("rank-*"))
    ranks = sorted(int(number) for number in numbers if number.isdecimal())
    found = (read_place(run, rank) for rank in ranks)
    return [place for place in found if place is not None]


class Sign:
    """This rank's own file. An error in writing it never ends the run.

    Args:
        own: what is known at the beginning.
    """

    def __init__(self, own: Whereabouts) -> None:
        self.batches = 0
        """Counted up by who gets on; nothing else is asked of a minibatch."""
        self.waits = 0
        """Counted up while waiting for others."""
        self.sent = 0
        """Counted up with each beat to another host."""
        self.own = own
        self.changed_s = time.monotonic()
        """When this rank last began to do something else."""
        self.hang_s = 0.0
        """After so long without news this rank hangs, in a visit; 0: never."""
        self.on_visit: Callable[[float], None] | None = None
        """Told when a visit begins, and after how long without news this rank hangs in it."""
        self._known: set[str | None] = set()
        self._first = 0
        self._fd = -1
        self._lock = threading.Lock()

    def open(self, run: Path) -> None:
        """Begin to write."""
        with suppress(OSError):
            path = place_file(run, self.own.rank)
            path.parent.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)
        self._write()

    def at(self, place: Place) -> None:
        """Say where the rank is; nothing where it makes no visit."""
        if place.config is not None:
            self._change(doing=WAIT, config=place.config, epoch=place.epoch, shard=place.shard)

    def over(self) -> None:
        """Say that all visits are made."""
        self._change(doing=OVER)

    @contextmanager
    def visits(self) -> Iterator[None]:
        """Say that the visit is being made."""
        self._first = self.batches
        self._change(doing=VISIT, limit_s=self.limit_s)
        if self.on_visit is not None:
            self.on_visit(self.own.limit_s)
        try:
            yield
        finally:
            self.batches += 1
            self._known.add(self.own.config)
            self._change(doing=WAIT, writes=False)

    @property
    def limit_s(self) -> float:
        """After so long without news this rank hangs, in the visit that it makes."""
        is_known = self.batches > self._first or self.own.config in self._known
        return self.hang_s * (1.0 if is_known else FIRST)

    def beat(self, *, waits: bool, limit_s: float) -> None:
        """Show other ranks that this one can still show something; see `Whereabouts`."""
        self._change(beats=self.own.beats + 1, waits=waits, limit_s=limit_s)
        self._sync()

    def _sync(self) -> None:
        with suppress(OSError):  # ranks of other hosts see it only then
            if self._fd >= 0:
                os.fdatasync(self._fd)

    def say_sent(self) -> None:
        """Show ranks of other hosts that this one lives, and what was sent to them."""
        self._change(sent=self.sent, beats=self.own.beats + 1)
        self._sync()

    def close(self, state: str) -> None:
        """Say how this rank's part ended; the first word counts."""
        with self._lock:
            if self.own.state == RUNNING:
                self.own = replace(self.own, state=state, batches=self.batches)
                self._write()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _change(self, *, writes: bool = True, **facts: Any) -> None:
        with self._lock:
            if facts.get("doing", self.own.doing) != self.own.doing:
                self.changed_s = time.monotonic()
            self.own = replace(self.own, batches=self.batches, **facts)
            if writes:
                self._write()

    def _write(self) -> None:
        if self._fd < 0:
            return
        facts = asdict(self.own)
        if self.own.config is not None:
            facts["config"] = self.own.config[:_NAME_LENGTH]
        data = json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
        if len(data) < _BYTES:
            with suppress(OSError):  # the disk is full; perhaps not for ever
                os.pwrite(self._fd, data.ljust(_BYTES - 1) + b"\n", 0)
