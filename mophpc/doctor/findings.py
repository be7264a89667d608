"""What was found, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

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
        """Return the page: a line per finding, what to do under it, and the worst last."""
        width = max((len(finding.topic) for finding in self.findings), default=0)
        lines = []
        for level in reversed(LEVELS):
            for finding in self.findings:
                if finding.level != level:
                    continue
                lines.append(f"{level:<8} {finding.topic:<{width}}  {finding.found}")
                if finding.advice:
                    lines.append(f"{'':<8} {'':<{width}}  -> {finding.advice}")
        return "\n".join(lines)


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
