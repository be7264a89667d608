"""A real Slurm of four nodes on this machine, for tests: everything in one folder, all on loopback.

    python tests/slurm/cluster.py start FOLDER     prints the SLURM_CONF to export
    python tests/slurm/cluster.py stop FOLDER      ends what was started

It takes Debian's packages, which `launch/slurm.sh` installs, and no file outside of FOLDER: munge
has a key and a socket of its own. Only processes that it started are ended, by their ids.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n0", "n1", "n2", "n3")
CPUS = 4
"""Of each node by its own account; the nodes share the machine's."""
GPUS = 2
"""Of each node, and there are none: what Slurm counts and hands out is looked at."""

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
PLUGINS = ("mpi_pmix.so", "mpi_pmi2.so")
SBIN = "/usr/sbin:/sbin"

CONF = """\
ClusterName=mophpc
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n/spool
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmdLogFile={folder}/%n/slurmd.log
# Without a folder of its own each node's PMIx fails to start.
TmpFS={folder}/%n/tmp
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=8
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
MinJobAge=3600
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2,sched_min_interval=100000
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why no cluster can be started here, or None."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"there is no {missing[0]}; launch/slurm.sh installs Debian's packages"
    for plugin in PLUGINS:
        if not any(Path("/usr/lib").glob(f"*/slurm*/{plugin}")):
            return f"Slurm's {plugin} is missing; launch/slurm.sh installs Debian's packages"
    if not any(Path("/usr/lib").glob("*/libpmix.so*")):
        return "libpmix is missing; launch/slurm.sh installs Debian's packages"
    return None


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody uses now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Cluster:
    """Daemons that run, and commands to them."""

    folder: Path
    pids: dict[str, int] = field(default_factory=dict)
    """By name: munged, slurmctld and the nodes."""
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Those of them that this process started, and must reap."""

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need."""
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ.get('PATH', '')}:{SBIN}",
        }

    def command(self, *arguments: str, timeout: float = 30.0) -> str:
        """Run one of Slurm's commands and return what it prints.

        Raises:
            AssertionError: it failed; with what it said.
        """
        done = subprocess.run(
            arguments,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def start_node(self, node: str) -> None:
        """Start a node's slurmd, the first time or again."""
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd and all that runs on the node, as if its power had failed."""
        for pid in descendants([self.pids[node]]) | self._steps(node):
            _signal(pid, signal.SIGKILL)
        self._reap(node)

    def wait_for_nodes(self, wanted: str = "idle", timeout: float = 30.0) -> None:
        """Wait until all nodes are in this state.

        Raises:
            AssertionError: they are not in time; with their states.
        """
        limit = time.monotonic() + timeout
        while True:
            try:
                states = self.command("sinfo", "--noheader", "--Node", "--format=%T").split()
            except AssertionError as error:
                states = [str(error)]
            if states == [wanted] * len(NODES):
                return
            if time.monotonic() > limit:
                raise AssertionError(f"the nodes are not {wanted}: {states}; see {self.folder}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End everything that was started, ranks of runs that go on included."""
        mine = set(self.pids.values())
        steps = descendants(mine) | {pid for node in NODES for pid in self._steps(node)}
        for name in ("slurmctld", *NODES, "munged"):
            if name in self.pids:
                _signal(self.pids[name], signal.SIGTERM)
        limit = time.monotonic() + 5.0
        while time.monotonic() < limit and any(map(self._is_alive, self.pids)):
            time.sleep(0.05)
        for pid in mine | steps:
            _signal(pid, signal.SIGKILL)
        for name in list(self.children):
            self._reap(name)
        self.pids.clear()

    def _start(self, name: str, *command: str) -> None:
        log = self.folder / f"{name}.out"
        with log.open("ab") as out:
            child = subprocess.Popen(
                command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.children[name] = child
        self.pids[name] = child.pid
        (self.folder / "pids.json").write_text(json.dumps(self.pids))

    def _reap(self, name: str) -> None:
        child = self.children.pop(name, None)
        if child is not None:
            child.wait(10.0)
        self.pids.pop(name, None)

    def _is_alive(self, name: str) -> bool:
        child = self.children.get(name)
        if child is not None:
            return child.poll() is None
        return Path(f"/proc/{self.pids[name]}").exists()

    def _steps(self, node: str) -> set[int]:
        """Return the processes of runs on a node: its slurmstepd are no children of slurmd."""
        found = set()
        for pid, words in command_lines():
            # slurmstepd: [JOBID.STEP]; the folder of its node is among its open files
            if words.startswith("slurmstepd") and self._is_of(pid, node):
                found |= descendants([pid])
        return found

    def _is_of(self, pid: int, node: str) -> bool:
        spool = str(self.folder / node)
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(link).startswith(spool):
                        return True
        return False


def command_lines() -> Iterator[tuple[int, str]]:
    """Yield the id and the command line of each process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_text().replace("\0", " ")


def descendants(pids: Iterable[int]) -> set[int]:
    """Return these processes and their children's children."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found: set[int] = set()
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += parents.get(pid, [])
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def start(folder: Path) -> Cluster:
    """Start munge, slurmctld and four slurmd, and wait until the nodes are idle."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    user, host = pwd.getpwuid(os.geteuid()).pw_name, socket.gethostname()
    ctld_port, *ports = free_ports(1 + len(NODES))
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} "
        f"RealMemory=2000 Gres=gpu:{GPUS} State=UNKNOWN"
        for node, port in zip(NODES, ports, strict=True)
    ]
    (folder / "state").mkdir()
    for node in NODES:
        for name in ("spool", "tmp"):
            (folder / node / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(
        CONF.format(
            folder=folder, user=user, host=host, ctld_port=ctld_port, nodes="\n".join(nodes)
        )
    )
    for number in range(GPUS):  # Slurm asks for a file, and takes any
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")
    cluster = Cluster(folder)
    try:
        _start_munge(cluster)
        cluster._start("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            cluster.start_node(node)
        cluster.wait_for_nodes()
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _start_munge(cluster: Cluster) -> None:
    munge = cluster.folder / "munge"
    munge.mkdir(mode=0o755)
    key = munge / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    options = {"key-file": "key", "socket": "socket", "log-file": "log", "pid-file": "pid"}
    options["seed-file"] = "seed"
    paths = [f"--{option}={munge / name}" for option, name in options.items()]
    cluster._start("munged", "munged", "--foreground", "--force", "--num-threads=2", *paths)
    limit = time.monotonic() + 10.0
    while not (munge / "socket").exists():
        if time.monotonic() > limit:
            raise AssertionError(f"munge did not start: see {munge / 'log'}")
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    reason = why_not()
    if reason is not None:
        parser.error(reason)
    if given.action == "start":
        cluster = start(given.folder)
        print(f"export SLURM_CONF={cluster.environment['SLURM_CONF']}")
    else:
        folder = given.folder.resolve()
        Cluster(folder, json.loads((folder / "pids.json").read_text())).stop()


if __name__ == "__main__":
    main()
