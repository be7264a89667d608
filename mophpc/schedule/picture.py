"""A schedule as a picture: ranks by time, a colour per config, hops as thin lines."""

from __future__ import annotations

import colorsys
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mophpc.schedule.plan import Visit
    from mophpc.schedule.simulate import Prediction

_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 14, 14, 34
_BAR, _GAP = 30, 24  # height of a rank's bars, and of the space in which hops are seen

# Mid-tone bars with dark labels read on white and on black; only lines and captions change.
_STYLE = """<style>
text{font:12px system-ui,sans-serif;fill:#57606a}
.bar text{font-size:11px;fill:#16191d;text-anchor:middle}
.hop{stroke:#8c959f;stroke-width:.7;fill:none}
.axis{stroke:#8c959f;stroke-width:1}
.tick{text-anchor:middle}
@media(prefers-color-scheme:dark){text{fill:#b6bec8}.hop,.axis{stroke:#7d8590}}
</style>"""


def draw_svg(
    prediction: Prediction,
    names: Sequence[str] | None = None,
    *,
    unit: str = "s",
    highlight: int | None = 0,
    width: int = 960,
) -> str:
    """Return the schedule as one self-contained SVG, readable on light and dark pages.

    Args:
        prediction: the plan with its times.
        names: names of the configs, shown when the pointer rests on a visit.
        unit: what a predicted second stands for, written beside the time axis.
        highlight: a config whose route is drawn bold; None for none.
        width: pixels; the height follows from the number of ranks.
    """
    plan = prediction.plan
    scale = (width - _LEFT - _RIGHT) / (prediction.makespan_s or 1.0)
    bottom = _TOP + plan.num_ranks * (_BAR + _GAP) - _GAP
    order = sorted(plan.visits(), key=lambda visit: (visit.config_id, visit.step))
    moves = [
        (one, two)
        for one, two in pairwise(order)
        if one.config_id == two.config_id and one.rank != two.rank
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + _BOTTOM}" '
        f'width="{width}" height="{bottom + _BOTTOM}" role="img">',
        f"<title>{plan.num_configs} configs hop over {plan.num_ranks} ranks</title>",
        _STYLE,
        *(_hop(one, two, scale) for one, two in moves if one.config_id != highlight),
    ]
    parts += [
        f'<text x="8" y="{_row(rank) + _BAR / 2 + 4:g}">rank {rank}</text>'
        for rank in range(plan.num_ranks)
    ]
    for visit in plan.visits():
        name = names[visit.config_id] if names is not None else str(visit.config_id)
        parts.append(_bar(visit, name, scale, bold=visit.config_id == highlight))
    parts += [_hop(one, two, scale, bold=True) for one, two in moves if one.config_id == highlight]
    parts += [*_axis(prediction.makespan_s, scale, bottom + 8, unit), "</svg>"]
    return "\n".join(parts) + "\n"


def _row(rank: int) -> int:
    return _TOP + rank * (_BAR + _GAP)


def _color(config_id: int, epoch: int) -> str:
    """Return a colour per config; turning by the golden angle keeps neighbours apart."""
    lightness = 0.70 if epoch % 2 == 0 else 0.62
    rgb = colorsys.hls_to_rgb((0.58 + config_id * 0.381966) % 1.0, lightness, 0.62)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _bar(visit: Visit, name: str, scale: float, *, bold: bool) -> str:
    x, y = _LEFT + visit.predicted_start_s * scale, _row(visit.rank)
    wide = (visit.predicted_end_s - visit.predicted_start_s) * scale
    edge = ' stroke="#d1242f" stroke-width="2"' if bold else ""
    tip = f"config {name}, epoch {visit.epoch}, shard {visit.shard}, rank {visit.rank}"
    # A label needs about 8 pixels a digit.
    text = str(visit.config_id) if wide >= 8 * len(str(visit.config_id)) else ""
    return (
        f'<g class="bar"><title>{escape(tip)}</title><rect x="{x + 0.5:.2f}" y="{y}" '
        f'width="{max(wide - 1, 0.3):.2f}" height="{_BAR}" rx="2" '
        f'fill="{_color(visit.config_id, visit.epoch)}"{edge}/>'
        f'<text x="{x + wide / 2:.2f}" y="{y + _BAR / 2 + 4:g}">{text}</text></g>'
    )


def _hop(one: Visit, two: Visit, scale: float, *, bold: bool = False) -> str:
    down = two.rank > one.rank
    x1, x2 = _LEFT + one.predicted_end_s * scale, _LEFT + two.predicted_start_s * scale
    y1, y2 = _row(one.rank) + _BAR * down, _row(two.rank) + _BAR * (not down)
    line = f'<line class="hop" x1="{x1:.2f}" y1="{y1}" x2="{x2:.2f}" y2="{y2}"'
    return f'{line} style="stroke:#d1242f;stroke-width:2"/>' if bold else f"{line}/>"


def _axis(makespan_s: float, scale: float, y: int, unit: str) -> list[str]:
    sizes = (digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5))
    step = next((size for size in sizes if makespan_s / size <= 12), makespan_s) or 1.0
    end = _LEFT + makespan_s * scale
    parts = [f'<line class="axis" x1="{_LEFT}" y1="{y}" x2="{end:.2f}" y2="{y}"/>']
    parts.append(f'<text x="8" y="{y + 18}">{escape(unit)}</text>')
    # A hair more than the makespan, so that rounding does not lose the last tick.
    for index in range(int(makespan_s / step + 1e-9) + 1):
        x = _LEFT + index * step * scale
        parts.append(f'<text class="tick" x="{x:.2f}" y="{y + 18}">{index * step:g}</text>')
    return parts
