"""Start mpirun from a test, as a user does; the whole process group ends with the test."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# What a launcher tells its ranks; a test under mpirun must not pass it on to another mpirun.
_FROM_A_LAUNCHER = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDRA_", "HYDI_", "MPIR_", "MPI_LOCAL")


@functools.cache
def mpirun_path() -> str | None:
    """Return the mpirun of this environment's wheel, else the one on PATH."""
    wheels = Path(sys.prefix, "bin", "mpirun")
    return str(wheels) if wheels.exists() else shutil.which("mpirun")


@functools.cache
def is_open_mpi() -> bool:
    """Tell whether that mpirun is Open MPI's, and not MPICH's or one like it."""
    return (
        "Open MPI"
        in subprocess.run(
            [_found(), "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    )


def mpirun_command(num_ranks: int, *command: str | Path) -> list[str]:
    """Return the command line that runs `command` on so many ranks of this machine."""
    flags = []
    if is_open_mpi():
        flags += ["--oversubscribe", "--bind-to", "none"]
        if os.geteuid() == 0:
            flags.append("--allow-run-as-root")
    return [_found(), *flags, "-n", str(num_ranks), *map(str, command)]


def launched(
    num_ranks: int, *command: str | Path, env: Mapping[str, str] | None = None, **popen: Any
) -> subprocess.Popen[str]:
    """Start `command` under mpirun, as `started` does."""
    return started(mpirun_command(num_ranks, *command), env=env, **popen)


def started(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, **popen: Any
) -> subprocess.Popen[str]:
    """Start a command line in a session (and so a process group) of its own.

    The environment's programs come first on PATH: `mophpc` and `python` are the tested ones. `env`
    is added to this process's environment. Use `end` on what this returns, whatever happens.
    """
    popen = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
    return subprocess.Popen(
        command,
        env=_environment(env or {}),
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        **popen,
    )


def mpirun(
    num_ranks: int,
    *command: str | Path,
    timeout: float = 180.0,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `command` under mpirun and return its exit status and output.

    Open MPI's launcher does not start, once in hundreds of times, since PMIx finds no address to
    listen at; no rank has run then, and it is started a second time.

    Raises:
        AssertionError: it took longer than `timeout` seconds; with what it had printed.
    """
    done = _run(num_ranks, *command, timeout=timeout, env=env, cwd=cwd)
    if done.returncode and "PMIx server's listener thread failed to start" in done.stderr:
        done = _run(num_ranks, *command, timeout=timeout, env=env, cwd=cwd)
    return done


def _run(
    num_ranks: int,
    *command: str | Path,
    timeout: float,
    env: Mapping[str, str] | None,
    cwd: str | Path | None,
) -> subprocess.CompletedProcess[str]:
    process = launched(num_ranks, *command, env=env, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _stop(process)
        out, err = process.communicate()
        raise AssertionError(
            f"no end after {timeout:g} s: {' '.join(map(str, command))}\n{out}\n{err}"
        ) from None
    finally:
        end(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def end(process: subprocess.Popen[str]) -> None:
    """End mpirun with all its ranks, where it still runs, and close its pipes."""
    _stop(process)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _stop(process: subprocess.Popen[str], grace_s: float = 5.0) -> None:
    if process.poll() is None:
        # Open MPI's ranks outlive a killed mpirun: let it end them itself.
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            _kill_descendants(process.pid)
            process.wait(grace_s)


def _kill_descendants(pid: int) -> None:
    import psutil

    try:
        top = psutil.Process(pid)
        family = [*top.children(recursive=True), top]  # ranks lead process groups of their own
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_FROM_A_LAUNCHER)
    }
    # Unbuffered, Python writes a line in pieces, and MPICH mixes those of several ranks.
    environment.pop("PYTHONUNBUFFERED", None)
    environment["PATH"] = f"{Path(sys.prefix, 'bin')}{os.pathsep}{environment.get('PATH', '')}"
    # Looking for a fabric costs every start of Open MPI a second.
    environment |= {"OMPI_MCA_mtl": "^ofi", "OMPI_MCA_btl": "^ofi"}
    return environment | dict(extra)


def _found() -> str:
    path = mpirun_path()
    if path is None:
        raise AssertionError("there is no mpirun in this environment, nor on PATH")
    return path
