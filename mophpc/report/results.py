"""Results: one row per config, as JSON, CSV and a table."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mophpc.errors import RunFolderError
from mophpc.files import plain, write_json, write_whole
from mophpc.state_folder import new_digest, said

WIDEST = 24
"""Characters of a value in the table; the files have it whole."""


@dataclass(frozen=True, slots=True)
class ConfigResult:
    """One row."""

    config_id: int
    config: str
    status: str
    """`done`; `stopped` before it had made all epochs; `diverged`: a loss was not finite, and the
    config left the schedule; `failed`: it could not be built."""
    hyperparameters: dict[str, Any]
    epochs: int
    """Whole epochs trained."""
    final: dict[str, float]
    """Metrics after the last whole epoch."""
    best: float | None
    """Best value of the objective."""
    best_epoch: int | None
    state_sha256: str
    route: list[dict[str, int]]
    """The visits made, in order: epoch, shard, rank."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """Of a config that got a copy of another's state: before which `epoch` of which `source`, and
    the `hyperparameters` from then on; the first entry has those that it began with."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a run found. There is no time in it: the same experiment gives the same bytes."""

    metric: str
    mode: str
    best: int | None
    """config_id of the best config."""
    configs: list[ConfigResult] = field(default_factory=list)
    run: str = ""
    """The run folder."""

    @property
    def ranked(self) -> list[ConfigResult]:
        """The rows from best to worst; a diverged config counts as worst."""
        sign = -1.0 if self.mode == "max" else 1.0

        def key(row: ConfigResult) -> tuple[bool, float, int]:
            last = row.status in ("diverged", "failed") or row.best is None
            return (last, sign * (row.best or 0.0), row.config_id)

        return sorted(self.configs, key=key)

    def write(self, as_json: Path, as_csv: Path) -> None:
        """Write both files; a run that has the first, which is written last, has ended."""
        write_whole(as_csv, self.csv())
        write_json(as_json, self.record())

    def record(self) -> dict[str, Any]:
        """Return what `results.json` holds; without the folder, so that a moved one stays true."""
        record: dict[str, Any] = plain(asdict(self))
        del record["run"]
        return record | {"digest": _digest_of(record)}

    def csv(self) -> str:
        """Return the rows as CSV; a route reads `0,1,2,3|3,2,1,0`, shards by epoch."""
        names = list(dict.fromkeys(n for row in self.configs for n in row.hyperparameters))
        metrics = list(dict.fromkeys(n for row in self.configs for n in row.final))
        metrics = [name for name in metrics if name != "seconds"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        head = ["config_id", "config", "status", "epochs", *names]
        head += [f"final_{name}" for name in metrics]
        writer.writerow([*head, f"best_{self.metric}", "best_epoch", "state_sha256", "route"])
        for row in self.configs:
            cells: list[Any] = [row.config_id, row.config, row.status, row.epochs]
            cells += [row.hyperparameters.get(name, "") for name in names]
            cells += [row.final.get(name, "") for name in metrics]
            best = ["" if v is None else v for v in (row.best, row.best_epoch)]
            writer.writerow([*cells, *best, row.state_sha256, route_text(row.route)])
        return text.getvalue()


def route_text(route: list[dict[str, int]]) -> str:
    """Return the shards visited, epochs separated by `|`."""
    epochs: dict[int, list[str]] = {}
    for visit in route:
        epochs.setdefault(visit["epoch"], []).append(str(visit["shard"]))
    return "|".join(",".join(shards) for shards in epochs.values())


def from_record(record: dict[str, Any], run: str) -> Results:
    """Return the results of a record, such as `results.json` holds.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    rows = [ConfigResult(**row) for row in record["configs"]]
    return Results(record["metric"], record["mode"], record["best"], rows, run)


def read_results(run: Path) -> Results:
    """Read the `results.json` of a run folder.

    Raises:
        RunFolderError: it is damaged.
    """
    path = run / "results.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if "digest" in record:  # those of an earlier version have none
            recorded = record.pop("digest")
            if recorded != _digest_of(record):
                raise ValueError(f"its digest is {_digest_of(record)}, it says {recorded!r}")
        found = from_record(record, str(run))
        _check(found)
    except OSError as error:
        raise RunFolderError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise RunFolderError(
            f"'{path}' is damaged: {why}; restore it, or run the experiment again"
        ) from error
    return found


_KINDS: dict[str, type | tuple[type, ...]] = {
    "config_id": int,
    "config": str,
    "status": str,
    "hyperparameters": dict,
    "epochs": int,
    "final": dict,
    "best": (int, float, type(None)),
    "best_epoch": (int, type(None)),
    "state_sha256": str,
    "route": list,
    "lineage": list,
}


def _check(found: Results) -> None:
    """Raise ValueError unless the parts of results are of the right kinds."""
    if not isinstance(found.metric, str) or found.mode not in ("min", "max"):
        raise ValueError("its metric or its mode is none")
    for place, row in enumerate(found.configs):
        for name, kind in _KINDS.items():
            if not isinstance(getattr(row, name), kind):
                raise ValueError(f"{name} of a config is not as it should be")
        if row.config_id != place:
            raise ValueError(f"config {place} is called {row.config_id}")
    if found.best is not None and found.best not in range(len(found.configs)):
        raise ValueError(f"best is {found.best!r}")


def _digest_of(record: dict[str, Any]) -> str:
    digest = new_digest()
    digest.update(json.dumps(record, separators=(",", ":"), sort_keys=True).encode())
    return said(digest)


def print_table(results: Results, most: int = 40) -> None:
    """Print the rows from best to worst."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(n for row in results.configs for n in row.hyperparameters))
    losses = [n for n in ("train_loss", "valid_loss") if n != results.metric]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("config", no_wrap=True)
    for name in [*names, f"best {results.metric}", "epoch", *losses, "status"]:
        table.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    for place, row in enumerate(results.ranked[:most]):
        cells = [row.config.partition("-")[0]]
        cells += [cell(row.hyperparameters.get(name, "")) for name in names]
        cells += [cell(row.best), cell(row.best_epoch)]
        cells += [cell(row.final.get(name)) for name in losses]
        best = place == 0 and row.status == "done"
        # As Text: a hyperparameter's brackets are not markup.
        table.add_row(*map(Text, cells), Text(row.status), style="bold green" if best else None)
    # A table wider than the terminal wraps; cut to fit, it would lose digits.
    terminal = None if is_terminal() else False
    console = Console(width=1000, soft_wrap=True, force_terminal=terminal)
    console.print(table)
    if len(results.configs) > most:
        console.print(f"… and {len(results.configs) - most} more in results.csv")


def is_terminal() -> bool:
    """Whether a person reads: Open MPI gives a rank a pseudo-terminal, of no size, in any case."""
    try:
        return os.get_terminal_size(1).columns > 0
    except OSError:
        return False


def cell(value: Any) -> str:
    """Return a value as it is shown in a table: short, and nothing in it moves the cursor."""
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
