"""Watches over the ranks: one that is lost or hangs is named, and the others end.

A thread of each rank sleeps until the kernel says that the process of another rank of its host is
gone, and looks about every second whether this rank and its neighbour get on.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mophpc.errors import CutOffError, InterruptError, LostError, Place, UnreachableError
from mophpc.files import write_json
from mophpc.hop.collectives import Group
from mophpc.hop.transport import Transport
from mophpc.run.faults import lookout, startup
from mophpc.run.faults.hanging import Hanging
from mophpc.run.faults.heartbeat import Heartbeat
from mophpc.run.faults.loss import lost, memory_kills
from mophpc.run.faults.places import (
    FAILED,
    RUNNING,
    Sign,
    Whereabouts,
    end_process,
    firsts_of,
    from_record,
    open_process,
    own_whereabouts,
    place_file,
    read_place,
)
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.folder import RunFolder

GRACE_S = 3.0
"""The thread that trains may take so long to end the run; then this one does."""
ABORT_S = 2.0
"""MPI may take so long to end this process."""
CUT_ABORT_S = 1.0
"""The same where a host cannot be reached: MPI mostly hangs then."""
BEFORE_S = 0.25
"""A signal that came so much earlier is why the processes of other ranks end."""
_CALM_S = 1.0
_KILLS_S = 5.0
_JOIN_S = 0.5
_LATE_S = 0.3


class Watch:
    """Watches from `meet` to `close`; where it is not told to meet others it watches nobody.

    Args:
        transport: of this rank.
        stop: what ends the thread that trains.
        survives: whether the others go on without a rank that is lost.
    """

    def __init__(self, transport: Transport, stop: StopFlag, *, survives: bool = False) -> None:
        self._survives = survives
        self.sign = Sign(own_whereabouts(transport.rank, transport.size))
        self._transport = transport
        self._stop = stop
        self._ranks = [self.sign.own]
        self._near: list[Whereabouts] = []
        """Ranks whose processes this one can see, as far as they live."""
        self._folder: RunFolder | None = None
        self._log: logging.Logger | None = None
        self._hanging: Hanging | None = None
        self._heartbeat: Heartbeat | None = None
        self._kills = (memory_kills(),) * 2  # some seconds ago, and after that
        self._kills_due_s = time.monotonic()
        self._lock = threading.RLock()
        self._loss: LostError | None = None
        self._ended = threading.Event()
        self._lookout: subprocess.Popen[bytes] | None = None
        self._wake = (-1, -1)
        self._thread: threading.Thread | None = None

    def meet(self, group: Group) -> None:
        """Collective. Get to know the other ranks' processes, and begin."""
        met = group.share(group.gather(asdict(self.sign.own)))
        startup.met()
        self._ranks = [from_record(record) for record in met]
        own = self.sign.own
        self._near = [w for w in self._ranks if w.realm == own.realm and w.rank != own.rank]
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def begin(self, folder: RunFolder, log: logging.Logger, hang_s: float) -> None:
        """From now on there is a run folder.

        Args:
            folder: of the run.
            log: of this rank.
            hang_s: after so long without a minibatch a rank hangs; 0: never.
        """
        self.sign.open(folder.path)
        if self.sign.own.rank == 0:  # an earlier run here may have had more ranks
            for path in place_file(folder.path, 0).parent.glob("rank-*"):
                number = path.name.removeprefix("rank-")
                if number.isdecimal() and int(number) >= self.sign.own.num_ranks:
                    path.unlink(missing_ok=True)
        with self._lock:
            self._folder, self._log = folder, log
            if hang_s > 0.0 and self._thread is not None:
                self._hanging = Hanging(self.sign, self._ranks, folder, hang_s)
        self._rouse()
        here = [self.sign.own, *self._near]
        watches = self._thread is not None and len(self._ranks) > 1 and self.speaks
        counts = self._has_other_hosts and not self._survives
        if watches and (counts or lookout.is_wanted(os.environ, len(here))):
            self._lookout = lookout.start(folder.path, here, counts=counts)

    def listen(self, silent_s: float) -> Heartbeat | None:
        """Look after other hosts from now on, if this rank is to.

        Args:
            silent_s: a host that was not heard for so long is given up; 0: none is.

        Returns:
            What has to be tested with all other messages.
        """
        watches = self._thread is not None and self._folder is not None and self.speaks
        if not (watches and self._has_other_hosts and silent_s > 0.0) or self._survives:
            return None
        assert self._folder is not None
        found = Heartbeat(self._transport, self.sign, self._ranks, self._folder.path, silent_s)
        self._heartbeat = found
        return found

    @property
    def _has_other_hosts(self) -> bool:
        return len(firsts_of(self._ranks)) > 1

    def close(self, state: str) -> None:
        """Say how this rank's part ended, and watch no more; the first word counts."""
        self.sign.close(state)
        self._ended.set()
        self._rouse()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)
            if not thread.is_alive():
                os.close(self._wake[0])
                os.close(self._wake[1])
                self._wake = (-1, -1)
        if self._hanging is not None:
            self._hanging.close()
        if self._lookout is not None and not isinstance(self._loss, CutOffError):
            lookout.stop(self._lookout)  # else it has a launcher to end
            self._lookout = None

    def instead_of(self, error: BaseException) -> BaseException:
        """Return the loss of a rank that is behind an error; else the error itself."""
        if self._loss is None and isinstance(error, InterruptError | UnreachableError):
            deadline = time.monotonic() + (_LATE_S if isinstance(error, UnreachableError) else 0.0)
            self._look_near()
            while self._loss is None and time.monotonic() < deadline:
                time.sleep(0.01)
                self._look_near()
        if self._loss is None and isinstance(error, InterruptError) and self._folder is not None:
            self._listen()
        if self._loss is None and isinstance(error, UnreachableError) and error.peer >= 0:
            text = f"{error}, last seen as {self._last(self._ranks[error.peer])}"
            return UnreachableError(text, error.peer)
        lost_ends_all = isinstance(error, InterruptError | UnreachableError | LostError)
        return error if self._loss is None or not lost_ends_all else self._loss

    @property
    def speaks(self) -> bool:
        """Whether this is the lowest rank, of those whose processes can be seen, that lives."""
        return all(where.rank > self.sign.own.rank for where in self._near)

    def _rouse(self) -> None:
        if self._wake[1] >= 0:
            os.write(self._wake[1], b".")

    def _run(self) -> None:
        """Watch; an error in that ends no run."""
        poll, fds = select.poll(), {}
        poll.register(self._wake[0], select.POLLIN)
        for where in self._near:
            if (fd := open_process(where)) is not None:
                fds[fd] = where
                poll.register(fd, select.POLLIN)
        sees_all = len(fds) == len(self._near)
        try:
            while not self._ended.is_set() and self._loss is None:
                pause_s = _CALM_S if self._hanging is None else self._hanging.pause_s
                for fd, _ in poll.poll(pause_s * 1000.0):
                    if fd == self._wake[0]:
                        os.read(fd, 64)
                    else:
                        poll.unregister(fd)
                        self._look_near()
                if not sees_all:
                    self._look_near()
                self._look_around()
        except Exception as error:  # whatever it is, training goes on
            if self._log is not None:
                self._log.warning("ranks are not watched any more: %s", error, exc_info=error)
        for fd in fds:
            os.close(fd)
        if self._survives:  # states are being written, however long that takes
            return
        if self._loss is not None and not self._ended.wait(GRACE_S):
            self.abort()

    def _look_near(self) -> None:
        """Find ranks of this host that are gone and have not said why."""
        with self._lock:
            gone = [where for where in self._near if where.is_gone]
            if not gone or self._loss is not None or self._ended.is_set():
                return
            signalled_s = self._stop.signalled_s
            self._near = [where for where in self._near if where not in gone]
            found = [self._last(where) for where in gone]
            found = [where for where in found if where.state == RUNNING]
            if found and not (signalled_s is not None and signalled_s > BEFORE_S):
                memory = memory_kills() > self._kills[0]
                self._end(lost(found, memory=memory), speaks=self.speaks)

    def _look_around(self) -> None:
        """Find a rank that hangs, or one that has found another."""
        now_s = time.monotonic()
        if now_s >= self._kills_due_s:
            self._kills_due_s = now_s + _KILLS_S
            self._kills = (self._kills[1], memory_kills())
        if self._folder is None or self._loss is not None:
            return
        found = None if self._hanging is None else self._hanging.look()
        if self._hanging is None or found is None:
            unheard = None if self._heartbeat is None else self._heartbeat.look()
            if unheard is None:
                self._listen()
                return
            with self._lock:
                self._end(unheard, speaks=True)
            return
        with self._lock:
            self._end(found[0], speaks=True)
        if self._survives and found[1].realm == self.sign.own.realm:
            # The others could not connect without it, nor with it. Which process it is, it has said
            # itself when the ranks met; a file in the run folder may say anything.
            end_process(self._ranks[found[1].rank])
            return
        time.sleep(2.0 * self._hanging.pause_s)  # the others look too, and have to log it
        if found[1].rank == self.sign.own.rank and not self._ended.is_set():
            self.abort()  # who trains cannot end the run

    def _listen(self) -> None:
        """Take over what another rank has found."""
        heard = self._hear()
        if heard is not None:
            # What the host says that cannot be reached, people do not see.
            speaks = isinstance(heard, CutOffError) and self._heartbeat is not None
            with self._lock:
                self._end(heard, speaks=speaks)

    def _end(self, loss: LostError, *, speaks: bool) -> None:
        """Say it, and let the thread that trains end."""
        if self._loss is not None:
            return
        text = str(loss)
        if self._log is not None:
            self._log.log(logging.ERROR if speaks else logging.WARNING, "%s", text)
        elif speaks:
            print(f"mophpc: {text}", file=sys.stderr, flush=True)
        if speaks and self._folder is not None:
            is_cut = isinstance(loss, CutOffError)
            facts = {"place": str(loss.place), "cause": loss.cause} | ({"cut": 1} if is_cut else {})
            failure = self._folder.path / f"failure-rank-{loss.place.rank:04d}.json"
            with contextlib.suppress(OSError):
                write_json(failure, facts)
                write_json(self._word, asdict(loss.place) | {"cause": loss.cause, "cut": is_cut})
        self._loss = loss
        self._stop.end(loss)  # last: then the process may end at any time

    @property
    def _word(self) -> Path:
        """Holds what one rank has found of another.

        Rank 0's process is in its name, and the number of ranks: so what an earlier run has found
        here, or this one before it went on without a rank, is not taken for news.
        """
        assert self._folder is not None
        root = self._ranks[0]
        return place_file(self._folder.path, 0).with_name(
            f"lost-{root.pid}-{root.born}-{root.num_ranks}.json"
        )

    def _hear(self) -> LostError | None:
        """Return what another rank has found."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            record: dict[str, Any] = json.loads(self._word.read_bytes())
            cause, is_cut = str(record.pop("cause")), bool(record.pop("cut", False))
            return (CutOffError if is_cut else LostError)(Place(**record), cause)
        return None

    def _last(self, where: Whereabouts) -> Whereabouts:
        """Return where a rank was last, as far as one knows."""
        found = None if self._folder is None else read_place(self._folder.path, where.rank)
        same = found is not None and (found.pid, found.born) == (where.pid, where.born)
        return found if found is not None and same else where

    def abort(self) -> None:
        """End all ranks; MPI may hang, and this process ends in any case."""
        self.sign.close(FAILED)
        nowhere: IO[str] = Path(os.devnull).open("w")  # noqa: SIM115  # open as long as it may be used
        within_s = CUT_ABORT_S if isinstance(self._loss, CutOffError) else ABORT_S
        faulthandler.dump_traceback_later(within_s, file=nowhere, exit=True)
        self._transport.abort(LostError.exit_status)
