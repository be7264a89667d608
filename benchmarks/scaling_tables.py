"""What `scaling.py` makes of its points: predictions beside them, tables, the fit and targets."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import Targets
from scaling_plot import draw
from scaling_points import (
    SIMULATED,
    SLEEPING,
    STRONG,
    TRAINING,
    WEAK,
    Case,
    Point,
    Reference,
    fit,
    row_of,
    simulated_s,
)

MOST_OVERHEAD_S, MOST_ERROR = 0.01, 0.05

Row = dict[str, Any]


def summarize(points: Sequence[Point], further: Sequence[int]) -> list[Row]:
    """Return a row per point, with the simulator's prediction, and rows that are only predicted."""
    rows: list[Row] = []
    for part in (STRONG, WEAK):
        own = [point for point in points if point.case.part == part]
        for kind in (TRAINING, SLEEPING):
            mine = sorted(
                (p for p in own if p.case.kind == kind), key=lambda p: (p.case.ranks, p.round)
            )
            if mine:
                rows += _of_kind(mine)
        if own:
            rows += _beyond(own, further)
    return rows


def _of_kind(points: Sequence[Point]) -> list[Row]:
    """Return a row per point, each predicted from what its own round has on the fewest ranks.

    Rounds may come from machines of different speeds. Where a round lacks that point, all rounds'
    medians stand for it.
    """
    rounds: dict[int, list[Point]] = defaultdict(list)
    for point in points:
        rounds[point.round].append(point)
    least = min(point.case.ranks for point in points)
    found: dict[tuple[int, Case], Row] = {}
    for number, mine in rounds.items():
        whole = any(point.case.ranks == least for point in mine)
        known = Reference.of(mine if whole else points)
        for point in mine:
            slowdown = known.slowdown(mine, point.case.ranks)
            told_s = simulated_s(point.case, known, slowdown)
            found[number, point.case] = {
                "work_s": known.work_s(point.case),
                "slowdown": slowdown,
                "predicted_s": told_s,
                "error": told_s / point.measured.makespan_s - 1,
            }
    return [row_of(point) | found[point.round, point.case] for point in points]


def _beyond(points: Sequence[Point], further: Sequence[int]) -> list[Row]:
    """Return what the simulator says of more ranks, and of those that were measured."""
    largest = max(points, key=lambda point: (point.case.ranks, point.case.kind)).case
    own = [point for point in points if point.case.kind == largest.kind]
    known, rows = Reference.of(own), []
    most = largest.ranks
    for ranks in sorted({point.case.ranks for point in own} | {n for n in further if n > most}):
        times = ranks / most
        case = replace(largest, kind=SIMULATED, ranks=ranks)
        if largest.part == WEAK:
            case = replace(
                case, configs=round(largest.configs * times), rows=round(largest.rows * times)
            )
        span_s = simulated_s(case, known, known.slowdown(own, ranks))
        more = {"work_s": known.work_s(case), "predicted_s": span_s}
        rows.append(asdict(case) | more)
    return rows


def report(rows: Sequence[Row], plot: Path | None) -> bool:
    """Print tables, fit and targets, and draw; return whether a target was missed."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["part"], row["kind"], row["ranks"]), []).append(row)
    for machine in sorted({row["machine"] for row in rows if row.get("machine")}):
        print(f"- {machine}")
    print(
        "\nMedians over the rounds of a point; what the simulator says is of the same round.\n"
        "\n| part | kind | ranks | configs | rounds | makespan s | plain loops, slower by "
        "| simulator s | off by | work per second, over one rank's | overhead per visit ms |"
        "\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    points = [_point(*key, own) for key, own in groups.items()]
    for point in points:
        print(_line(point), flush=True)
    print()
    for kind in (TRAINING, SLEEPING):
        own = [row for row in rows if row["kind"] == kind]
        work = [row["work_s"] * row["slowdown"] for row in own]  # what the machine loses is told
        found = fit([_case(row) for row in own], work, [row["makespan_s"] for row in own])
        told = "too few points for a fit" if found is None else str(found)
        print(f"- {kind}: makespan = computing x work / ranks + visits + serial x work: {told}")
    if plot is not None:
        kept = ("part", "kind", "ranks", "speedup")
        draw([{name: point[name] for name in kept} for point in points], plot)
    return judge(points)


def _case(row: Row) -> Case:
    names = ("part", "kind", "ranks", "configs", "epochs", "rows")
    return Case(*(row[name] for name in names))


def _point(part: str, kind: str, ranks: int, own: Sequence[Row]) -> Row:
    """Return the medians of a point's rounds; what is compared is compared within its round."""

    def middle(values: Iterable[float]) -> float:
        return statistics.median(values)

    is_real = kind != SIMULATED
    spans = [row["makespan_s" if is_real else "predicted_s"] for row in own]
    pairs = list(zip(own, spans, strict=True))
    return {
        "part": part,
        "kind": kind,
        "ranks": ranks,
        "case": _case(own[0]),
        "rounds": len(own) if is_real else None,
        "span_s": middle(spans),
        "told_s": middle(row["predicted_s"] for row in own),
        "error": middle(row["error"] for row in own) if is_real else None,
        "slowdown": middle(row["slowdown"] for row in own) if kind == TRAINING else None,
        "overhead_s": middle(row["overhead_s"] for row in own) if is_real else None,
        "visit_s": middle(row["visit_s"] for row in own) if is_real else None,
        "speedup": middle(row["work_s"] / span for row, span in pairs),
    }


def _line(point: Row) -> str:
    case, is_real = point["case"], point["kind"] != SIMULATED
    span = f"{point['span_s']:.2f}" if is_real else "-"
    error = f"{point['error']:+.1%}" if is_real else "-"
    overhead = f"{1000 * point['overhead_s']:.2f}" if is_real else "-"
    slower = "-" if point["slowdown"] is None else f"{point['slowdown'] - 1:.1%}"
    return (
        f"| {case.part} | {case.kind} | {case.ranks} | {case.configs} | {point['rounds'] or '-'} "
        f"| {span} | {slower} | {point['told_s']:.2f} | {error} | {point['speedup']:.2f} "
        f"| {overhead} |"
    )


def judge(points: Sequence[Row]) -> bool:
    """Print the targets; return whether one was missed."""
    targets = Targets()
    print("\n| what | target | measured | met |\n|---|---|---|---|")
    sleeping = [point for point in points if point["kind"] == SLEEPING]
    most = max((point["ranks"] for point in sleeping), default=0)
    for point in sleeping:
        if point["ranks"] == most:
            targets.row(
                f"{point['part']}, {most} sleeping ranks: overhead per visit",
                f"{1000 * MOST_OVERHEAD_S:.0f} ms",
                f"{1000 * point['overhead_s']:.2f} ms",
                met=point["overhead_s"] <= MOST_OVERHEAD_S,
            )
            first = next(p for p in sleeping if p["part"] == point["part"])
            longer = point["visit_s"] - first["visit_s"] * _shard(point) / _shard(first)
            targets.row(
                f"the same, and by how much visits are longer than on {first['ranks']} ranks",
                "-",
                f"{1000 * (point['overhead_s'] + longer):.2f} ms",
                met=None,
            )
    least: dict[tuple[str, str], int] = {}
    for point in points:
        if point["error"] is not None:
            # On the fewest ranks it only repeats what it was told.
            told = least.setdefault((point["part"], point["kind"]), point["ranks"])
            more = ", which it was told" if point["ranks"] == told else ""
            targets.row(
                f"{point['part']}, {point['kind']}, {point['ranks']} ranks: simulator / measured",
                f"{MOST_ERROR:.0%} either way{more}",
                f"{point['error']:+.1%}",
                met=abs(point["error"]) <= MOST_ERROR,
            )
    return targets.missed


def _shard(point: Row) -> float:
    """Return the rows of a shard, which a visit sleeps in proportion to."""
    return float(point["case"].rows / point["ranks"])
