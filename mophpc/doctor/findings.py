"""What was found, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note", "ok")
"""The worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found."""

    level: Level
    topic: str
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


@dataclass(slots=True)
class Report:
    """The page."""

    ranks: list[dict[str, Any]]
    """Facts of each rank that was heard of."""
    findings: list[Finding] = field(default_factory=list)
    is_broken: bool = False
    """The ranks do not answer each other any more: they have to be ended."""

    @property
    def has_problem(self) -> bool:
        """Whether a run would fail, or be of no use."""
        return any(finding.level == "problem" for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "ranks": self.ranks,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def text(self) -> str:
        """Return the page: a line per finding, the worst last, what to do, and a row per rank."""
        width = max((len(finding.topic) for finding in self.findings), default=0)
        lines = []
        for level in reversed(LEVELS):
            for finding in self.findings:
                if finding.level != level:
                    continue
                lines.append(f"{level:<8} {finding.topic:<{width}}  {finding.found}")
                if finding.advice:
                    lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
        lines += ["", _per_rank(self.ranks)] if len(self.ranks) > 1 else []
        return "\n".join(lines)


_MOST_ROWS = 64


def _wire(key: str, scale: float, form: str) -> Callable[[dict[str, Any]], str]:
    return lambda facts: form.format(scale * facts["wire"][key])


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("rank", lambda facts: str(facts["rank"])),
    ("host", lambda facts: str(facts["host"])),
    ("cores", lambda facts: str(facts["cores"])),
    ("GPU", lambda facts: f"{facts['bound_gpu']}: {facts['gpus'][facts['bound_gpu']]}"),
    ("hop us", _wire("latency_s", 1e6, "{:.0f}")),
    ("hop GB/s", _wire("bytes_per_s", 1e-9, "{:.2f}")),
    ("copy GB/s", _wire("memcpy_bytes_per_s", 1e-9, "{:.2f}")),
    ("hidden", _wire("hidden", 1.0, "{:.0%}")),
    ("store MB/s", lambda facts: f"{facts['store']['bytes_per_s'] / 1e6:.3g}"),
)


def _per_rank(ranks: Sequence[dict[str, Any]]) -> str:
    """Return a table of what was found on each rank; a probe that failed leaves a gap."""
    rows = [[_cell(column, facts) for _, column in _COLUMNS] for facts in ranks[:_MOST_ROWS]]
    table = Table(box=None, pad_edge=False, header_style="")
    used = [i for i in range(len(_COLUMNS)) if any(row[i] for row in rows)]
    for i in used:
        table.add_column(_COLUMNS[i][0], justify="left" if i == 1 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in used))
    text = StringIO()
    Console(file=text, width=200, color_system=None).print(table)
    more = len(ranks) - len(rows)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(lines + ([f"and {more} more ranks; --json has them"] if more else []))


def _cell(column: Callable[[dict[str, Any]], str], facts: dict[str, Any]) -> str:
    try:
        return column(facts)
    except (KeyError, TypeError, IndexError):
        return ""


def differing(ranks: Sequence[dict[str, Any]], key: str) -> dict[str, list[int]]:
    """Return the ranks that have each value of a fact, in the order of the lowest rank."""
    found: dict[str, list[int]] = {}
    for rank, facts in enumerate(ranks):
        found.setdefault(str(facts.get(key)), []).append(rank)
    return found


def listed(numbers: Sequence[int], most: int = 8) -> str:
    """Return numbers as text, as in `0, 1, 2 and 5 more`."""
    text = ", ".join(map(str, numbers[:most]))
    return f"{text} and {len(numbers) - most} more" if len(numbers) > most else text
