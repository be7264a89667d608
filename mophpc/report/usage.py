"""What the ranks of a run spent their time on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from mophpc.events import PARTS

_SHOWN = 16


def usage_table(ranks: Sequence[Mapping[str, float]]) -> Table:
    """Return a row per rank, with each part's share of that rank's time, and one for all of them.

    Args:
        ranks: seconds of `PARTS`, by rank. Of more than 16 ranks the middle ones are left out.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("rank", justify="right", no_wrap=True)
    for part in PARTS:
        table.add_column(part.removesuffix("_s").replace("_", " "), justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    numbers = list(range(len(ranks)))
    if len(ranks) > _SHOWN:
        numbers = [*numbers[: _SHOWN // 2], *numbers[-_SHOWN // 2 :]]
    for place, rank in enumerate(numbers):
        if place and rank != numbers[place - 1] + 1:
            table.add_row("...")
        table.add_row(str(rank), *_shares(ranks[rank]))
    if len(ranks) > 1:
        total = {part: sum(rank[part] for rank in ranks) for part in PARTS}
        table.add_row("all", *_shares(total))
    return table


def _shares(spent: Mapping[str, float]) -> list[str]:
    whole = sum(spent[part] for part in PARTS)
    shares = [f"{spent[part] / whole if whole else 0.0:.1%}" for part in PARTS]
    return [*shares, f"{whole:.4g}"]
