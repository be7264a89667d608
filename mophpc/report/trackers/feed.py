"""Rank 0's side of the trackers: it never waits for one, whatever that does."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from mophpc.errors import ExperimentError
from mophpc.experiment import Experiment
from mophpc.outputs import Track
from mophpc.report.trackers.host import LAST_S

MOST_WAITING = 10_000
"""Records that wait for a tracker; epochs beyond it are dropped and counted."""
MOST_END_S = 15.0
"""So long a run that has ended waits for a tracker that gives signs of life, if it is not told to
wait longer for one that gives none."""
POLL_S = 0.02
MOST_WORDS = 300
"""Characters of what a tracker said last; its log has all."""
HOST = (sys.executable, "-P", "-m", "mophpc.report.trackers.host")
"""The program of a tracker's process, but for the tracker's name."""
ALONE_S = LAST_S + 5.0
"""So long the process of a run that has failed may take to end, if it is not to be waited for
longer."""

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "wandb": ("wandb",),
}
_LAUNCHED = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDRA_", "HYDI_", "MPI_LOCAL", "PALS_")


def check_installed(track: Track) -> None:
    """Check that the libraries of the trackers that are asked for are here.

    Raises:
        ExperimentError: one is not; says how to install it.
    """
    for name in track.asked:
        for package in PACKAGES[name]:
            found = find_spec(package)
            if found is None or found.origin is None:  # a folder of that name is no package
                raise ExperimentError(
                    f"track.{name} needs {package}, which is not installed; install it with "
                    f"pip install 'mophpc[{name}]', or leave track.{name} out"
                )


class _Feed:
    """One tracker's queue, thread and process."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, most: int, wait_s: float
    ) -> None:
        self.name = name
        self.log = log
        self.dropped = 0
        self.failure: str | None = None
        self._command = command
        self._most = most
        self._alone_s = max(ALONE_S, wait_s)
        self._records: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._sign_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that it has not been told yet."""
        return self._records.qsize()

    def put(self, line: str | None, *, may_drop: bool = False) -> None:
        """Hand a record over, or None after the last."""
        if self.failure is not None:
            return
        if may_drop and self._records.qsize() >= self._most:
            self.dropped += 1
        else:
            self._records.put(line)

    def join(self, begin_s: float, wait_s: float) -> bool:
        """Wait for its end; return whether it has come.

        Args:
            begin_s: when the run ended, on the monotonic clock.
            wait_s: how long after that, or after its last sign of life.
        """
        while self._thread.is_alive():
            self._thread.join(POLL_S)
            until_s = min(max(begin_s, self._sign_s) + wait_s, begin_s + max(wait_s, MOST_END_S))
            if time.monotonic() > until_s:
                break
        return not self._thread.is_alive()

    def kill(self) -> None:
        """End its process."""
        self._is_over = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it has started itself
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            with self.log.open("w") as log:
                self._process = process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=_environment(),
                    bufsize=0,  # a buffer whose writer hangs cannot be let go of at exit
                    # A Ctrl-C is for the ranks. In a session of its own its low priority would
                    # count for nothing, where Linux schedules sessions as groups.
                    process_group=0,
                )
            self._pass_on(process)
            status = self._wait(process)
        except Exception as error:  # a tracker must not be why a run ends
            self.failure = f"{type(error).__name__}: {error}"
            return
        if status != 0 and not self._is_over:
            self.failure = self._last_words() or f"its process ended with status {status}"

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:  # its status says why it has ended
            while (line := self._records.get()) is not None:
                data = (line + "\n").encode()
                while data:
                    data = data[os.write(pipe.fileno(), data) :]
                self._sign_s = time.monotonic()

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Return its status when it has ended; look for its signs of life until then."""
        assert process.stdout is not None
        with process.stdout as signs:
            os.set_blocking(signs.fileno(), False)
            until_s = time.monotonic() + self._alone_s
            while process.poll() is None:
                with suppress(BlockingIOError):
                    if os.read(signs.fileno(), 1 << 16):
                        self._sign_s = time.monotonic()
                        until_s = self._sign_s + self._alone_s
                if time.monotonic() > until_s:
                    process.kill()
                time.sleep(POLL_S)
            return process.wait()

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return shorten(lines[-1], MOST_WORDS, placeholder=" …") if lines else ""


class Trackers:
    """Tells trackers what rank 0 knows. No call but `end` waits for anything.

    Args:
        commands: the command line of each tracker's process, by its name.
        logs: a folder for what the processes say.
        note: shows people something.
        wait_s: how long `end` waits for one that gives no sign of life.
        most_waiting: records that wait for a tracker.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        logs: Path,
        note: Callable[[str], None],
        *,
        wait_s: float,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._note = note
        self._wait_s = wait_s
        self._feeds = [
            _Feed(name, command, logs / f"tracker-{name}.log", most_waiting, wait_s)
            for name, command in commands.items()
        ]
        self._told_of: set[str] = set()
        self._has_ended = False

    def begin(self, about: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
        """The run begins: facts of `About`, and what the experiment says of each tracker."""
        for feed in self._feeds:
            record = {"kind": "begin", **about, "target": targets[feed.name]}
            feed.put(json.dumps(record, default=str))

    def config(self, config_id: int, name: str, values: Mapping[str, Any]) -> None:
        """A config with these hyperparameters is tried; also later in a run."""
        self._tell("config", config_id, name, dict(values))

    def epoch(self, config_id: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A config has ended an epoch."""
        self._tell("epoch", config_id, epoch, dict(metrics), may_drop=True)

    def final(self, config_id: int, status: str, best: float | None) -> None:
        """A config has ended; `best` is its best value of the objective."""
        self._tell("final", config_id, status, best)

    def end(self, status: str, best: str | None = None) -> None:
        """The run has ended; wait a little for trackers that are late, then end them.

        Calling it again is fine.

        Args:
            status: `done`, or anything else.
            best: name of the best config.
        """
        if self._has_ended:
            return
        self._has_ended = True
        self._tell("end", status, best)
        for feed in self._feeds:
            feed.put(None)
        begin_s = time.monotonic()
        for feed in self._feeds:
            in_time, waiting = feed.join(begin_s, self._wait_s), feed.waiting
            if not in_time:
                feed.kill()
            if feed.dropped or not in_time:
                took_s = time.monotonic() - begin_s
                late = "" if in_time else f"; it was ended {took_s:.1f} s after the run"
                self._note(
                    f"note: {feed.name} was slower than the run: {feed.dropped} epochs were "
                    f"dropped, {waiting} records were still waiting{late}"
                )
        self._look()

    def abandon(self) -> None:
        """The run has failed: let trackers see that by themselves, and wait for nothing."""
        if not self._has_ended:
            self._has_ended = True
            for feed in self._feeds:
                feed.put(None)

    def _tell(self, kind: str, *facts: Any, may_drop: bool = False) -> None:
        line = json.dumps({"kind": kind, "facts": facts}, default=str)
        for feed in self._feeds:
            feed.put(line, may_drop=may_drop)
        self._look()

    def _look(self) -> None:
        """Say once of each tracker that it has failed."""
        for feed in self._feeds:
            if feed.failure is not None and feed.name not in self._told_of:
                self._told_of.add(feed.name)
                self._note(
                    f"note: {feed.name} has failed and is told nothing more: {feed.failure} "
                    f"(see {os.path.relpath(feed.log)})"
                )


def open_trackers(
    experiment: Experiment, folder: Path, note: Callable[[str], None]
) -> Trackers | None:
    """Start the trackers that an experiment asks for; None where it asks for none."""
    track = experiment.track
    if not track.asked:
        return None
    commands = {name: [*HOST, name] for name in track.asked}
    trackers = Trackers(commands, folder / "logs", note, wait_s=track.wait_s)
    targets = track.model_dump()
    if isinstance(track.tensorboard, str):
        targets["tensorboard"] = str(Path(track.tensorboard).resolve())
    about = {
        "folder": str(folder),
        "name": folder.name,
        "metric": experiment.objective.metric,
        "mode": experiment.objective.mode or "min",
        "experiment": _flat(experiment),
    }
    trackers.begin(about, targets)
    return trackers


def _flat(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment's settings by dotted name, without what each config tells itself."""
    found: dict[str, Any] = {}
    given = experiment.model_dump(exclude_none=True, exclude={"space", "configs", "track"})
    for key, value in given.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": own for inner, own in value.items()}
        else:
            found[key] = value
    return found


def _environment() -> dict[str, str]:
    """Return the environment of a tracker's process: it is no rank, and finds this package."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHED)}
    paths = [str(Path(__file__).parents[3]), *filter(None, [found.get("PYTHONPATH")])]
    return found | {"PYTHONPATH": os.pathsep.join(paths)}
