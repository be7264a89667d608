"""What the pictures of benchmarks share: their style, and how they are written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import refuse

FORMATS = (".png", ".svg")
INK, GREY = "#1f2328", "#6e7781"


def check_picture(option: str, file: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured for it."""
    if file.suffix not in FORMATS:
        refuse(f"{option} {file}: allowed are files with {' and '.join(FORMATS)}")
    if any(find_spec(name) is None for name in ("altair", "vl_convert")):
        refuse(f"{option} needs mophpc's extra 'plots', as in pip install 'mophpc[plots]'")


def styled(chart: Any, legend: str) -> dict[str, Any]:
    """Return the Vega-Lite spec of a chart.

    Args:
        chart: one of altair's.
        legend: where its legend is, as in `bottom`.
    """
    whole = (
        chart.properties(padding=16, background="white")
        .configure(font="Liberation Sans, Arial, Helvetica, sans-serif")
        .configure_title(anchor="start", fontSize=14, color=INK, subtitleColor=GREY)
        .configure_view(stroke=None)
        .configure_axis(labelColor=GREY, titleColor=GREY, titleFontWeight="normal")
        .configure_axisX(grid=False)
        .configure_legend(title=None, labelColor=INK, orient=legend)
    )
    spec: dict[str, Any] = whole.to_dict()
    return spec


def save(spec: dict[str, Any], path: Path) -> None:
    """Write a Vega-Lite spec as a picture, a .png or .svg file."""
    import vl_convert

    if path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(spec, scale=2, allowed_base_urls=[]))
    else:
        path.write_text(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
