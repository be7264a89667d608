"""The examination: every probe on its own, those between ranks last."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mophpc.data import StoreInfo, read_shard
from mophpc.doctor.findings import Finding, Report
from mophpc.doctor.judge import judge
from mophpc.doctor.surroundings import ask_mpi_alone, attempt, surroundings
from mophpc.doctor.wire import DEADLINE_S, Deadline, measure_wire
from mophpc.errors import LaunchError
from mophpc.hop.aware import gpu_aware
from mophpc.hop.collectives import Group

GATHER_S = 300.0
"""A rank that has not told its facts by then never will: its probes have limits of their own."""


def examine(store: StoreInfo | None, environ: Mapping[str, str] = os.environ) -> Report | None:
    """Collective. Look at everything; return the page on rank 0, and nothing elsewhere.

    Args:
        store: whose reading is timed; None: of none.
        environ: the process's environment.
    """
    facts = surroundings(environ, Path())
    attempt(facts, "gpus", gpus)
    if facts.get("gpus"):
        # As a run binds a rank to its GPU, before MPI starts.
        facts["bound_gpu"] = (facts.get("local_rank") or 0) % len(facts["gpus"])
        attempt(facts, "gpu_aware", lambda: gpu_aware(facts["bound_gpu"]))
    if store is not None:
        attempt(facts, "store", lambda: read_speed(store, facts["rank"]))
    launcher = facts.get("launcher")
    if launcher is None or launcher["ranks"] == 1:
        attempt(facts, "alone", lambda: ask_mpi_alone(environ))
        facts |= facts.pop("alone", {})
        return Report([facts], judge([facts]))
    try:
        return _together(facts)
    except LaunchError as error:  # each process is alone, and finds the same
        problem = Finding("problem", "launcher", str(error), "see 'Which MPI' in the README")
        if facts["rank"] != 0:
            return None
        return Report([facts], [problem, *judge([facts | {"mismatch": True}])])


def gpus() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def read_speed(store: StoreInfo, rank: int) -> dict[str, Any]:
    """Read the shard of a rank; return `bytes`, `seconds` and `bytes_per_s` of its rows."""
    begin_s = time.perf_counter()
    found = read_shard(store, rank % store.num_shards, memory_budget=None, stage=None)
    seconds = time.perf_counter() - begin_s
    return {
        "bytes": found.nbytes,
        "seconds": seconds,
        "bytes_per_s": found.nbytes / max(seconds, 1e-9),
    }


def _together(facts: dict[str, Any]) -> Report | None:
    """Gather the facts of all ranks, then measure what lies between them."""
    from mophpc.hop.mpi import library_version, start_mpi, thread_level

    transport = start_mpi()
    facts |= {"mpi": library_version(), "thread_level": thread_level()}
    group = Group(transport, Deadline(GATHER_S))
    ranks: list[dict[str, Any]] = []
    broken: Finding | None = None
    try:
        ranks = group.gather(facts)
        group.check = Deadline(DEADLINE_S)
        for facts, wire in zip(ranks, group.gather(measure_wire(transport, group)), strict=False):
            facts["wire"] = wire
    except Exception as error:  # what is known so far is shown, then all ranks are ended
        said = f"rank {transport.rank}: {type(error).__name__}: {error}"
        advice = "look at the network, and at the MPI's own settings and logs"
        broken = Finding("problem", "hops", said, advice)
    if transport.rank != 0:
        if broken is not None:
            time.sleep(DEADLINE_S)  # rank 0 runs into its own deadline, and ends all
            transport.abort(1)
        return None
    ranks = ranks or [facts]
    findings = judge(ranks) + ([] if broken is None else [broken])
    return Report(ranks, findings, is_broken=broken is not None)
