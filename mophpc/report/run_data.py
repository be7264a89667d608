"""A run folder as plain values, for the report and the trace.

Folders may come from somebody else, and runs may not have ended: whatever is missing or damaged
becomes a sentence in `problems`, and the rest is read all the same. Nothing is executed.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mophpc.errors import ExperimentError, RunFolderError
from mophpc.experiment import load_experiment
from mophpc.report.lines import read_records
from mophpc.report.run_events import Activity, read_activity
from mophpc.report.run_plan import Schedule, read_schedule

Record = dict[str, Any]
Value = str | float | int | bool | None

MOST_CONFIGS = 1_000_000
MOST_FAILURES = 3
"""Reports of ranks that failed; the first one is mostly the cause of the others."""

_PAIR = re.compile(r"([A-Za-z_]\w*)=([^,=]*)", re.ASCII)


@dataclass(slots=True)
class Row:
    """One config."""

    config_id: int
    name: str
    status: str = "unfinished"
    hyperparameters: dict[str, Value] = field(default_factory=dict)
    epochs: int = 0
    best: float | None = None
    best_epoch: int | None = None
    final: dict[str, float | None] = field(default_factory=dict)
    lineage: list[Record] = field(default_factory=list)
    """Whose state it took over before which epoch, and its hyperparameters from there on."""
    began: dict[str, Value] = field(default_factory=dict)
    """The hyperparameters that its name has, where it took over states."""


@dataclass(slots=True)
class RunData:
    """What a run folder says."""

    path: Path
    settings_text: str = ""
    settings: Record = field(default_factory=dict)
    metric: str = ""
    maximise: bool = False
    ended: bool = False
    best: int | None = None
    """config_id of the best config."""
    rows: list[Row] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    """Names of what was measured at the end of an epoch."""
    curves: list[tuple[int, int, list[float]]] = field(default_factory=list)
    """Config, epoch and the values of `metrics` (nan: none), in this order."""
    decisions: list[Record] = field(default_factory=list)
    schedule: Schedule = field(default_factory=Schedule)
    activity: Activity = field(default_factory=Activity)
    problems: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def num_ranks(self) -> int:
        """Ranks that the plan names, or those that have left events, if these are more."""
        return max(self.schedule.num_ranks, self.activity.num_ranks)


def read_run(path: Path) -> RunData:
    """Read what there is in a run folder.

    Raises:
        RunFolderError: it holds no run.
    """
    if not (path / "experiment.toml").is_file():
        raise RunFolderError(
            f"'{path}' holds no run: it has no experiment.toml; give the folder that 'mophpc run' "
            f"made"
        )
    run = RunData(path)
    _read_settings(run)
    run.schedule = read_schedule(path / "plan.json", run.problems)
    run.activity = read_activity(path / "events", run.schedule.num_ranks, run.problems)
    _read_results(run)
    _read_metrics(run)
    if not run.ended:
        _best_so_far(run)
    _read_decisions(run)
    # They are shown on terminals too, and quote files that somebody else wrote.
    run.problems = ["".join(c if c.isprintable() else "?" for c in p) for p in run.problems]
    return run


def number(value: Any) -> float | None:
    """Return a finite number as it is, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -1e300 < value < 1e300 else None


def whole(value: Any, most: int = MOST_CONFIGS) -> int | None:
    """Return a whole number from 0 to below `most`, and None for anything else."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < most
    return int(value) if good else None


def _scalar(value: Any) -> Value:
    if value is None or isinstance(value, str | bool):
        return value
    found = number(value)
    return str(value) if found is None else found


def _read_settings(run: RunData) -> None:
    path = run.path / "experiment.toml"
    try:
        run.settings_text = path.read_text(encoding="utf-8")
        run.settings = tomllib.loads(run.settings_text)
        load_experiment(path)
    except ExperimentError as error:
        text = str(error).removeprefix(f"{path}: ")
        run.problems.append(f"experiment.toml is none of a run: {_short(ValueError(text))}.")
    except (OSError, ValueError, RecursionError) as error:
        run.problems.append(f"experiment.toml is damaged: {_short(error)}.")
    objective = run.settings.get("objective")
    if isinstance(objective, dict):
        run.metric = str(objective.get("metric", ""))
        run.maximise = objective.get("mode") == "max"
    run.metric = run.metric or "valid_loss"


def _read_results(run: RunData) -> None:
    path = run.path / "results.json"
    if not path.is_file():
        run.problems.append("The run has not ended: there is no results.json.")
        _read_failures(run)
        _rows_without_results(run)
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = [_row(given) for given in record["configs"]]
        if len({row.config_id for row in found}) != len(found):
            raise ValueError("two rows have the same config_id")
        run.rows, run.ended = found, True
        run.metric = str(record["metric"])
        run.maximise = record["mode"] == "max"
        best = whole(record["best"])
        run.best = best if any(row.config_id == best for row in found) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        run.problems.append(f"results.json is damaged: {_short(error)}.")
        _rows_without_results(run)


def _read_failures(run: RunData) -> None:
    """Say why the run ended, where ranks have left word."""
    for path in sorted(run.path.glob("failure-rank-*.json"))[:MOST_FAILURES]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            run.problems.append(f"It failed at {record['place']}: {record['cause']}"[:300])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            run.problems.append(f"{path.name} is damaged.")


def _row(given: Record) -> Row:
    config_id = whole(given["config_id"])
    if config_id is None:
        raise ValueError(f"config_id is {given['config_id']!r}")
    final = {str(k): number(v) for k, v in given["final"].items()}
    row = Row(config_id, str(given["config"]), str(given["status"]))
    row.hyperparameters = {str(k): _scalar(v) for k, v in given["hyperparameters"].items()}
    row.epochs = whole(given["epochs"]) or 0
    row.best, row.best_epoch = number(given["best"]), whole(given["best_epoch"])
    row.final = final
    lineage = given.get("lineage")
    if isinstance(lineage, list):
        row.lineage = [found for item in lineage if (found := _ancestor(item)) is not None]
        firsts = [item for item in lineage if isinstance(item, dict) and item.get("source") is None]
        row.began = _values(firsts[0]) if firsts else {}
    return row


def _ancestor(item: Any) -> Record | None:
    if not isinstance(item, dict):
        return None
    epoch, source = whole(item.get("epoch")), whole(item.get("source"))
    if epoch is None or source is None:
        return None
    return {"epoch": epoch, "source": source, "hyperparameters": _values(item)}


def _values(item: Record) -> dict[str, Value]:
    values = item.get("hyperparameters")
    values = values if isinstance(values, dict) else {}
    return {str(k): _scalar(v) for k, v in values.items()}


def _rows_without_results(run: RunData) -> None:
    """Take the configs' names from the plan, and what these say of hyperparameters."""
    for config_id, name in enumerate(run.schedule.names):
        row = Row(config_id, name)
        row.hyperparameters = {key: _guess(text) for key, text in _PAIR.findall(name)}
        run.rows.append(row)
    if run.rows:
        run.problems.append("Hyperparameters are read off the configs' names.")


def _guess(text: str) -> Value:
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        return text
    return int(value) if value.is_integer() and "." not in text and "e" not in text else value


def _read_metrics(run: RunData) -> None:
    path = run.path / "metrics.jsonl"
    if not path.is_file():
        run.problems.append("There are no learning curves: metrics.jsonl is missing.")
        return
    apart = {"config_id", "config", "epoch", "rank"}
    found: dict[tuple[int, int], Record] = {}
    names: dict[str, None] = {}
    known = {row.config_id: row for row in run.rows}
    for record in read_records(path, run.problems):
        config_id, epoch = whole(record.get("config_id")), whole(record.get("epoch"))
        if config_id is None or epoch is None:
            continue
        found[config_id, epoch] = record
        names |= dict.fromkeys(str(name) for name in record if name not in apart)
        if config_id not in known:
            known[config_id] = Row(config_id, str(record.get("config", f"c{config_id:03d}")))
            run.rows.append(known[config_id])
    run.rows.sort(key=lambda row: row.config_id)
    run.metrics = list(names)
    for (config_id, epoch), record in sorted(found.items()):
        values = [number(record.get(name)) for name in run.metrics]
        run.curves.append((config_id, epoch, [math.nan if v is None else v for v in values]))


def _best_so_far(run: RunData) -> None:
    """Fill in what results.json would say, from the metrics of the epochs that ended."""
    rows = {row.config_id: row for row in run.rows}
    for config_id, epoch, values in run.curves:
        row = rows[config_id]
        row.epochs += 1
        row.final = {
            name: None if math.isnan(value) else value
            for name, value in zip(run.metrics, values, strict=True)
            if name != "seconds"
        }
        value = row.final.get(run.metric)
        if value is not None and (row.best is None or _beats(value, row.best, run.maximise)):
            row.best, row.best_epoch = value, epoch
    ranked = [row for row in run.rows if row.best is not None]
    for row in ranked:
        leader = None if run.best is None else rows[run.best].best
        if leader is None or _beats(row.best or 0.0, leader, run.maximise):
            run.best = row.config_id


def _beats(value: float, other: float, maximise: bool) -> bool:
    return value > other if maximise else value < other


def _read_decisions(run: RunData) -> None:
    path = run.path / "decisions.jsonl"
    if not path.is_file():
        return
    for record in read_records(path, run.problems):
        config_id = whole(record.get("config_id"))
        if config_id is None:
            continue
        run.decisions.append(
            {
                "at": number(record.get("at")),
                "kind": str(record.get("kind", "")),
                "config": config_id,
                "epochs": whole(record.get("epochs")),
            }
        )


def _short(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
    text = " ".join(text.split())
    return text if len(text) < 160 else text[:159] + "…"
