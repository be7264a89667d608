"""People and a run that goes on: what they see of it, and what they ask of it.

All of it goes through files in the run folder: rank 0 writes `status.json` and looks into
`requests/`. So it works from any host that sees the folder, and needs no port and no MPI.
"""

from __future__ import annotations

import json
import os
import socket
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mophpc.dimensions import Value
from mophpc.errors import RequestError, RunFolderError
from mophpc.experiment import Experiment, load_experiment
from mophpc.overrides import added, check_values, cloned, parse_settings
from mophpc.report.results import is_terminal, print_table
from mophpc.report.status import heading, status_table
from mophpc.requests import (
    Add,
    Answer,
    Clone,
    Request,
    Stop,
    Wish,
    describe,
    find_config,
    pending,
    read_answer,
    send,
    withdraw,
)
from mophpc.run.faults.places import read_places
from mophpc.saved import load_run
from mophpc.settings import explain
from mophpc.status_file import ConfigStatus, Status, read_status

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

GONE_S = 15.0
"""A run whose process is not there and that has written nothing for so long has died. Without the
second condition a run in another container of this host would seem dead."""
SILENT_S = 90.0
"""A run that has written nothing for so long may have died."""
ROWS = 40
LAST = 16
"""So many ranks are named that were lost together."""
_POLL_S = 0.2
_WATCH_S = 2.0
_OVER = ("done", "stopped", "diverged", "failed")
_STATES = {"ended": "has ended", "failed": "has failed", "interrupted": "was interrupted"}


@dataclass(frozen=True, slots=True)
class Look:
    """What can be seen of a run now."""

    run: Path
    status: Status
    waiting: list[Request]
    """Requests without an answer."""
    silent_s: float
    """Seconds since the status was written."""
    is_gone: bool
    """Whether its process was on this host and is there no more."""
    failures: list[str]
    """Where and why ranks failed."""
    last: list[str]
    """Where ranks were last that are gone, and of which nobody has said why."""

    @property
    def is_running(self) -> bool:
        """Whether it goes on, as far as one can see."""
        return self.status.state == "running" and not (self.is_gone and self.silent_s > GONE_S)

    @property
    def death(self) -> str:
        """Say how one knows that the run has died; empty where one does not."""
        if self.status.state != "running" or self.is_running:
            return ""
        return f"not updated for {_long(self.silent_s)}, and its process {self.status.pid} is gone"

    @property
    def doubt(self) -> str:
        """Say that the run has died, or may have; empty where it seems well, or has ended."""
        if self.death:
            return f"{self.death}: it has died"
        if self.is_running and self.silent_s > SILENT_S:
            return f"not updated for {_long(self.silent_s)}; it may have died"
        return ""

    @property
    def running_s(self) -> float:
        """How long it has been running, or was."""
        further_s = self.silent_s if self.is_running else 0.0
        return self.status.running_s + further_s

    def record(self) -> dict[str, Any]:
        """Return all of it for programs."""
        waiting = [{"name": r.name} | r.wish.model_dump() for r in self.waiting]
        seen = {"doubt": self.doubt or None, "failures": self.failures, "requests": waiting}
        seen["last"] = self.last
        return self.status.model_dump() | seen

    def lines(self) -> list[str]:
        """Return what is said above the table."""
        found = [heading(self.status, self.running_s, is_dead=bool(self.death))]
        found += [self.doubt] if self.doubt else []
        last = [f"gone without a word: {where}" for where in self.last[:LAST]]
        if len(self.last) > LAST:
            last.append(f"and {len(self.last) - LAST} more")
        return [*found, *self.failures, *last]

    def after(self) -> list[str]:
        """Return what is said below the table."""
        label = "waits to be taken up" if self.is_running else "was not taken up"
        return [f"{label}: {cell_text(describe(request.wish))}" for request in self.waiting]


def look(run: Path) -> Look:
    """Look at a run.

    Raises:
        RunFolderError: there is none, or nothing can be said of it yet.
    """
    if not (run / "experiment.toml").is_file():
        raise RunFolderError(f"'{run}' holds no run; give the folder that 'mophpc run' made")
    status = read_status(run / "status.json")
    if status is None:
        raise RunFolderError(
            f"the run '{run}' has no status: its visits have not begun, or an older mophpc made it"
        )
    silent_s = max(0.0, time.time() - status.updated_s)
    gone = status.host == socket.gethostname() and not _is_alive(status.pid)
    failures = _failures(run)
    if failures and (status.state == "interrupted" or (status.state == "running" and gone)):
        # A rank that fails ends the others with a signal, and rank 0 knows no more than that.
        status = status.model_copy(update={"state": "failed"})
    last = []
    if status.state == "running" and gone:
        last = [cell_text(str(place)) for place in read_places(run) if place.is_lost]
    return Look(run, status, pending(run / "requests"), silent_s, gone, failures, last)


def look_running(run: Path) -> Look:
    """Look at a run of which something is to be asked.

    Raises:
        RunFolderError: there is none, or it goes on no more.
    """
    found = look(run)
    if found.is_running:
        return found
    state = _STATES.get(found.status.state, f"has died: {found.death}")
    raise RunFolderError(f"the run '{run}' {state}; nothing can be asked of it any more")


def wish_stops(seen: Look, configs: Sequence[str]) -> list[Wish]:
    """Return a wish for each config that is to be stopped.

    Raises:
        UserError: one is unknown, or has ended.
    """
    names = [_short(_row(seen, given, "stop")) for given in configs]
    return [Stop(config=name) for name in dict.fromkeys(names)]


def wish_clone(
    seen: Look, config: str, settings: Sequence[str], epochs: int | None, *, fresh: bool
) -> tuple[Wish, list[str]]:
    """Return the wish for a clone of a config, and notes on its values.

    Raises:
        UserError: the config is unknown, a setting is wrong, or nothing would differ.
    """
    row = _row(seen, config, "clone")
    experiment = _experiment(seen.run)
    changes, notes = check_values(parse_settings(settings), experiment)
    if not changes and epochs is None:
        raise RequestError(
            "a clone without --set NAME=VALUE or --epochs would be the same again; give one"
        )
    cloned(row.hyperparameters, changes, experiment)
    if epochs is not None and not fresh and epochs <= row.epochs:
        raise RequestError(
            f"--epochs {epochs} leaves nothing to train: {_short(row)} has made {row.epochs}, and "
            f"they count; give more, or --fresh"
        )
    wish = _made(Clone, config=_short(row), set=changes, epochs=epochs, fresh=fresh)
    return wish, notes


def wish_additions(
    seen: Look, settings: Sequence[str], rows: Path | None, epochs: int | None
) -> tuple[list[Wish], list[str]]:
    """Return a wish for each new config, and notes on their values.

    Raises:
        UserError: nothing is given, or too much, or a value is missing or wrong.
    """
    if bool(settings) == (rows is not None):
        both = "both are given" if settings else "neither is given"
        raise RequestError(f"give either --set NAME=VALUE or --file ROWS; {both}")
    given = [parse_settings(settings)] if rows is None else read_rows(rows)
    experiment = _experiment(seen.run)
    wishes: list[Wish] = []
    notes: list[str] = []
    for row in given:
        values, own = check_values(row, experiment)
        wishes.append(_made(Add, set=added(values, experiment), epochs=epochs))
        notes += own
    return wishes, list(dict.fromkeys(notes))


def read_rows(path: Path) -> list[dict[str, Value]]:
    """Read configs: TOML with `[[configs]]`, or JSON with the same or a list of objects.

    Raises:
        RequestError: there are none, or they are something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise RequestError(f"--file '{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "JSON"
        raise RequestError(f"--file '{path}' is not {kind}: {error}") from error
    rows = found.get("configs") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"--file '{path}' has no configs; write a [[configs]] table for each")
    return [dict(_made(Add, set=row).set) for row in rows]


def ask(
    seen: Look, wishes: Sequence[Wish], wait_s: float
) -> Iterator[tuple[Request, Answer | None]]:
    """Put wishes into the run's folder, and yield each with its answer when it is there.

    Those without an answer come last, when the time is over.

    Raises:
        RunFolderError: the folder cannot be written, or the run ended meanwhile.
    """
    folder = seen.run / "requests"
    left = [send(folder, wish) for wish in wishes]
    until_s = time.monotonic() + wait_s
    while True:
        ended = not look(seen.run).is_running  # looked at first: it answers before it ends
        for request in list(left):
            answer = read_answer(folder, request)
            if answer is not None:
                left.remove(request)
                yield request, answer
        if ended and left:
            for request in left:
                withdraw(folder, request)
            raise RunFolderError(
                f"the run '{seen.run}' ended before it took this up: {', '.join(map(str, left))}"
            )
        if not left or time.monotonic() >= until_s:
            break
        time.sleep(_POLL_S)
    for request in left:
        yield request, None


def show(run: Path) -> None:
    """Print how far a run is; of one that has ended, its results.

    Raises:
        RunFolderError: there is none, or its files are damaged.
    """
    from rich.console import Console

    if not (run / "status.json").exists() and (run / "results.json").is_file():
        print_table(load_run(run).results)
        return
    seen = look(run)
    if seen.status.state == "ended" and (run / "results.json").is_file():
        print("\n".join([*seen.lines(), ""]))
        print_table(load_run(run).results)
        print("".join(f"{line}\n" for line in seen.after()), end="")
        return
    # A table wider than the terminal wraps; cut to fit, it would lose digits.
    terminal = None if is_terminal() else False
    console = Console(width=1000, soft_wrap=True, force_terminal=terminal, highlight=False)
    console.print(*_parts(seen, ROWS), sep="\n")


def watch(run: Path) -> None:
    """Show how far a run is again and again, until it ends.

    Raises:
        RunFolderError: there is none, or its files are damaged.
    """
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(highlight=False)
    seen = look(run)
    with Live(console=console, auto_refresh=False) as live:
        while seen.is_running:
            live.update(Group(*_parts(seen, _room(console, seen))), refresh=True)
            time.sleep(_WATCH_S)
            seen = look(run)
        live.update("", refresh=True)
    show(run)


def _parts(seen: Look, most: int) -> list[RenderableType]:
    from rich.text import Text

    rows = len(seen.status.configs)
    more = [f"… and {rows - most} more in status.json"] if rows > most else []
    below = [Text(line) for line in [*more, *seen.after()]]
    above = [Text(line) for line in seen.lines()]
    return [*above, Text(""), status_table(seen.status, most), *below]


def _room(console: Console, seen: Look) -> int:
    """Return how many configs fit on the screen."""
    return max(3, min(ROWS, console.height - len(seen.lines()) - len(seen.after()) - 5))


def cell_text(text: str) -> str:
    """Return a text of somebody else's without what moves the cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _row(seen: Look, given: str, what: str) -> ConfigStatus:
    """Return the row of a config of which something is asked."""
    row = seen.status.configs[find_config(given, seen.status.names, seen.run)]
    if what == "stop" and row.status in _OVER:
        raise RequestError(f"{_short(row)} cannot be stopped: it is {row.status}")
    return row


def _short(row: ConfigStatus) -> str:
    return row.config.partition("-")[0]


def _experiment(run: Path) -> Experiment:
    return load_experiment(run / "experiment.toml")


def _made(kind: Any, **fields: Any) -> Any:
    """Make a wish; what a file or the command line gave may not fit it."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise RequestError(explain(error, kind)) from error


def _is_alive(pid: int) -> bool:
    if pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _failures(run: Path) -> list[str]:
    """Return what ranks that failed have written of it; damaged files are left out."""
    found = []
    for path in sorted(run.glob("failure-rank-*.json")):
        try:
            record: Mapping[str, str] = json.loads(path.read_bytes())
            found.append(cell_text(f"{record['place']}: {record['cause']}"))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _long(seconds: float) -> str:
    """Return `20 seconds`, `5 minutes` or `3 hours`."""
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}" + ("s" if count > 1 else "")
    return "a moment"
