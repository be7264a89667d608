"""The picture of `compare.py`: makespans over MOP's, and accuracy over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compare_tables import MOP, Outcome, after_seconds, by_system, ratios
from pictures import INK, save, styled

_COLORS = {
    "mop": "#0969da",
    "celery": "#1a7f37",
    "ray": "#bc4c00",
    "dask": "#9a6700",
    "ddp": "#cf222e",
    "averaging": "#8250df",
    "server": "#57606a",
}
_POINTS = 80
"""Moments at which accuracy is looked at."""


def draw(panels: Sequence[tuple[str, Sequence[Outcome], float]], path: Path) -> None:
    """Write the picture: a row per comparison.

    Args:
        panels: of each comparison its title, its outcomes, and the accuracy of always answering
            with the most frequent class.
        path: a .png or .svg file.
    """
    save(chart_spec(panels), path)


def chart_spec(panels: Sequence[tuple[str, Sequence[Outcome], float]]) -> dict[str, Any]:
    """Return the Vega-Lite spec."""
    import altair as alt

    rows = [alt.hconcat(_bars(*panel), _lines(*panel)) for panel in panels]
    return styled(alt.vconcat(*rows), "right")


def _bars(title: str, outcomes: Sequence[Outcome], _: float) -> Any:
    import altair as alt

    good = by_system(outcomes)
    rows = []
    for system, own in good.items():
        if found := ratios(own, good.get(MOP, []), "makespan_s"):
            middle, low, high = statistics.median(found), min(found), max(found)
            rows.append(
                {
                    "system": system,
                    "ratio": middle,
                    "low": low,
                    "high": high,
                    "text": f"{middle:.2f}",
                }
            )
    y = alt.Y("system:N", sort=list(_COLORS), title=None)
    color = alt.Color("system:N", scale=_scale(), legend=None)
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    x = alt.X("ratio:Q", title="makespan / MOP's")
    bars = base.mark_bar(height=16).encode(x=x, color=color)
    spans = base.mark_rule(color=INK).encode(x=alt.X("low:Q"), x2="high:Q")
    text = base.mark_text(align="left", dx=6, color=INK).encode(x=alt.X("high:Q"), text="text:N")
    return alt.layer(bars, spans, text).properties(
        width=330, height=220, title=alt.TitleParams(title, subtitle="median, lowest and highest")
    )


def _lines(_: str, outcomes: Sequence[Outcome], chance: float) -> Any:
    import altair as alt

    good = by_system(outcomes)
    first = {system: own[0] for system, own in good.items()}
    end_s = max((o.makespan_s for o in first.values()), default=1.0)
    rows = []
    for system, own in first.items():
        count = 1 + max(record["config"] for record in own.records)
        for step in range(_POINTS + 1):
            at_s = end_s * step / _POINTS
            _, mean = after_seconds(own, at_s, count, chance)
            rows.append({"system": system, "seconds": at_s, "accuracy": mean})
    line = alt.Chart(alt.Data(values=rows)).mark_line(interpolate="step-after", strokeWidth=1.6)
    return line.encode(
        x=alt.X("seconds:Q", title="seconds"),
        y=alt.Y("accuracy:Q", title="mean accuracy", scale=alt.Scale(zero=False)),
        color=alt.Color("system:N", scale=_scale()),
    ).properties(
        width=330,
        height=220,
        title=alt.TitleParams("mean accuracy of all configs", subtitle="the first round"),
    )


def _scale() -> Any:
    import altair as alt

    return alt.Scale(domain=list(_COLORS), range=[*_COLORS.values()])
