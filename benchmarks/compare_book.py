"""What `compare.py` has measured so far: a file with a line of JSON per system and round."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from compare_tables import MOP, Outcome

Key = tuple[Any, ...]


def key_of(outcome: Outcome) -> Key:
    """Return what tells the comparison, the round and the system of an outcome."""
    return (*comparison_of(outcome), outcome.round, outcome.system)


def comparison_of(outcome: Outcome) -> Key:
    """Return what is equal among outcomes that can be compared."""
    return (outcome.data, outcome.ranks, outcome.configs, outcome.rows, outcome.epochs)


class Book:
    """Outcomes, in a file where there is one: what is in it is not measured again.

    Of several lines for the same the last one counts: what has failed may be tried again. Ratios
    are taken within a round, so that all of it comes from one machine on one day: a line from
    another one replaces all that the round had.

    Args:
        path: a file that exists, or will; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[Key, Outcome] = {}
        if path is not None and path.exists():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                try:
                    outcome = Outcome(**json.loads(line))
                except (TypeError, ValueError):
                    sys.exit(f"{path}:{number} is no line of this benchmark; name another file")
                self._take(outcome)

    def of(self, comparison: Key) -> list[Outcome]:
        """Return the outcomes of a comparison, by round."""
        own = [o for o in self._found.values() if comparison_of(o) == comparison]
        return sorted(own, key=lambda o: o.round)

    def missing(
        self, comparison: Key, number: int, systems: Sequence[str], machine: str
    ) -> list[str]:
        """Return the systems that have yet to run in a round, in their order.

        A round that another machine, or another day, has left unfinished is all to be run.
        """
        own = [o for o in self.of(comparison) if o.round == number and not o.why]
        if {o.system for o in own} >= set(systems):
            return []
        here = {o.system for o in own if o.machine == machine}
        return [s for s in systems if s not in here]

    def _take(self, outcome: Outcome) -> None:
        own = (*comparison_of(outcome), outcome.round)
        self._found = {
            key: other
            for key, other in self._found.items()
            if key[:-1] != own or other.machine == outcome.machine
        }
        self._found[key_of(outcome)] = outcome

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self._take(outcome)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")


def write_csv(file: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a row per outcome, with its ratio to MOP's makespan in that round."""
    names = [f.name for f in fields(Outcome) if f.name != "records"]
    spans = {
        (comparison_of(o), o.round): o.makespan_s for o in outcomes if o.system == MOP and not o.why
    }
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow([*names, "makespan_to_mop"])
        for outcome in outcomes:
            span = spans.get((comparison_of(outcome), outcome.round))
            ratio = outcome.makespan_s / span if span and not outcome.why else ""
            writer.writerow([*(getattr(outcome, name) for name in names), ratio])
