"""Experiments that are submitted to the cluster of the tests, as a user does, and their jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cluster import Cluster, command_lines

HERE = Path(__file__).parent
TOML = """
build = "{file}:build"
epochs = {epochs}
seed = 5
[data]
store = "{store}"
[schedule]
costs = "equal"
[space]
lr = [0.003, 0.01, 0.03, 0.1]
"""
ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # Looking for a fabric costs every start of Open MPI a second.
    "OMPI_MCA_mtl": "^ofi",
    "OMPI_MCA_btl": "^ofi",
    # Ranks are more than cores here, and neither srun nor Open MPI knows.
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # UCX's addresses are long, and Slurm 22.05 now and then garbles what is long over PMI-2.
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "NO_COLOR": "1",
}


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted, and the folder that it was submitted from."""

    cluster: Cluster
    job: str
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def facts(self) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        words = self.cluster.command("scontrol", "--oneliner", "show", "job", self.job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def nodes(self) -> list[str]:
        """Return where it runs or has run."""
        found = self.facts()["NodeList"]
        return self.cluster.command("scontrol", "show", "hostnames", found).split()

    def wait_for(
        self, *states: str, restarts: int | None = None, timeout: float = 180.0
    ) -> dict[str, str]:
        """Wait until the job is in one of these states, and has been restarted so often."""
        limit = time.monotonic() + timeout
        while True:
            facts = self.facts()
            if facts["JobState"] in states and restarts in (None, int(facts["Restarts"])):
                return facts
            if time.monotonic() > limit:
                said = "\n".join((str(facts), self.log, self.cluster.command("sinfo", "-N")))
                raise AssertionError(f"the job is not {' or '.join(states)}: {said}")
            time.sleep(0.1)

    def wait_for_epochs(self, count: int, timeout: float = 180.0) -> None:
        """Wait until so many epochs of configs have been evaluated."""
        journal, limit = self.run / "metrics.jsonl", time.monotonic() + timeout
        while not journal.exists() or len(journal.read_text().splitlines()) < count:
            assert time.monotonic() < limit, f"{self.facts()}\n{self.log}"
            time.sleep(0.05)

    def start_again(self, restarts: int = 1) -> None:
        """Let a job that was put back start at once: Slurm waits two minutes by itself.

        When this returns it has left the queue, so that nobody takes it for put back once more.
        """
        self.wait_for("PENDING", restarts=restarts, timeout=60.0)
        # The end of the script that goes would be taken for that of the one that comes, and a node
        # refuses a job again in the seconds in which it has ended it.
        limit = time.monotonic() + 30.0
        while self._is_on_a_node():
            assert time.monotonic() < limit, self.log
            time.sleep(0.05)
        time.sleep(2.1)
        if self.facts()["JobState"] == "PENDING":
            self.cluster.command("scontrol", "update", f"JobId={self.job}", "StartTime=now")
        limit = time.monotonic() + 60.0
        while self._waits(restarts):
            assert time.monotonic() < limit, f"{self.facts()}\n{self.log}"
            time.sleep(0.1)

    def _waits(self, restarts: int) -> bool:
        facts = self.facts()
        return facts["JobState"] == "PENDING" and int(facts["Restarts"]) == restarts

    def _is_on_a_node(self) -> bool:
        return any(words.startswith(f"slurmstepd: [{self.job}.") for _, words in command_lines())

    def statuses(self) -> dict[str, tuple[str, int]]:
        """Return how each config ended, and how many epochs it has made."""
        rows = json.loads((self.run / "results.json").read_text())["configs"]
        return {row["config"]: (row["status"], row["epochs"]) for row in rows}


def write_store(folder: Path) -> Path:
    """Make a store of 4 shards, 144 training rows of 6 numbers in 3 classes; return its path."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((160, 6)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    words = ["prepare", "rows.npz", "rows.zarr", "--shards", "4"]
    subprocess.run([sys.executable, "-m", "mophpc", *words], cwd=folder, check=True, timeout=60)
    return folder / "rows.zarr"


def submit_run(
    cluster: Cluster, store: Path, folder: Path, *options: str, epochs: int = 2, slow_s: float = 0.0
) -> Submitted:
    """Submit four configs from a folder, each minibatch `slow_s` slower than it is."""
    toml = TOML.format(file=HERE / "slow_code.py", store=store, epochs=epochs)
    (folder / "tune.toml").write_text(toml)
    mine = {
        "PATH": f"{Path(sys.executable).parent}:{cluster.environment['PATH']}",
        "SLOW_S": str(slow_s),
    }
    words = ["--slurm", "--out", "run", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mophpc", "launch", "tune.toml", *words, *options],
        cwd=folder,
        env=os.environ | cluster.environment | ENVIRONMENT | mine,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Submitted(cluster, json.loads(done.stdout)["job"], folder)
