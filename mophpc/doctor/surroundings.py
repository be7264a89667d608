"""One rank's host, versions and environment: facts, each found on its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mophpc.hop.aware import apart
from mophpc.launcher import launched_local_rank, launched_rank, launched_ranks

ALONE_S = 60.0
"""After so long an MPI that does not start in a process of its own is given up."""

PACKAGES = ("mophpc", "torch", "numpy", "zarr", "mpi4py")
TRAPS = (
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPU_BIND",
    "SLURM_TRES_PER_TASK",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
"""Variables that change what a run does, or how fast it is."""

_ASK = """
import json
import multiprocessing
from mpi4py import MPI
levels = ("single", "funneled", "serialized", "multiple")
known = dict(zip((MPI.THREAD_SINGLE, MPI.THREAD_FUNNELED, MPI.THREAD_SERIALIZED,
                  MPI.THREAD_MULTIPLE), levels))
name, number = MPI.get_vendor()
print(json.dumps({"mpi": f"{name} {'.'.join(map(str, number))}",
                  "thread_level": known[MPI.Query_thread()]}))
"""


def attempt(facts: dict[str, Any], key: str, probe: Callable[[], Any]) -> None:
    """Put what a probe finds into `facts`, or, under `failed`, why it found nothing."""
    try:
        facts[key] = probe()
    except Exception as error:  # a probe that fails is a finding
        text = str(error).splitlines()
        said = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        facts.setdefault("failed", {})[key] = said


def surroundings(environ: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return the facts that need neither MPI nor a GPU.

    Args:
        environ: the process's environment.
        folder: where runs would be written.
    """
    facts: dict[str, Any] = {"rank": launched_rank(environ)}
    attempt(facts, "host", socket.gethostname)
    attempt(facts, "python", platform.python_version)
    attempt(facts, "cores", lambda: len(os.sched_getaffinity(0)))
    attempt(facts, "launcher", lambda: launcher_of(environ))
    attempt(facts, "local_rank", lambda: launched_local_rank(environ))
    attempt(facts, "free_disk_bytes", lambda: shutil.disk_usage(folder).free)
    attempt(facts, "writable", lambda: is_writable(folder))
    attempt(facts, "shm_bytes", shared_memory_bytes)
    attempt(facts, "start_method", multiprocessing.get_start_method)
    attempt(facts, "environment", lambda: {k: environ[k] for k in TRAPS if k in environ})
    for package in PACKAGES:
        facts[package] = installed(package)
    return facts


def launcher_of(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the launcher's name and how many ranks it started; None without one."""
    found = launched_ranks(environ)
    return None if found is None else {"name": found[1], "ranks": found[0]}


def installed(package: str) -> str | None:
    """Return a package's version; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_writable(folder: Path) -> bool:
    """Return whether a file can be made in a folder; tried, as permissions do not tell."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
    except OSError:
        return False
    return True


def shared_memory_bytes() -> int | None:
    """Return the size of /dev/shm, which MPIs use between the ranks of a host."""
    path = Path("/dev/shm")
    return shutil.disk_usage(path).total if path.is_dir() else None


def ask_mpi_alone(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the MPI's name and thread level, found in a process of its own.

    Raises:
        RuntimeError: MPI does not start there, or not in time.
    """
    done = apart(_ASK, environ, ALONE_S)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"MPI ended with status {done.returncode}: {said}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found
