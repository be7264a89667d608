"""What `scaling.py` measures at one number of ranks, what the simulator says of it, and the fit."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from common import refuse
from scipy.optimize import nnls

from mophpc.schedule.costs import Costs
from mophpc.schedule.execute import Reality, execute
from mophpc.schedule.policies import make_plan

STRONG, WEAK = "strong", "weak"
TRAINING, SLEEPING, SIMULATED = "training", "sleeping", "simulated"
SEEDS = 3
LEAST_SLEPT, MOST_SLEPT, SLEPT_BESIDES_S = 0.99, 1.3, 0.05
"""Of the visit asked for: what one that sleeps can take, and what a busy machine may add to it."""


@dataclass(frozen=True, slots=True)
class Case:
    """An experiment on some ranks, a shard for each."""

    part: str
    kind: str
    ranks: int
    configs: int
    epochs: int
    rows: int
    """Of all shards together."""

    @property
    def visits_per_rank(self) -> int:
        return self.configs * self.epochs


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run took, in seconds."""

    makespan_s: float
    replayed_s: float
    """The makespan if there were only visits and evaluations, in the same order."""
    visit_s: float
    """Mean of all visits."""
    visit_sd: float
    """Standard deviation of their logarithms; all configs cost the same here."""
    eval_s: float
    """Mean of all evaluations."""


@dataclass(frozen=True, slots=True)
class Point:
    """A round of a case."""

    case: Case
    round: int
    measured: Measured
    pace: float = 1.0
    """What the machine itself gives: seconds per row of plain loops, as many at once as there are
    ranks, right before the run and after it. 1 where nothing is computed, or each rank is taken to
    have a machine of its own."""
    machine: str = ""
    """And versions, and the date."""

    @property
    def overhead_s(self) -> float:
        """Seconds per visit in which nothing is trained or evaluated, though it could be."""
        lost_s = self.measured.makespan_s - self.measured.replayed_s
        return lost_s / self.case.visits_per_rank


@dataclass(frozen=True, slots=True)
class Reference:
    """What the simulator knows: the runs of one kind and part on the fewest ranks."""

    per_row_s: float
    """At this pace of the machine."""
    overhead_s: float
    """Per visit."""
    eval_s: float
    jitter: float
    pace: float

    @classmethod
    def of(cls, points: Sequence[Point]) -> Reference:
        """Take the medians of the points on the fewest ranks."""
        least = min(point.case.ranks for point in points)
        own = [point for point in points if point.case.ranks == least]
        return cls(
            statistics.median(p.measured.visit_s * least / p.case.rows for p in own),
            max(0.0, statistics.median(p.overhead_s for p in own)),
            statistics.median(p.measured.eval_s for p in own),
            statistics.median(p.measured.visit_sd for p in own),
            statistics.median(p.pace for p in own),
        )

    def work_s(self, case: Case) -> float:
        """Return what all visits of a case take on one rank, with nothing in between."""
        return case.configs * case.epochs * case.rows * self.per_row_s

    def slowdown(self, points: Iterable[Point], ranks: int) -> float:
        """Return by how much the machine is slower on so many ranks than it was here.

        That is the median of the points on so many; where there is none, the largest known.
        """
        points = list(points)
        own = [point.pace for point in points if point.case.ranks == ranks]
        found = statistics.median(own) if own else max(point.pace for point in points)
        return found / self.pace


def replayed_s(records: Iterable[Mapping[str, Any]]) -> float:
    """Return the makespan of a run's visits and evaluations if nothing else took any time.

    Args:
        records: the run's events `visit` and `eval`, of all ranks.
    """
    rank_free: dict[int, float] = {}
    config_free: dict[int, float] = {}
    for record in sorted(records, key=lambda record: float(record["start"])):
        rank, config = record["rank"], record["config"]
        begin = max(rank_free.get(rank, 0.0), config_free.get(config, 0.0))
        rank_free[rank] = config_free[config] = begin + record["end"] - record["start"]
    return max(rank_free.values(), default=0.0)


def measured(records: Sequence[Mapping[str, Any]]) -> Measured:
    """Summarize a run's events `visit` and `eval`, of all ranks."""
    took = {
        kind: np.array([r["end"] - r["start"] for r in records if r["kind"] == kind])
        for kind in ("visit", "eval")
    }
    begin = min(r["start"] for r in records)
    return Measured(
        max(r["end"] for r in records) - begin,
        replayed_s(records),
        float(took["visit"].mean()),
        float(np.log(took["visit"]).std()),
        float(took["eval"].mean()) if took["eval"].size else 0.0,
    )


def simulated_s(case: Case, known: Reference, slowdown: float = 1.0) -> float:
    """Return the makespan that the simulator gives a case, the mean of some realities.

    Args:
        case: the experiment.
        known: what its visits cost.
        slowdown: of the machine by computing on all of these ranks at once, and at another
            time than that of the runs that are known.
    """
    visit_s = slowdown * known.per_row_s * case.rows / case.ranks + known.overhead_s
    visit_s *= math.exp(-(known.jitter**2) / 2)  # what is drawn has this mean, not this median
    costs = Costs.of(visit_s, case.configs, case.ranks, eval_s=known.eval_s)
    plan = make_plan(
        "balanced",
        num_configs=case.configs,
        num_shards=case.ranks,
        num_ranks=case.ranks,
        num_epochs=case.epochs,
        costs=costs,
    )
    spans = []
    for seed in range(SEEDS):
        reality = Reality.draw(costs, case.epochs, noise=0.0, jitter=known.jitter, seed=seed)
        spans.append(execute(plan, costs, reality, renew=False).makespan_s)
    return statistics.mean(spans)


@dataclass(frozen=True, slots=True)
class Fit:
    """makespan = factor x work / ranks + visit_s x visits per rank + serial x work."""

    factor: float
    visit_s: float | None
    """None where the points do not tell it apart from a serial share."""
    serial: float

    def __str__(self) -> str:
        visit = "not told apart" if self.visit_s is None else f"{1000 * self.visit_s:.2f} ms"
        return (
            f"computing x {self.factor:.4f}, cost per visit {visit}, serial share {self.serial:.3%}"
        )


def fit(cases: Sequence[Case], work_s: Sequence[float], makespan_s: Sequence[float]) -> Fit | None:
    """Fit makespans by non-negative least squares of their relative errors.

    Strong scaling alone cannot tell a cost per visit from a serial share, since each rank makes
    all configs' visits whatever their number; then the serial share holds both.

    Returns:
        The fit; None where there are fewer points than unknowns.
    """
    work, span = np.array(work_s, np.float64), np.array(makespan_s, np.float64)
    ranks = np.array([case.ranks for case in cases], np.float64)
    visits = np.array([case.visits_per_rank for case in cases], np.float64)
    columns = np.stack([work / ranks, work, visits], axis=1) / span[:, None]
    size = np.linalg.norm(columns, axis=0)
    whole = np.linalg.matrix_rank(columns / size, tol=1e-6) == 3
    used = columns if whole else columns[:, :2]
    if np.linalg.matrix_rank(used / size[: used.shape[1]], tol=1e-6) < used.shape[1]:
        return None
    found, _ = nnls(used / size[: used.shape[1]], np.ones(len(span)))
    found = found / size[: used.shape[1]]
    visit_s = float(found[2]) if whole else None
    return Fit(float(found[0]), visit_s, float(found[1]))


# --- the CSV

_CASE = [field.name for field in fields(Case)]
_MEASURED = [field.name for field in fields(Measured)]
_MAY_BE_ZERO = ("visit_sd", "eval_s")
_FOLLOWS = ["overhead_s", "work_s", "slowdown", "predicted_s", "error"]
COLUMNS = [*_CASE, "round", *_MEASURED, "pace", *_FOLLOWS, "machine"]


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows as a CSV file; what a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.9g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def from_csv(text: str) -> list[Point]:
    """Return the measured points of a CSV file.

    Raises:
        ValueError: it is not one of `to_csv`; the message says which line and column is wrong.
    """
    reader = csv.reader(io.StringIO(text))
    try:
        _check_head(next(reader, []))
        found = [_point_of(words, f"line {reader.line_num}") for words in reader if words]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return [point for point in found if point is not None]


def _check_head(names: Sequence[str]) -> None:
    for number, name in enumerate(COLUMNS):
        given = names[number] if number < len(names) else ""
        if given != name:
            raise ValueError(f"line 1, column {number + 1}: '{given}' is given; allowed: '{name}'")
    if len(names) > len(COLUMNS):
        raise ValueError(f"line 1 has {len(names)} columns; allowed: {len(COLUMNS)}")


def _point_of(words: Sequence[str], where: str) -> Point | None:
    """Return the point of a line; None where it was only simulated."""
    if len(words) != len(COLUMNS):
        raise ValueError(f"{where} has {len(words)} columns; allowed: {len(COLUMNS)}")
    row = dict(zip(COLUMNS, words, strict=True))

    def wrong(name: str, allowed: str) -> ValueError:
        return ValueError(f"{where}, column {name}: '{row[name]}' is given; allowed: {allowed}")

    def whole(name: str, least: int) -> int:
        if not row[name].isdecimal() or int(row[name]) < least:
            raise wrong(name, f"whole numbers from {least}")
        return int(row[name])

    def number(name: str) -> float:
        try:
            value = float(row[name])
        except ValueError:
            value = math.nan
        if name in _MAY_BE_ZERO and value == 0:
            return value
        if not 0 < value < math.inf:
            raise wrong(name, "0 and above" if name in _MAY_BE_ZERO else "numbers above 0")
        return value

    for name, allowed in (("part", (STRONG, WEAK)), ("kind", (TRAINING, SLEEPING, SIMULATED))):
        if row[name] not in allowed:
            raise wrong(name, ", ".join(allowed))
    if row["kind"] == SIMULATED:
        if row["makespan_s"]:
            raise wrong("makespan_s", "nothing, in a line that is simulated")
        return None
    case = Case(row["part"], row["kind"], *(whole(name, 1) for name in _CASE[2:]))
    took = Measured(*(number(name) for name in _MEASURED))
    return Point(case, whole("round", 0), took, number("pace"), row["machine"])


def row_of(point: Point) -> dict[str, Any]:
    """Return a point as a row of the CSV."""
    more = {"round": point.round, "overhead_s": point.overhead_s, "pace": point.pace}
    return asdict(point.case) | asdict(point.measured) | more | {"machine": point.machine}


class Book:
    """The points so far, in a file where there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.points: list[Point] = []
        if path is not None and path.exists():
            try:
                self.points = from_csv(path.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                refuse(f"{path} is no text; name another file with --csv")
            except OSError as error:
                refuse(f"{path} cannot be read ({error.strerror}); name another file with --csv")
            except ValueError as error:
                refuse(f"{path}, {error}; mend that, or name another file with --csv")

    def has(self, case: Case, number: int, asked_s: float | None = None) -> bool:
        """Return whether a round is there.

        Args:
            case: the experiment.
            number: of the round.
            asked_s: what a visit sleeps; None where it does not.
        """
        found = False
        for point in self.points:
            own, took_s = point.case, point.measured.visit_s
            if (own.part, own.kind, own.ranks) != (case.part, case.kind, case.ranks):
                continue
            if own != case:
                refuse(
                    f"{self.path} has {own}, and asked for is {case}; name a new file, or ask for "
                    "the same --ranks, --cores and sizes"
                )
            # A sleep is never shorter than asked for, and hardly longer.
            if asked_s is not None and not (
                LEAST_SLEPT * asked_s <= took_s <= MOST_SLEPT * asked_s + SLEPT_BESIDES_S
            ):
                refuse(
                    f"{self.path}, {own.part} scaling on {own.ranks} ranks: visits slept "
                    f"{took_s:.3g} s, and asked for are {asked_s:.3g} s; name a new file, or ask "
                    "for the same --sleep"
                )
            found |= point.round == number
        return found

    def add(self, point: Point) -> None:
        """Keep a point."""
        self.points.append(point)
        self.write([row_of(one) for one in self.points])

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the file whole."""
        if self.path is not None:
            draft = self.path.with_name(self.path.name + ".part")
            draft.write_text(to_csv(rows))
            os.replace(draft, self.path)
