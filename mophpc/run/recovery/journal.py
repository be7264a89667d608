"""What rank 0 has decided and told the ranks, written down before they are told.

A run that was cut off goes on from here: what was promised is made in the same order again, and
what a method was told is told to it again. Each line is whole or not there; everything that belongs
together is one line. The last word of a line is a digest of it and of all lines before it, so that
one that was changed, lost or put elsewhere is noticed.

{"kind": "part", "time": 1764000000.0, "num_ranks": 4, "owners": [0, 1, 2, 3],
 "configs": [["c000-lr=0.1", {"lr": 0.1}]]}            the run begins, or goes on
{"kind": "promise", "visits": ["c0e0s2r1n0"], ...}     ranks were told these visits, after what
                                                       was decided and what people asked for
{"kind": "final", "config": 0, "status": "done", ...}  a config has ended
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mophpc.dimensions import Value
from mophpc.errors import PlanError, RunFolderError
from mophpc.files import LineWriter, plain
from mophpc.schedule.orders import Orders
from mophpc.schedule.plan import Plan, Visit
from mophpc.schedule.pool import Pool
from mophpc.search.space import Config, check_name
from mophpc.state_folder import new_digest

Record = dict[str, Any]

_CHAIN = re.compile(rb',"chain":"([0-9a-f]{16})"}\Z')


class Journal:
    """Writes `journal.jsonl`, on rank 0.

    Args:
        path: of the file; lines are added to one that is there.
    """

    def __init__(self, path: Path) -> None:
        self._lines = LineWriter(path)
        whole = path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]
        self._chain = _split(whole)[1] if whole else ""
        self._goals: dict[int, list[Any]] = {}
        # What an earlier part has written last is not known.
        self._cuts: list[Any] | None = None if whole else []

    def part(self, plan: Plan, configs: Sequence[Config], time_s: float) -> None:
        """Say that a run begins or goes on.

        Args:
            plan: its sizes and owners.
            configs: that there are now; those that are known already may be left out.
            time_s: the time, since 1970, from which the run's seconds are counted.
        """
        self._write(
            {
                "kind": "part",
                "time": time_s,
                "num_ranks": plan.num_ranks,
                "owners": list(plan.owners),
                "configs": [[config.name, dict(config.values)] for config in configs],
            }
        )

    def whole(self, plan: Plan) -> None:
        """Say that the ranks know all visits of a plan."""
        self._promise([str(visit) for visit in plan.visits()])

    def promise(
        self,
        orders: Sequence[Orders],
        pool: Pool | None = None,
        calls: Sequence[Record] = (),
        cuts: Mapping[int, Cut] = MappingProxyType({}),
        answers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write down what the ranks are told next, and what it follows from.

        Args:
            orders: for each rank.
            pool: of a run in which configs are decided on.
            calls: of the method, in order, since the last time.
            cuts: by config_id, all that there are.
            answers: names of the requests that were granted since the last time, and what is
                answered to each.
        """
        visits = [str(stop.visit) for own in orders for stop in own.stops]
        # All ranks get the same news; how a state is laid out is found out again.
        news = [item for item in orders[0].news if "values" in item]
        facts = {"goals": self._changed(pool), "news": news, "calls": list(calls)}
        found: dict[str, list[Any]] = {key: value for key, value in facts.items() if value}
        records = [cut.record(config_id) for config_id, cut in sorted(cuts.items())]
        if pool is not None and records != self._cuts:
            self._cuts = found["cuts"] = records
        if answers:
            found["answers"] = [list(pair) for pair in answers]
        self._promise(visits, **found)

    def final(self, record: Mapping[str, Any]) -> None:
        """Write down that a config has ended."""
        self._write(dict(record))

    def close(self) -> None:
        """Put all lines on disk."""
        self._lines.close()

    def _promise(self, visits: list[str], **facts: list[Any]) -> None:
        if visits or facts:
            self._write({"kind": "promise", "visits": visits} | facts)

    def _write(self, record: Record) -> None:
        # The bytes that the line will have up to its last word.
        text = json.dumps(plain(record), separators=(",", ":"), allow_nan=False)[:-1]
        chain = _chained(self._chain, text.encode())
        self._lines.write(record | {"chain": chain})
        self._chain = chain

    def _changed(self, pool: Pool | None) -> list[Any]:
        """Return [config, steps, epochs that may follow, end, is over] where that is new."""
        changed: list[Any] = []
        if pool is None:
            return changed
        for config_id, (member, end) in enumerate(zip(pool.members, pool.ends, strict=True)):
            goal = [config_id, member.goal, member.then, end, member.is_over]
            if self._goals.get(config_id) != goal:
                self._goals[config_id] = goal
                changed.append(goal)
        return changed


@dataclass(frozen=True, slots=True)
class Goal:
    """What a config is to make."""

    steps: int
    """It waits before this visit."""
    then: int
    """Epochs that may follow."""
    end: int
    """It ends before this visit at the latest."""
    is_over: bool
    """It makes what is promised and no more."""


@dataclass(slots=True)
class Cut:
    """A config that waits before its goal, since somebody asked for that."""

    goal: int
    """Epochs that it was to make."""
    then: int
    stops: bool = False
    clones: list[tuple[int, Mapping[str, Value], int]] = field(default_factory=list)
    """Copies to be made of it: (config, hyperparameters, epochs)."""

    def record(self, config_id: int) -> list[Any]:
        """Return it as the journal has it."""
        clones = [[clone, dict(values), epochs] for clone, values, epochs in self.clones]
        return [config_id, self.goal, self.then, self.stops, clones]


@dataclass(slots=True)
class Told:
    """What a journal says."""

    time_s: float = 0.0
    """The time from which the run's seconds are counted."""
    num_ranks: int = 0
    """Of the run's first part."""
    num_first: int = 0
    """Configs that there were at the beginning; the others came on the way."""
    configs: list[tuple[str, dict[str, Value]]] = field(default_factory=list)
    """Name and first hyperparameters, by config_id."""
    changes: list[Record] = field(default_factory=list)
    """Copies of states: what `Roster.learn` takes."""
    visits: list[dict[int, Visit]] = field(default_factory=list)
    """By config_id and step: the visits that were promised."""
    goals: dict[int, Goal] = field(default_factory=dict)
    """By config_id, where configs are decided on."""
    cuts: dict[int, Cut] = field(default_factory=dict)
    """By config_id."""
    answers: dict[str, str] = field(default_factory=dict)
    """By the name of a request that was granted."""
    calls: list[Record] = field(default_factory=list)
    """Of the method, in order."""
    finals: dict[int, Record] = field(default_factory=dict)
    """By config_id."""

    def take(self, line: Record) -> None:
        """Take one line.

        Raises:
            KeyError, TypeError, ValueError, IndexError: it is none of a journal.
        """
        if line["kind"] == "part":
            self.time_s = self.time_s or float(line["time"])
            self.num_ranks = self.num_ranks or int(line["num_ranks"])
            for name, values in line["configs"]:
                self._begin(str(name), dict(values))
            self.num_first = self.num_first or len(self.configs)
        elif line["kind"] == "promise":
            for item in line.get("news", ()):
                if "like" in item:
                    self.changes.append(item)
                if item["config_id"] == len(self.configs):
                    self._begin(str(item["name"]), dict(item["values"]))
            for token in line["visits"]:
                visit = Visit.parse(token)
                self.visits[visit.config_id][visit.step] = visit
            for config_id, goal, then, end, is_over in line.get("goals", ()):
                self.goals[int(config_id)] = Goal(int(goal), int(then), int(end), bool(is_over))
            self.calls += line.get("calls", ())
            if "cuts" in line:
                self.cuts = {int(cut[0]): self._cut(*cut[1:]) for cut in line["cuts"]}
            self.answers |= {str(name): str(text) for name, text in line.get("answers", ())}
        elif line["kind"] == "final":
            self.finals[int(line["config"])] = line

    def _cut(self, goal: int, then: int, stops: bool, clones: Sequence[Any]) -> Cut:
        found: list[tuple[int, Mapping[str, Value], int]] = []
        for clone, values, epochs in clones:
            if not 0 <= clone < len(self.configs):
                raise ValueError(f"there is no config {clone}")
            found.append((int(clone), dict(values), int(epochs)))
        return Cut(int(goal), int(then), bool(stops), found)

    def _begin(self, name: str, values: dict[str, Value]) -> None:
        check_name(name)
        self.configs.append((name, values))
        self.visits.append({})


def _split(line: bytes) -> tuple[bytes, str]:
    """Return a line up to its last word, and that; empty where it has none."""
    found = _CHAIN.search(line)
    return (line, "") if found is None else (line[: found.start()], found[1].decode())


def _chained(before: str, text: bytes) -> str:
    """Return the digest of a line and of those before it, whose digest is `before`."""
    digest = new_digest()
    digest.update(before.encode())
    digest.update(text)
    return str(digest.hexdigest()[:16])


def read_journal(path: Path) -> Told:
    """Return what a run's journal says.

    Raises:
        RunFolderError: there is none, or a line of it is damaged.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunFolderError(
            f"'{path}' cannot be read: {error.strerror}; without it the run cannot go on"
        ) from error
    told, before = Told(), ""
    lines = raw.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last end of line is half
        try:
            text, chain = _split(line)
            if chain != _chained(before, text):
                raise ValueError("its digest is another")
            told.take(json.loads(line))
            before = chain
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, PlanError) as error:
            raise RunFolderError(
                f"line {number} of '{path}' is damaged; choose another run folder"
            ) from error
        except RecursionError as error:
            raise RunFolderError(f"line {number} of '{path}' is no line of a journal") from error
    return told
