"""The picture of `scaling.py`: how much faster than one rank, and the ideal line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pictures import GREY, save, styled

_COLORS = {"training": "#1a7f37", "sleeping": "#0969da", "simulated": "#bc4c00"}


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of rows with `part`, `kind`, `ranks` and `speedup`.

    Args:
        rows: a row per measured or simulated point.
        path: a .png or .svg file.
    """
    save(chart_spec(rows), path)


def chart_spec(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the Vega-Lite spec: a panel per part."""
    import altair as alt

    parts = [part for part in ("strong", "weak") if any(row["part"] == part for row in rows)]
    panels = [_panel([row for row in rows if row["part"] == part], part) for part in parts]
    return styled(alt.hconcat(*panels), "bottom")


def _panel(rows: Sequence[Mapping[str, Any]], part: str) -> Any:
    import altair as alt

    ranks = sorted({row["ranks"] for row in rows})
    low = min([*ranks, *(row["speedup"] for row in rows)])
    domain = [low / 1.2, max(ranks) * 1.2]
    ticks = [2**power for power in range(20) if domain[0] <= 2**power <= domain[1]]
    scale = alt.Scale(type="log", base=2, domain=domain, nice=False)
    x_axis = alt.Axis(values=ticks, title="ranks", format="d")
    y_axis = alt.Axis(values=ticks, title="work per second, over one rank's", format="d")
    x = alt.X("ranks:Q", scale=scale, axis=x_axis)
    y = alt.Y("speedup:Q", scale=scale, axis=y_axis)
    color = alt.Color("kind:N", scale=alt.Scale(domain=list(_COLORS), range=[*_COLORS.values()]))
    ends = alt.Data(values=[{"ranks": rank, "speedup": rank} for rank in (ranks[0], ranks[-1])])
    ideal = alt.Chart(ends).mark_line(strokeDash=[4, 3], color=GREY, strokeWidth=1)
    own = [dict(row) for row in rows]
    told = alt.Data(values=[row for row in own if row["kind"] == "simulated"])
    real = alt.Data(values=[row for row in own if row["kind"] != "simulated"])
    line = alt.Chart(told).mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=18))
    points = alt.Chart(real).mark_point(filled=True, size=70, opacity=0.85)
    subtitles = {
        "strong": "the same configs and data on more ranks",
        "weak": "configs and data grow with the ranks",
    }
    drawn = [layer.encode(x=x, y=y, color=color) for layer in (line, points)]
    return alt.layer(ideal.encode(x=x, y=y), *drawn).properties(
        width=330,
        height=330,
        title=alt.TitleParams(f"{part} scaling", subtitle=f"{subtitles[part]}; dashed: ideal"),
    )
