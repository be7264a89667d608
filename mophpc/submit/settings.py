"""What a run is to have on a cluster: how many ranks, where, for how long."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mophpc.errors import LaunchError
from mophpc.submit.words import (
    check_count,
    check_image,
    check_label,
    check_line,
    check_memory,
    check_name,
    check_names,
    parse_signal,
    seconds_of,
)

MOST_NODES, MOST_PER_NODE = 16_384, 1024
SLURM_MPIS = ("pmix", "pmi2", "mpirun")
KUBERNETES_MPIS = {"openmpi": "OpenMPI", "mpich": "MPICH", "intel": "Intel"}
"""To what the MPI Operator calls them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The run itself and the machines that it gets."""

    experiment: str
    """TOML file, absolute or relative to where the run starts."""
    out: str
    """Run folder."""
    nodes: int
    gpus_per_node: int = 0
    ranks_per_node: int | None = None
    """None: one per GPU, or one where there is no GPU."""
    cpus_per_rank: int = 1
    memory: str | None = None
    """Of a node."""
    time: str | None = None
    stage: str | None = None
    """Node-local folder."""
    resume: bool = False
    """Whether the first start, too, may go on from what is in `out`."""
    max_restarts: int = 20
    """How often it starts again by itself."""
    options: tuple[str, ...] = ()
    """More options of `mophpc run`."""
    made_by: str | None = None
    """The command line that asked for it."""

    def __post_init__(self) -> None:
        check_line("EXPERIMENT", self.experiment)
        check_line("--out", self.out)
        check_count("--nodes", self.nodes, 1, MOST_NODES)
        check_count("--gpus-per-node", self.gpus_per_node, 0, MOST_PER_NODE)
        check_count("--ranks-per-node", self.ranks_of_node, 1, MOST_PER_NODE)
        check_count("--cpus-per-rank", self.cpus_per_rank, 1, MOST_PER_NODE)
        check_count("--max-restarts", self.max_restarts, 0, 1000)
        if self.memory is not None:
            check_memory("--mem", self.memory)
        if self.time is not None:
            seconds_of("--time", self.time)
        if self.stage is not None:
            check_line("--stage", self.stage)
        for option in self.options:
            check_line("an option of mophpc run", option)
        if self.made_by is not None:
            check_line("the command line", self.made_by)

    @property
    def ranks_of_node(self) -> int:
        """Ranks on each node."""
        if self.ranks_per_node is not None:
            return self.ranks_per_node
        return self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ranks_of_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """What only Slurm knows."""

    job_name: str
    mpi: str = "pmix"
    """Who starts the ranks: srun with one of its MPI plugins, or mpirun."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    requeue: bool = False
    signal: str = "USR1@120"
    """Sent to the script before the time limit; the script passes it on to the ranks."""
    array: int | None = None
    """How often the run is made, each time in a folder of its own."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the ranks start."""
    sbatch_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("--job-name", self.job_name)
        check_mpi(self.mpi, SLURM_MPIS, "--slurm")
        for option in ("partition", "account", "qos"):
            value = getattr(self, option)
            if value is not None:
                check_names(f"--{option}", value)
        parse_signal("--signal", self.signal)
        if self.array is not None:
            check_count("--array", self.array, 1, 10_000)
        for line in self.setup:
            check_line("--setup", line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """What only Kubernetes knows."""

    job_name: str
    image: str
    """It holds mophpc, the MPI and an SSH server."""
    namespace: str | None = None
    claim: str
    """A PersistentVolumeClaim that every pod mounts; it holds experiment, data and run folder."""
    mount: str = "/mophpc"
    """Where; the run starts there."""
    mpi: str = "openmpi"

    def __post_init__(self) -> None:
        # The operator makes pods NAME-worker-N, whose names are labels of 63 characters.
        check_label("--job-name", self.job_name, 50)
        check_image("--image", self.image)
        if self.namespace is not None:
            check_label("--namespace", self.namespace, 63)
        check_label("--pvc", self.claim, 63)
        check_line("--mount", self.mount)
        if not self.mount.startswith("/") or ":" in self.mount:
            raise LaunchError(f"--mount is {self.mount!r}; allowed: an absolute path without ':'")
        check_mpi(self.mpi, tuple(KUBERNETES_MPIS), "--kubernetes")


def check_mpi(mpi: str, allowed: tuple[str, ...], target: str) -> None:
    """Check who starts the ranks.

    Raises:
        LaunchError: nobody of that name does there.
    """
    if mpi not in allowed:
        raise LaunchError(f"--mpi is '{mpi}'; allowed with {target}: {', '.join(allowed)}")


def name_from(stem: str, *, is_label: bool = False) -> str:
    """Return a name for a job that runs the experiment of this file name."""
    if is_label:
        name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:50].strip("-")
        return name if name[:1].isalpha() else f"mophpc-{name}".strip("-")[:50]
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", stem).strip("-.+")[:64]
    return name or "mophpc"
