"""MPI as a transport; the only file that imports mpi4py."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from mpi4py import MPI

from mophpc.errors import HopError, LaunchError
from mophpc.hop.transport import NUM_CHANNELS, Buffer
from mophpc.launcher import launched_ranks


class _MpiRequest:
    __slots__ = ("_buffer", "_request")

    def __init__(self, request: MPI.Request, buffer: Buffer) -> None:
        self._request = request
        self._buffer = buffer  # MPI reads or writes it until the request is done

    def test(self) -> bool:
        try:
            return self._request.Test()
        except MPI.Exception as error:
            raise HopError(f"MPI: {error.Get_error_string()}") from error


class MpiTransport:
    """The transport of this process in `comm`. Collective: duplicates the communicator."""

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        comm = MPI.COMM_WORLD if comm is None else comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        # Own communicators: no message of the user's program can match ours, nor the reverse.
        self._comms = tuple(comm.Dup() for _ in range(NUM_CHANNELS))

    def isend(self, buffer: Buffer, dest: int, tag: int, channel: int) -> _MpiRequest:
        """Start to send; see `Transport`."""
        request = self._comms[channel].Isend([buffer, len(buffer), MPI.BYTE], dest, tag)
        return _MpiRequest(request, buffer)

    def irecv(self, buffer: Buffer, source: int, tag: int, channel: int) -> _MpiRequest:
        """Start to receive; see `Transport`."""
        request = self._comms[channel].Irecv([buffer, len(buffer), MPI.BYTE], source, tag)
        return _MpiRequest(request, buffer)

    def abort(self, status: int) -> None:
        """End all ranks. Does not return."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._comms[0].Abort(status)

    def close(self) -> None:
        """Free the communicators. Collective."""
        for comm in self._comms:
            comm.Free()


def library_version() -> str:
    """Return the MPI library's name and version, on one line."""
    return MPI.Get_library_version().replace("\0", "").splitlines()[0].strip(" ,")


def check_launch(environ: Mapping[str, str] = os.environ) -> None:
    """Check that the launcher and mpi4py speak the same MPI.

    Raises:
        LaunchError: the launcher started several processes and each is alone.
    """
    launched = launched_ranks(environ)
    size = MPI.COMM_WORLD.Get_size()
    if launched is None or launched[0] == size:
        return
    ranks, launcher = launched
    raise LaunchError(
        f"{launcher} started {ranks} processes but mpi4py sees {size} (it uses "
        f"{library_version()}); start them with the launcher of that MPI, or install the mpi4py "
        f"and MPI that belong to {launcher}"
    )
