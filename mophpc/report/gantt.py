"""A schedule as a Gantt picture: PNG, SVG, or an HTML page to zoom in; one Vega-Lite spec for all.

Altair builds the spec and vl-convert draws it; both are imported where they are used, since the
extra `plots` is optional. The same plan gives the same bytes: every name in the spec is fixed.
"""

from __future__ import annotations

import json
import math
import re
from html import escape
from typing import TYPE_CHECKING, Any

from mophpc.errors import PictureError
from mophpc.files import write_whole
from mophpc.report.gantt_rows import (
    Drawing,
    bar_records,
    epoch_records,
    facts,
    heading,
    hop_records,
    make_drawing,
    plain_text,
    tone,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import altair as alt

    from mophpc.schedule.plan import Plan

    Record = dict[str, Any]

FORMATS = (".png", ".svg", ".html")

_MOST_IN_LEGEND = 32
_DIGIT = 6.2  # width of a digit of a bar's label
_MOST_PIXELS = 3_000_000  # pictures up to here have two pixels a point
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
_INK, _GREY, _TRACK = "#1f2328", "#6e7781", "#f3f5f7"


def draw_gantt(
    plan: Plan,
    path: Path,
    *,
    names: Sequence[str] | None = None,
    times: Mapping[tuple[int, int], tuple[float, float]] | None = None,
    title: str = "",
    unit: str = "s",
) -> None:
    """Write the schedule as a picture whose kind follows from the suffix of `path`.

    Args:
        plan: the plan with its predicted times, as `predict` returns it.
        path: a file that ends in .png, .svg or .html; the page needs no network.
        names: names of the configs.
        times: real start and end by (config_id, step); visits without, or with times that are not
            finite or run backwards, are left out. Predicted times are drawn where this is None.
        title: a line above the picture.
        unit: what a second stands for, written under the time axis.

    Raises:
        PictureError: the suffix is another, Altair or vl-convert is missing, or the file cannot be
            written.
        ValueError: there is not one name per config.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise PictureError(
            f"the picture '{path}' ends in '{path.suffix}'; allowed: {', '.join(FORMATS)}"
        )
    try:
        import vl_convert

        spec = gantt_spec(plan, names=names, times=times, title=title, unit=unit)
    except ImportError as error:
        raise PictureError(
            f"the picture '{path}' needs {error.name}, which is not installed; "
            'pip install "mophpc[plots]"'
        ) from None
    data: bytes | str
    if suffix == ".png":
        small = spec["width"] * spec["height"] <= _MOST_PIXELS
        data = vl_convert.vegalite_to_png(spec, scale=2 if small else 1, allowed_base_urls=[])
    elif suffix == ".svg":
        data = _renumber(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
    else:
        data = _page(
            spec, title or "schedule", vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;")
        )
    try:
        write_whole(path, data)
    except OSError as error:
        raise PictureError(
            f"cannot write the picture '{path}': {error.strerror}; name a file in a folder that "
            "exists and may be written"
        ) from None


def gantt_spec(
    plan: Plan,
    *,
    names: Sequence[str] | None = None,
    times: Mapping[tuple[int, int], tuple[float, float]] | None = None,
    title: str = "",
    unit: str = "s",
) -> dict[str, Any]:
    """Return the Vega-Lite spec of the picture, with its data; arguments as for `draw_gantt`.

    Raises:
        ImportError: Altair is not installed.
        ValueError: there is not one name per config.
    """
    import altair as alt

    drawing = make_drawing(plan, names, times, unit)
    hops = hop_records(drawing)
    chart = (
        alt.layer(*_tracks(drawing), *_hop_lines(len(hops)), *_bars(drawing), *_epoch_lines())
        .properties(
            width=drawing.width,
            height=round(drawing.row * plan.num_ranks),
            title=alt.TitleParams(
                plain_text(title) or heading(drawing), subtitle=facts(drawing, len(hops))
            ),
            padding=16,
            background="white",
        )
        .configure(font=_FONT, aria=False)
        .configure_title(
            anchor="start", fontSize=16, fontWeight=600, color=_INK, subtitleColor=_GREY,
            subtitleFontSize=12, subtitlePadding=6, offset=20,
        )
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=_GREY, titleColor=_GREY, domainColor="#d0d7de", tickColor="#d0d7de",
            titleFontWeight="normal", labelFontSize=11, titleFontSize=12, grid=False,
        )
        .configure_legend(labelColor=_INK, labelFontSize=11, symbolStrokeWidth=0)
    )  # fmt: skip
    spec: dict[str, Any] = chart.to_dict()
    # Put in by name here: as Altair's own data they would be hashed and limited to 5000 rows.
    spec["datasets"] = {
        "visits": bar_records(drawing),
        "hops": hops,
        "ends": epoch_records(drawing),
        "ranks": [{"rank": rank} for rank in range(plan.num_ranks)],
    }
    return spec


def _tracks(drawing: Drawing) -> list[alt.Chart]:
    """A pale track per rank, on which idle time shows, with the axis of ranks."""
    import altair as alt

    num_ranks, half = drawing.plan.num_ranks, drawing.half_bar
    sizes = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    every = next(size for size in sizes if size * drawing.row >= 14)
    axis = alt.Axis(
        values=list(range(0, num_ranks, every)),
        labelExpr="'rank ' + format(datum.value, 'd')",
        domain=False,
        ticks=False,
        labelPadding=8,
        labelOverlap=False,
        title=None,
    )
    scale = alt.Scale(domain=[num_ranks - 0.5, -0.5], nice=False, zero=False)
    chart = alt.Chart(alt.NamedData("ranks"), name="tracks")
    top, bottom = f"datum.rank - {half}", f"datum.rank + {half}"
    return [
        chart.transform_calculate(top=top, bottom=bottom)
        .mark_rect(fill=_TRACK, tooltip=False)
        .encode(
            x=alt.value(0),
            x2=alt.value("width"),
            y=alt.Y("top:Q", scale=scale, axis=axis),
            y2="bottom:Q",
        )
    ]


def _bars(drawing: Drawing) -> list[alt.Chart]:
    """The visits, and their config ids where these fit."""
    import altair as alt

    low, high = drawing.domain
    unit, half = drawing.unit, drawing.half_bar
    axis = alt.Axis(title=f"time [{unit}]", tickCount=10, labelFlush=False)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    start = alt.X("start:Q", scale=scale, axis=axis)
    follow = alt.selection_point(
        name="follow", fields=["config"], on="click", clear="dblclick", toggle=False
    )
    zoom = alt.selection_interval(name="zoom", bind="scales", encodings=["x"])
    visits = alt.NamedData("visits")
    edge = min(0.6, drawing.row / 12)
    bars = (
        alt.Chart(visits, name="bars")
        .transform_calculate(top=f"datum.rank - {half}", bottom=f"datum.rank + {half}")
        # The outline keeps equal neighbours apart, and shows a visit that took no time.
        .mark_rect(strokeWidth=edge, strokeOpacity=0.45, stroke=_INK, clip=True)
        .encode(
            x=start,
            x2="end:Q",
            y="top:Q",
            y2="bottom:Q",
            fill=_colors(drawing),
            opacity=alt.condition(follow, alt.value(1.0), alt.value(0.15)),
            tooltip=[
                alt.Tooltip("name:N", title="config"),
                *(alt.Tooltip(f"{field}:Q") for field in ("epoch", "shard", "rank")),
                alt.Tooltip("start:Q", title=f"start [{unit}]", format=",.6~g"),
                alt.Tooltip("end:Q", title=f"end [{unit}]", format=",.6~g"),
            ],
        )
        .add_params(follow, zoom)
    )
    pixels = drawing.row * 2 * half
    if pixels < 9:
        return [bars]
    fits = (
        "scale('x', datum.end) - scale('x', datum.start) "
        f"> {_DIGIT} * length(toString(datum.config)) + 3"
    )
    ids = (
        alt.Chart(visits, name="ids")
        .transform_calculate(middle="(datum.start + datum.end) / 2")
        .mark_text(clip=True, fontSize=min(11.0, pixels - 2), color=_INK, tooltip=False)
        .encode(
            x=alt.X("middle:Q", scale=scale, axis=axis),
            y="rank:Q",
            text=alt.condition(fits, alt.Text("config:Q", format="d"), alt.value("")),
            opacity=alt.condition(follow, alt.value(1.0), alt.value(0.15)),
        )
    )
    return [bars, ids]


def _hop_lines(num_hops: int) -> list[alt.Chart]:
    """The hops, under the bars, so that they are seen between the rows."""
    import altair as alt

    follow = alt.selection_point(name="follow")  # the one that the bars define
    quiet = 0.7 if num_hops < 1000 else 0.4
    return [
        alt.Chart(alt.NamedData("hops"), name="hops")
        .mark_rule(clip=True, tooltip=False)
        .encode(
            x="start:Q",
            x2="end:Q",
            y="source:Q",
            y2="dest:Q",
            color=alt.condition(follow, alt.value(_INK), alt.value("#8c959f"), empty=False),
            strokeWidth=alt.condition(follow, alt.value(1.8), alt.value(quiet), empty=False),
        )
    ]


def _epoch_lines() -> list[alt.Chart]:
    """Dotted lines at the ends of epochs, with words above."""
    import altair as alt

    chart = alt.Chart(alt.NamedData("ends"), name="ends")
    lines = chart.mark_rule(
        strokeDash=[2, 3], color=_INK, opacity=0.55, clip=True, tooltip=False
    ).encode(x="end:Q")
    inside = "inrange(scale('x', datum.end), [0, width + 1])"
    words = (
        chart.properties(name="epochs")
        .mark_text(align="right", dy=-7, fontSize=10, color=_GREY, clip=False, tooltip=False)
        .encode(
            x="end:Q",
            y=alt.value(0),
            text=alt.condition(inside, alt.Text("label:N"), alt.value("")),
        )
    )
    return [lines, words]


def _colors(drawing: Drawing) -> alt.Fill:
    import altair as alt

    configs = drawing.configs
    keys = [(config_id, odd) for config_id in configs for odd in (0, 1)]
    shown = drawing.named and len(configs) <= _MOST_IN_LEGEND
    entries = [tone(drawing, config_id, 0) for config_id in configs]
    widest = min(max(map(len, entries), default=0), 60) * 5.6 + 40
    legend = alt.Legend(
        values=entries,
        orient="bottom",
        columns=max(1, int(drawing.width // widest)),
        labelLimit=340,
        symbolType="square",
        title=None,
    )
    scale = alt.Scale(
        domain=[tone(drawing, *key) for key in keys], range=[_color(*key) for key in keys]
    )
    return alt.Fill("tone:N", scale=scale, legend=legend if shown else None)


def _color(config_id: int, odd: int) -> str:
    """Return a config's colour: neighbours a golden angle apart, odd epochs darker.

    In OKLCH, where equal lightness looks equally light, so that a dark label reads on all.
    """
    lightness = (0.84, 0.76, 0.80)[config_id % 3] - 0.08 * odd
    hue = 2 * math.pi * ((0.69 + config_id * 0.381966) % 1.0)
    return _hex(lightness, 0.105 * math.cos(hue), 0.105 * math.sin(hue))


def _hex(lightness: float, a: float, b: float) -> str:
    """Return an OKLab colour as #rrggbb (matrices: Ottosson, "A perceptual color space", 2020)."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _gamma(part)):02x}" for part in linear)


def _gamma(part: float) -> float:
    part = min(max(part, 0.0), 1.0)
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055


def _renumber(svg: str) -> str:
    """Return the SVG with clip paths numbered from 0; Vega numbers on through a whole process."""
    numbers: dict[str, int] = {}

    def renumbered(match: re.Match[str]) -> str:
        return f"{match[1]}clip{numbers.setdefault(match[2], len(numbers))}"

    return re.sub(r'(<clipPath id="|clip-path="url\(#)clip(\d+)', renumbered, svg) + "\n"


def _page(spec: Record, title: str, script: str) -> str:
    """Return a page that holds all it needs; its policy forbids the browser to load anything."""
    # vl-convert's own page lets a name that holds </script> end the script; this one does not.
    text = json.dumps(spec, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    policy = (
        "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'unsafe-inline'; img-src data: blob:"
    )
    actions = {"export": True, "source": False, "compiled": False, "editor": False}
    options = json.dumps({"renderer": "canvas", "actions": actions})
    hint = (
        "Scroll to zoom in time, drag to move, click a visit to follow its config, "
        "double-click for all again."
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{escape(plain_text(title))}</title>",
            f"<style>body{{margin:0;background:#fff;color:{_GREY};font:13px {_FONT}}}"
            "p{margin:4px 16px}</style>",
            f"<script>{script}</script>",
            "</head>",
            "<body>",
            '<div id="gantt"></div>',
            f"<p>{hint}</p>",
            f"<script>vegaEmbed('#gantt', {text}, {options}).catch(console.error);</script>",
            "</body>",
            "</html>",
            "",
        ]
    )
