"""What the systems' files share: what they are asked for, and what they answer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

Record = dict[str, Any]
"""An epoch of a config: `config` (its number), `epoch`, `time` (seconds since 1970), `network`
(bytes that had gone over lo by then), `accuracy`, `valid_loss`."""

HOST = "127.0.0.1"
START_S = 120  # seconds that servers have to come up


@dataclass(frozen=True)
class Spec:
    """What a system is asked for."""

    ranks: int
    epochs: int
    seed: int
    configs: list[dict[str, Any]]
    data: str
    """Folder with the layouts of `compare_data.py`."""
    scratch: str
    """An empty folder for whatever the system writes."""

    def worker(self, index: int) -> str:
        """Return the folder of a worker's own copy of all rows."""
        return str(Path(self.data) / f"worker-{index}")


def lo_bytes() -> int:
    """Return the bytes that have gone over the loopback interface."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Return whether somebody listens on a port of the loopback interface."""
    with socket.socket() as trial:
        return trial.connect_ex((HOST, port)) == 0


def no_servers(_: Spec) -> AbstractContextManager[None]:
    """Start nothing."""
    return nullcontext()


def drive(
    train: Callable[[Spec], list[Record]],
    servers: Callable[[Spec], AbstractContextManager[Any]] = no_servers,
) -> None:
    """Start a system's servers, let it train, and write what came of it into `result.json`."""
    spec = Spec(**json.loads(Path(sys.argv[1]).read_text()))
    called = time.time()
    with servers(spec):
        begin, before = time.time(), lo_bytes()
        records = train(spec)
        end, after = time.time(), lo_bytes()
    found = {"called": called, "begin": begin, "end": end, "network": after - before}
    answer = {**found, "network_before": before, "records": records}
    (Path(spec.scratch) / "result.json").write_text(json.dumps(answer))


@contextmanager
def running(
    *commands: Sequence[str], environments: Sequence[Mapping[str, str]] = ()
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keep commands running, the n-th with the n-th additional environment, and end them."""
    found: list[subprocess.Popen[bytes]] = []
    try:
        for index, command in enumerate(commands):
            own = environments[index] if environments else {}
            found.append(subprocess.Popen(list(command), env={**os.environ, **own}))
        yield found
    finally:
        for process in reversed(found):
            process.terminate()
        for process in found:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    """Return once something is so.

    Raises:
        TimeoutError: it never is.
    """
    deadline = time.monotonic() + START_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {START_S} s")
        time.sleep(0.1)


def torchrun(script: str, spec: Spec) -> list[Record]:
    """Run a file on all ranks as PyTorch's launcher does; return what rank 0 `noted`."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={spec.ranks}"]
    command += [f"--master-addr={HOST}", f"--master-port={free_port()}", script, sys.argv[1]]
    subprocess.run(command, check=True)
    return noted(spec)


def leave() -> NoReturn:
    """End a process of `torchrun` that has done its work, at once.

    PyTorch 2.13 keeps gloo's threads after `destroy_process_group`. One that wants Python when that
    has ended aborts the process, here once in ten times, and torchrun takes it for a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def note(spec: Spec, record: Record) -> None:
    """Keep a record, from a process that cannot return it."""
    with (Path(spec.scratch) / "records.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def noted(spec: Spec) -> list[Record]:
    """Return all records that were kept."""
    lines = (Path(spec.scratch) / "records.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
