"""What is damaged: a store, an experiment, a run that has ended and one that was cut off.

`now` is what commands see; it is made anew from `pristine` for every case, under the same path.
Nothing may ever change in `outside`, nor beside these three.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mophpc.cli import main

LIMIT_S = 60.0
MAKING_S = 300.0
"""The first run of a process imports everything, perhaps on a machine that does much else."""
RUN = ("--transport", "local", "--progress", "off")
CUT_AFTER = 120
"""Batches, of 144 that the visits train, besides those that are tried."""

BUILD = """
import os
import signal

import torch
from torch import nn

from mophpc import Task

CUT_AFTER = int(os.environ.get("FUZZ_CUT_AFTER", 0))
trained = 0


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


def transform(batch):
    global trained
    trained += 1
    if trained == CUT_AFTER:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def build(config):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.1), nn.Linear(5, 3))
    return Task(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=config["lr"]),
        loss=nn.CrossEntropyLoss(),
        batch_size=8,
        metrics={"accuracy": accuracy},
        batch_transform=transform,
    )
"""

TOML = """
build = "tune.py:build"
epochs = 3
seed = 3

[data]
store = "rows.zarr"

[objective]
metric = "accuracy"
mode = "max"

[schedule]
policy = "round-robin"

[space]
lr = [0.01, 0.05, 0.1]
"""


class HangError(BaseException):
    """A command took longer than it may."""


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    status: int
    out: str
    err: str
    raised: str = ""
    """What came out of it, that is no exit."""
    hangs: bool = False
    took_s: float = 0.0


def call(*arguments: object, limit_s: float = LIMIT_S) -> Said:
    """Run a command in this process; return how it ended."""
    out, err = io.StringIO(), io.StringIO()
    status, raised, hangs, begin_s = 0, "", False, time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with _limit(limit_s):
                main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except HangError:
            hangs = True
        except BaseException as error:
            raised = f"{type(error).__name__}: {error}"
    took_s = time.monotonic() - begin_s
    return Said(status, out.getvalue(), err.getvalue(), raised, hangs, took_s)


@contextlib.contextmanager
def _limit(limit_s: float) -> Iterator[None]:
    def ring(_: int, _frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


class World:
    """The folder of all, and what is known of it undamaged.

    Args:
        root: a folder that is empty, or one that was made here before.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now, self.pristine, self.outside = (
            root / name for name in ("now", "pristine", "outside")
        )
        if not self.pristine.exists():
            self._make()
        self.results: dict[str, Any] = json.loads(
            (self.pristine / "whole/results.json").read_text()
        )
        self.rows = {row["config"]: row for row in self.results["configs"]}
        self._outside = snapshot(self.outside)

    def _make(self) -> None:
        self.now.mkdir(parents=True)
        self.outside.mkdir()
        (self.outside / "secret").write_text("kept\n")
        (self.outside / "folder").mkdir()
        (self.outside / "folder" / "secret").write_text("kept\n")
        generator = np.random.default_rng(0)
        x = generator.standard_normal((120, 6)).astype(np.float32)
        np.savez(self.root / "rows.npz", x=x, y=np.argmax(x[:, :3], axis=1))
        self._must("prepare", self.root / "rows.npz", self.now / "rows.zarr", "--shards", 4)
        (self.root / "rows.npz").unlink()
        (self.now / "tune.py").write_text(BUILD)
        (self.now / "tune.toml").write_text(TOML)
        self._must("run", self.now / "tune.toml", "--out", self.now / "whole", *RUN, "-n", 2)
        command = ["run", self.now / "tune.toml", "--out", self.now / "cut", *RUN, "-n", "2"]
        self._cut_off(command)
        shutil.copytree(self.now, self.pristine, symlinks=True)

    def _must(self, *arguments: object) -> None:
        said = call(*arguments, limit_s=MAKING_S)
        if said.status or said.raised or said.hangs:
            sys.exit(f"{arguments} failed: {said}")

    def _cut_off(self, command: Sequence[object]) -> None:
        words = [sys.executable, "-m", "mophpc", *map(str, command)]
        environ = os.environ | {"FUZZ_CUT_AFTER": str(CUT_AFTER)}
        done = subprocess.run(words, env=environ, check=False, capture_output=True, text=True)
        if done.returncode != -signal.SIGKILL:
            sys.exit(f"{command} was not cut off: {done}")

    def reset(self) -> None:
        """Undo all damage."""
        for folder, _, _ in os.walk(self.now):
            os.chmod(folder, 0o755)
        shutil.rmtree(self.now)
        shutil.copytree(self.pristine, self.now, symlinks=True)

    def spilt(self) -> str:
        """Return what has changed outside, in words."""
        if snapshot(self.outside) != self._outside:
            shutil.rmtree(self.outside)
            self.outside.mkdir()
            (self.outside / "secret").write_text("kept\n")
            (self.outside / "folder").mkdir()
            (self.outside / "folder" / "secret").write_text("kept\n")
            return "files outside were changed"
        beside = {path.name for path in self.root.iterdir()} - {"now", "pristine", "outside"}
        return f"there is {', '.join(sorted(beside))} now" if beside else ""


def snapshot(folder: Path) -> dict[str, str]:
    """Return the files of a folder and what they hold."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def same_weights(one: Path, other: Path) -> bool:
    """Whether two files of weights have the same tensors."""
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(
        ours[name].tobytes() == theirs[name].tobytes() for name in ours
    )
