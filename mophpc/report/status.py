"""How far a run is, for people: one line and a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mophpc.report.results import cell
from mophpc.status_file import ConfigStatus, Status

if TYPE_CHECKING:
    from rich.table import Table

_STATES = {
    "running": "running for {} on {}",
    "ended": "ended after {} on {}",
    "failed": "failed after {} on {}",
    "interrupted": "interrupted after {} on {}",
}


def heading(status: Status, running_s: float, *, is_dead: bool = False) -> str:
    """Return the line above the table."""
    state = "ran for {} on {}" if is_dead else _STATES[status.state]
    parts = [state.format(clock(running_s), cell(status.host))]
    parts.append(f"{status.visits} of {status.planned_visits} visits")
    if status.state == "running" and not is_dead and status.left_s is not None:
        parts.append(f"about {clock(status.left_s)} left")
    if status.best is not None and status.best < len(status.configs):
        row = status.configs[status.best]
        name = cell(row.config.partition("-")[0])
        parts.append(f"best {name} with {cell(status.objective.metric)} {cell(row.best)}")
    return ", ".join(parts)


def status_table(status: Status, most: int) -> Table:
    """Return a row per config, from best to worst, as `ranked`."""
    from rich.table import Table
    from rich.text import Text

    metric = status.objective.metric
    names = list(dict.fromkeys(n for row in status.configs for n in row.hyperparameters))
    losses = [n for n in ("train_loss", "valid_loss") if n != metric]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("config", no_wrap=True)
    for name in [*names, "epochs", metric, f"best {metric}", "epoch", *losses]:
        table.add_column(Text(cell(name)), justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for row in ranked(status)[:most]:
        cells = [cell(row.config.partition("-")[0])]
        cells += [cell(row.hyperparameters.get(name, "")) for name in names]
        cells += [str(row.epochs), cell(row.metrics.get(metric))]
        cells += [cell(row.best), cell(row.best_epoch)]
        cells += [cell(row.metrics.get(name)) for name in losses]
        is_best = row.config_id == status.best
        # As Text: a hyperparameter's brackets are not markup.
        table.add_row(*map(Text, cells), row.status, style="bold green" if is_best else None)
    return table


def ranked(status: Status) -> list[ConfigStatus]:
    """Return the configs from best to worst, then those without a value, then those lost."""
    sign = -1.0 if status.objective.mode == "max" else 1.0

    def key(row: ConfigStatus) -> tuple[bool, bool, float, int]:
        is_lost = row.status in ("diverged", "failed")
        return (is_lost, row.best is None, sign * (row.best or 0.0), row.config_id)

    return sorted(status.configs, key=key)


def clock(seconds: float) -> str:
    """Return seconds as `0:12:31`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
