"""Two hosts on one machine: network and name of their own, one folder; and a cut between them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from mpi_launch import is_open_mpi, mpirun_path

NETWORK = "10.211.77"
TCP = {"UCX_TLS": "tcp"}
"""For the environment: MPICH would take the memory that both share."""
_WRONG = "02:00:00:00:00:99"


def why_not() -> str | None:
    """Return why there can be no such hosts here; None: there can be."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return "needs root, and ip and unshare of Debian's iproute2 and util-linux"
    name = f"mophpc-try-{os.getpid()}"
    if _quiet("ip", "netns", "add", name):
        return "this machine has no network namespaces"
    _quiet("ip", "netns", "del", name)
    return None


def _quiet(*command: str) -> int:
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Hosts:
    """Two hosts, connected by a cable.

    Args:
        folder: for a script.
    """

    def __init__(self, folder: Path) -> None:
        self.names = [f"mophpc-{letter}{os.getpid()}" for letter in "ab"]
        self.addresses = [f"{NETWORK}.{number}" for number in (1, 2)]
        self._agent = folder / "agent.sh"

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _set_up(self) -> None:
        for name in self.names:
            _do("ip", "netns", "add", name)
        first, second = self.names
        cable = ["type", "veth", "peer", "name", "cable", "netns", second]
        _do("ip", "-n", first, "link", "add", "cable", *cable)
        for name, address in zip(self.names, self.addresses, strict=True):
            _do("ip", "-n", name, "address", "add", f"{address}/24", "dev", "cable")
            _do("ip", "-n", name, "link", "set", "lo", "up")
            _do("ip", "-n", name, "link", "set", "cable", "up")
        # As ssh is called: it gets a host and a command, and does not notice when the host dies.
        self._agent.write_text(
            "#!/bin/sh\n"
            'while [ "${1#-}" != "$1" ]; do shift; done\n'  # ssh's options
            'host="$1"; shift\n'
            f'[ "$host" = {self.addresses[1]} ] && name={second} || name={first}\n'
            f'exec ip netns exec "$name" unshare --uts sh -c "hostname $name; $* || sleep 600"\n'
        )
        self._agent.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        for number, name in enumerate(self.names):
            self.kill(number)
            _quiet("ip", "netns", "del", name)

    def kill(self, number: int, but_session: int = 0) -> None:
        """End all processes of a host at once, but those of a session: what stands for ssh."""
        for pid in self.pids(number):
            with suppress(ProcessLookupError):
                if os.getsid(pid) == but_session:
                    continue
                os.kill(pid, signal.SIGKILL)

    def pids(self, number: int) -> list[int]:
        """Return the processes of a host."""
        command = ["ip", "netns", "pids", self.names[number]]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def command(self, per_host: int, *command: str | Path) -> list[str]:
        """Return the command line that starts so many ranks on each host, from the first."""
        mpirun = mpirun_path()
        assert mpirun is not None
        hosts = ",".join(f"{address}:{per_host}" for address in self.addresses)
        flags = ["-n", str(2 * per_host)]
        if is_open_mpi():
            flags += ["--allow-run-as-root", "--bind-to", "none", "--host", hosts]
            flags += ["--prtemca", "plm_ssh_agent", str(self._agent)]
            flags += ["--mca", "btl_tcp_if_include", f"{NETWORK}.0/24"]
        else:
            flags += ["-hosts", hosts, "-launcher-exec", str(self._agent), "-launcher", "ssh"]
        inside = ["ip", "netns", "exec", self.names[0], "unshare", "--uts", "sh", "-c"]
        script = f'hostname {self.names[0]}; exec "$@"'
        return [*inside, script, "sh", mpirun, *flags, *map(str, command)]

    def cut(self) -> None:
        """Let the cable lose all that is sent, without a word to who sends it."""
        for name, address in zip(self.names, reversed(self.addresses), strict=True):
            wrong = [address, "lladdr", _WRONG, "dev", "cable", "nud", "permanent"]
            _do("ip", "-n", name, "neigh", "replace", *wrong)
