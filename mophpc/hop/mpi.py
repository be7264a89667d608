"""MPI as a transport; the only file that imports mpi4py."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import mpi4py

# The library is asked for its name before it is initialised: one that does not belong to the
# launcher may not survive its initialisation.
mpi4py.rc.initialize = False
mpi4py.rc.finalize = True
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mpi4py's doubts about the launcher; ours are an error
    from mpi4py import MPI

from mophpc.errors import LaunchError, UnreachableError  # noqa: E402  # after the settings above
from mophpc.hop.drain import drain_output  # noqa: E402
from mophpc.hop.transport import NUM_CHANNELS, Buffer, Request  # noqa: E402
from mophpc.launcher import FT_ENABLED, HYDRA, OPEN_MPI, launched_ranks  # noqa: E402


class _MpiRequest:
    __slots__ = ("_buffer", "_open", "_peer", "_request")

    def __init__(
        self, request: MPI.Request, buffer: Buffer, peer: int, is_open: set[_MpiRequest]
    ) -> None:
        self._request = request
        self._buffer = buffer
        self._peer = peer
        self._open = is_open
        is_open.add(self)  # MPI reads or writes the buffer until the request is done

    def test(self) -> bool:
        try:
            is_done: bool = self._request.Test()
        except MPI.Exception as error:
            self._open.discard(self)
            raise _failure(error, self._peer) from error
        if is_done:
            self._open.discard(self)
        return is_done

    def cancel(self) -> None:
        with contextlib.suppress(MPI.Exception):
            self._request.Cancel()
            self._request.Wait()
        self._open.discard(self)


def _failure(error: MPI.Exception, peer: int) -> UnreachableError:
    text = error.Get_error_string().partition("\n")[0]
    whose = f"rank {peer}" if peer >= 0 else "another rank"
    return UnreachableError(f"MPI: {text}, in a message from or to {whose}", peer)


class MpiTransport:
    """The transport of this process in `comm`. Collective: duplicates the communicator."""

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        comm = MPI.COMM_WORLD if comm is None else comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.takes_devices = True
        self.threaded: bool = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        # Own communicators: no message of the user's program can match ours, nor the reverse.
        self._comms = tuple(comm.Dup() for _ in range(NUM_CHANNELS))
        self._open: set[_MpiRequest] = set()

    def isend(self, buffer: Buffer, dest: int, tag: int, channel: int) -> _MpiRequest:
        """Start to send; see `Transport`."""
        try:
            request = self._comms[channel].Isend([buffer, len(buffer), MPI.BYTE], dest, tag)
        except MPI.Exception as error:
            raise _failure(error, dest) from error
        return _MpiRequest(request, buffer, dest, self._open)

    def irecv(self, buffer: Buffer, source: int, tag: int, channel: int) -> _MpiRequest:
        """Start to receive; see `Transport`."""
        try:
            request = self._comms[channel].Irecv([buffer, len(buffer), MPI.BYTE], source, tag)
        except MPI.Exception as error:
            raise _failure(error, source) from error
        return _MpiRequest(request, buffer, source, self._open)

    def test_any(self, requests: Sequence[Request]) -> int | None:
        """Return the index of one that is done; see `Transport`.

        A test costs a round of all that MPI looks after, so a rank that waits for many messages
        must not test each (MPI 4.1, section 3.7.5, MPI_TESTANY).
        """
        mine = cast("Sequence[_MpiRequest]", requests)
        try:
            index, is_done = MPI.Request.Testany([own._request for own in mine])
        except MPI.Exception as error:
            failed = [own for own in mine if own._request == MPI.REQUEST_NULL]
            self._open.difference_update(failed)
            raise _failure(error, failed[0]._peer if failed else -1) from error
        if not is_done or index == MPI.UNDEFINED:
            return None
        self._open.discard(mine[index])
        return index

    def local_rank(self) -> int:
        """Return this process's number among those that share its memory. Collective."""
        comm = self._comms[0].Split_type(MPI.COMM_TYPE_SHARED)
        found = comm.Get_rank()
        comm.Free()
        return found

    @property
    def survives(self) -> bool:
        """Whether the MPI was told to go on when a process dies."""
        return os.environ.get(FT_ENABLED) == "1"

    def all_well(self, *, is_well: bool) -> bool:
        """Collective among the ranks that live. Return whether none is lost, and all say so.

        All get the same answer. Where one says that it is not well, whoever waits for a message on
        this transport stops waiting, and comes here too.
        """
        global _has_lost  # noqa: PLW0603  # of this process, to its end
        if not is_well:
            self._revoke()
        try:
            found = self._comms[0].Agree(int(is_well)) == 1
        except MPI.Exception:  # a rank has died, which all learn of
            return False
        _has_lost |= found  # one that dies while MPI ends would be waited for without end
        return found

    def survivors(self) -> MpiTransport:
        """Collective among the ranks that live. Return the transport that connects them.

        What is under way on this one fails from now on, on every rank.
        """
        global _has_lost, _leads  # noqa: PLW0603  # of this process, to its end
        _has_lost = True
        self._revoke()
        found = _connected(self._comms[0])
        self._abandon()
        _leads = found.rank == 0
        return found

    def launched_as(self) -> list[int]:
        """Return by rank what its number was in MPI_COMM_WORLD."""
        own, world = self._comms[0].Get_group(), MPI.COMM_WORLD.Get_group()
        found = MPI.Group.Translate_ranks(own, None, world)
        own.Free()
        world.Free()
        return list(found)

    def _revoke(self) -> None:
        for comm in self._comms:
            with contextlib.suppress(MPI.Exception):
                comm.Revoke()

    def _abandon(self) -> None:
        """Let what is under way end with an error; keep the memory of what does not."""
        deadline_s = time.monotonic() + ABANDON_S
        while self._open and time.monotonic() < deadline_s:
            for request in list(self._open):
                with contextlib.suppress(UnreachableError):
                    request.test()
        _abandoned.extend(self._open)

    def abort(self, status: int) -> None:
        """End all ranks. Does not return."""
        drain_output()
        self._comms[0].Abort(status)

    def close(self) -> None:
        """Free the communicators. Collective."""
        for comm in self._comms:
            comm.Free()


def _connected(comm: MPI.Comm) -> MpiTransport:
    """Collective among the ranks of `comm` that live. Return the transport of just these.

    Another may die on the way; then all begin anew.
    """
    while True:
        comm = comm.Shrink()
        found = None
        try:
            found = MpiTransport(comm)
        except MPI.Exception:
            with contextlib.suppress(MPI.Exception):
                comm.Revoke()
        with contextlib.suppress(MPI.Exception):
            if comm.Agree(int(found is not None)) == 1 and found is not None:
                return found
        with contextlib.suppress(MPI.Exception):
            comm.Revoke()


def library_version() -> str:
    """Return the MPI library's name and version, as in `Open MPI 5.0.11`."""
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}"


def thread_level() -> str:
    """Return what this MPI allows threads to do: `single`, `funneled`, `serialized`, `multiple`."""
    levels = {
        MPI.THREAD_SINGLE: "single",
        MPI.THREAD_FUNNELED: "funneled",
        MPI.THREAD_SERIALIZED: "serialized",
        MPI.THREAD_MULTIPLE: "multiple",
    }
    return levels[MPI.Query_thread()]


def start_mpi(environ: Mapping[str, str] = os.environ) -> MpiTransport:
    """Initialise MPI and return this process's transport. Collective.

    Raises:
        LaunchError: the launcher and mpi4py speak different MPIs; raised by each process, alone.
    """
    _check_library(environ)
    if not MPI.Is_initialized():
        is_limited = os.environ.get(FT_ENABLED) == "1"
        if is_limited:  # nobody ends a start that waits for a process which has died
            faulthandler.dump_traceback_later(START_S, exit=True)
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
        if is_limited:
            faulthandler.cancel_dump_traceback_later()
    launched = launched_ranks(environ)
    size = MPI.COMM_WORLD.Get_size()
    if launched is not None and launched[0] != size:
        ranks, launcher = launched
        raise LaunchError(
            f"{launcher} started {ranks} processes but mpi4py sees {size}; {_advice(launcher)}"
        )
    return MpiTransport()


START_S = 300.0
"""Where ranks are to survive, MPI may take so long to start; it cannot without one that died."""

ABANDON_S = 0.2
"""What was under way to a rank that is lost may take so long to fail."""

_abandoned: list[_MpiRequest] = []
"""Their buffers: MPI may still write them."""
_has_lost = False
_leads: bool | None = None


def leads() -> bool | None:
    """Return whether this rank is the lowest of those that have gone on; None: none has died."""
    return _leads


def has_lost() -> bool:
    """Return whether ranks have died, or may die yet: MPI cannot be ended then."""
    return _has_lost


def finalize() -> None:
    """End MPI. Collective; nothing where ranks have died, for MPI would wait for them."""
    if MPI.Is_initialized() and not MPI.Is_finalized() and not _has_lost:
        MPI.Finalize()


def abort_unless_alone(status: int) -> None:
    """End all ranks, this one included, if there are others; does not return then."""
    if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.Get_size() > 1:
        drain_output()
        MPI.COMM_WORLD.Abort(status)


def _check_library(environ: Mapping[str, str]) -> None:
    launched = launched_ranks(environ)
    if launched is None or launched[0] == 1:
        return
    is_open_mpi = MPI.get_vendor()[0] == "Open MPI"
    launcher = launched[1]
    if (launcher == OPEN_MPI and not is_open_mpi) or (launcher == HYDRA and is_open_mpi):
        raise LaunchError(f"the launcher is that of {launcher}; {_advice(launcher)}")


def _advice(launcher: str) -> str:
    if MPI.get_vendor()[0] == launcher:
        return (
            f"they are two installations of {launcher}, or a variable of the launcher is left "
            f"over: start with the launcher of the one that mpi4py uses"
        )
    return (
        f"mpi4py uses {library_version()}: start with the launcher of that MPI, or make mpi4py "
        f"use the MPI of {launcher}"
    )
