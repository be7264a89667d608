"""Runs that are cut off by SIGKILL at a chosen call, in processes of their own, and what is left.

A process is forked from one that has imported everything, so that it takes no time to start.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import multiprocessing.context
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch._dynamo  # noqa: F401  # the first optimizer imports it

import mophpc
from mophpc import requests, verify
from mophpc.files import LineWriter, plain, read_lines
from mophpc.report.results import Results
from mophpc.run import start
from mophpc.run.rank.states import StateKeeper
from mophpc.run.rank0 import chief

LIMIT_S = 60.0
KILLED = -signal.SIGKILL

POINTS = {
    "batch": "mophpc.train.session:train_step",
    "state": "mophpc.train.state_file:StateCopy.write",
    "state's manifest": "mophpc.train.state_file:write_manifest",
    "line": "mophpc.files:LineWriter.write",
    "promise": "mophpc.run.recovery.journal:Journal.promise",
    "grant": "mophpc.run.rank0.chief:grant",
    "answer": "mophpc.requests:RequestBox.answer",
    "end of a config": "mophpc.run.folder:RunFolder.write_manifest",
    "drop of states": "mophpc.run.rank.states:shutil.rmtree",
    "results": "mophpc.report.results:Results.write",
}
"""Where a run may be cut off: functions that are replaced in its process."""


@dataclass(frozen=True)
class Cut:
    """The call at which a run is cut off."""

    point: str
    call: int = 1
    """Which one, from 1."""
    how: str = "before"
    """`before`, `after`, or `half`: of the line that would be written."""
    waits: bool = False
    """Whether each state is on disk before training goes on: no disk is too slow."""


def experiment(store: Path, **settings: Any) -> mophpc.Experiment:
    given = {"build": tiny.build, "epochs": 3, "seed": 5, "space": SPACE} | settings
    return mophpc.Experiment(data=store, **given)


SPACE = {"lr": [0.01, 0.03], "width": [4, 6]}


def run(out: Path, store: Path, ranks: int, **settings: Any) -> Results:
    """Run, or go on with a run, in this process."""
    resume = settings.pop("resume", False)
    found = experiment(store, **settings)
    options: dict[str, Any] = {"transport": "local", "progress": "off", "resume": resume}
    return start.run_experiment(found, out, ranks=ranks, **options)


def resume(out: Path, store: Path, ranks: int, **settings: Any) -> Results:
    return run(out, store, ranks, resume=True, **settings)


def cut_off(out: Path, store: Path, ranks: int, cut: Cut | None, **settings: Any) -> int:
    """Run in a process of its own, which kills itself there; return its exit status.

    It is 0 where the run came to its end before.
    """
    process = _server().Process(target=_body, args=(out, store, ranks, cut, settings))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"the run does not end ({cut})")
    assert process.exitcode is not None
    return process.exitcode


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:  # the server does not look at sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


def _body(out: Path, store: Path, ranks: int, cut: Cut | None, settings: Mapping[str, Any]) -> None:
    # People are heard soon.
    chief.RequestBox = lambda folder, warn: requests.RequestBox(  # type: ignore[assignment,misc]
        folder, warn, every_s=0.005
    )
    if cut is not None:
        _arm(cut)
    run(out, store, ranks, **settings)


def _arm(cut: Cut) -> None:
    module, _, path = POINTS[cut.point].partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real: Callable[..., Any] = getattr(owner, name)
    count = 0

    def call(*given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count < cut.call:
            return real(*given, **named)
        if cut.how == "after":
            real(*given, **named)
        elif cut.how == "half":
            _write_half(*given)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    setattr(owner, name, call)
    if cut.waits:
        keep = StateKeeper.keep

        def wait(keeper: StateKeeper, *given: Any) -> None:
            keep(keeper, *given)
            keeper._writer.flush()

        StateKeeper.keep = wait  # type: ignore[method-assign]


def _write_half(writer: LineWriter, record: dict[str, Any]) -> None:
    line = json.dumps(plain(record)).encode()
    os.write(writer._fd, line[: len(line) // 2])


def check(folder: Path, results: Results, epochs: int = 3, shards: int = 4) -> None:
    """Check what holds of every run that has ended, however often it was cut off."""
    verdicts = list(verify.verify(folder))
    assert [str(v) for v in verdicts if v.equal is False] == []
    assert len(verdicts) == len(results.configs)
    assert json.loads((folder / "results.json").read_text()) == results.record()
    lines = [(line["config_id"], line["epoch"]) for line in read_lines(folder / "metrics.jsonl")]
    assert len(set(lines)) == len(lines)
    for row in results.configs:
        assert row.status in ("done", "stopped", "diverged", "failed"), row
        own = [(visit["epoch"], visit["shard"]) for visit in row.route]
        assert len(set(own)) == len(own)
        assert own == sorted(own, key=lambda visit: visit[0])
        begin = row.lineage[1]["epoch"] if row.lineage else 0
        if row.status == "done":
            first = own[0][0] if own else epochs
            assert first in (0, begin, *(entry["epoch"] for entry in row.lineage[1:]))
            for epoch in range(first, epochs):
                assert {s for e, s in own if e == epoch} == set(range(shards)), row
            assert row.epochs == epochs
        if row.status in ("done", "stopped") and own:
            assert (folder / "checkpoints" / row.config / "model.safetensors").is_file(), row
        assert not list((folder / "states").glob(f"{row.config}/*")), row
    told = {config for config, _ in lines}
    for row in results.configs:
        if row.status == "done":
            assert row.config_id in told


def state_files(folder: Path) -> list[Path]:
    """Return the manifests of states, from the oldest to the newest of each config."""
    return sorted((folder / "states").glob("*/step-*.json"))


def digests(results: Results) -> list[str]:
    """Return those of all configs."""
    return [row.state_sha256 for row in results.configs]


def drawn_cut(rng: random.Random) -> Cut:
    """Return some moment at which a run is cut off."""
    point = rng.choice(list(POINTS))
    call = rng.randint(1, 250) if point == "batch" else rng.choice([1, 2, rng.randint(3, 40)])
    hows = ["before", "after", "half"] if point == "line" else ["before", "after"]
    return Cut(point, call, rng.choice(hows))
