"""What `compare.py` has measured so far: a file with a line of JSON per system and round."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from common import append_line, refuse
from compare_tables import MOP, Outcome

Key = tuple[Any, ...]

RECORD = ("config", "epoch", "at_s", "accuracy")
_TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": int | float,
    "list[Record]": list,
}


def key_of(outcome: Outcome) -> Key:
    """Return what tells the comparison, the round and the system of an outcome."""
    return (*comparison_of(outcome), outcome.round, outcome.system)


def comparison_of(outcome: Outcome) -> Key:
    """Return what is equal among outcomes that can be compared."""
    facts = (outcome.data, outcome.ranks, outcome.configs, outcome.rows, outcome.epochs)
    return (*facts, outcome.malloc)


class Book:
    """Outcomes, in a file where there is one: what is in it is not measured again.

    Of several lines for the same the last one counts: what has failed may be tried again. Ratios
    are taken within a round, so that all of it comes from one machine on one day: a success from
    another one replaces all that the round had.

    Args:
        path: a file that exists, or will; None: nothing is kept.
        systems: the names that systems may have.
    """

    def __init__(self, path: Path | None, systems: Sequence[str]) -> None:
        self._path = path
        self._found: dict[Key, Outcome] = {}
        if path is None or not path.exists():
            return
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            refuse(f"{path} cannot be read: {error}; name another file")
        for number, line in enumerate(lines, 1):
            try:
                outcome = _outcome(line, systems)
            except (TypeError, ValueError) as error:
                refuse(
                    f"line {number} of {path} is none that this benchmark wrote ({error}); take it "
                    "out, or name another file"
                )
            self._take(outcome)

    def of(self, comparison: Key) -> list[Outcome]:
        """Return the outcomes of a comparison, by round."""
        own = [o for o in self._found.values() if comparison_of(o) == comparison]
        return sorted(own, key=lambda o: o.round)

    def missing(
        self, comparison: Key, number: int, systems: Sequence[str], machine: str
    ) -> list[str]:
        """Return the systems that have yet to run in a round, in their order.

        A round that another machine, or another day, has left unfinished is all to be run: where
        not all of it is asked for now, that is refused, since what it has would not count any more.
        """
        own = [o for o in self.of(comparison) if o.round == number and not o.why]
        if {o.system for o in own} >= set(systems):
            return []
        here = {o.system for o in own if o.machine == machine}
        lost = [o.system for o in own if o.machine != machine and o.system not in systems]
        if lost:
            refuse(
                f"round {number} of {comparison[0]} on {comparison[1]} ranks was begun on another "
                f"machine or day, and would lose what it has of {', '.join(lost)}; name them in "
                "--systems too, or another --book"
            )
        return [s for s in systems if s not in here]

    def _take(self, outcome: Outcome) -> None:
        own = (*comparison_of(outcome), outcome.round)
        others = [
            key
            for key, other in self._found.items()
            if key[:-1] == own and other.machine != outcome.machine
        ]
        if others and outcome.why:
            return
        for key in others:
            del self._found[key]
        self._found[key_of(outcome)] = outcome

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        self._take(outcome)
        if self._path is not None:
            append_line(self._path, json.dumps(asdict(outcome)))


def _outcome(line: str, systems: Sequence[str]) -> Outcome:
    """Read a line.

    Raises:
        TypeError, ValueError: it is not one of an outcome.
    """
    outcome = Outcome(**json.loads(line))
    for entry in fields(Outcome):
        value, usual = getattr(outcome, entry.name), _TYPES[str(entry.type)]
        if isinstance(value, bool) or not isinstance(value, usual):
            raise TypeError(f"{entry.name} is {value!r}")
    if outcome.system not in systems:
        raise ValueError(f"system is {outcome.system!r}; allowed: {', '.join(systems)}")
    if not (outcome.records or outcome.why):
        raise ValueError("it has no records")
    for record in outcome.records:
        known = all(isinstance(record.get(name), int | float) for name in RECORD)
        if not known or record["config"] not in range(outcome.configs):
            raise ValueError(f"a record is {record!r}")
    return outcome


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
