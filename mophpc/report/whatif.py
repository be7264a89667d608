"""What schedules did in simulated realities: progress, and a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mophpc.schedule.whatif import Outcome, Row


def follow(outcomes: Iterable[Outcome], total: int) -> list[Outcome]:
    """Return all outcomes; a bar on standard error follows them where a person reads."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return list(
        track(
            outcomes,
            "realities",
            total,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    )


def print_rows(rows: Sequence[Row], unit: str) -> None:
    """Print a row per schedule; the best mean is bold.

    Args:
        rows: the rows.
        unit: what a second of a makespan stands for.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("schedule", no_wrap=True)
    # Without the backslash rich reads [s] as a style.
    for name in ("mean", "worst", "renewals", f"makespan \\[{unit}]"):
        table.add_column(name, justify="right", no_wrap=True)
    best = min(row.mean for row in rows)
    for row in rows:
        renewals = f"{row.renewals:.1f}" if row.renewals else "-"
        ratios = (f"{row.mean:.3f}", f"{row.worst:.3f}")
        cells = (row.schedule, *ratios, renewals, f"{row.makespan:,.6g}")
        table.add_row(*cells, style="bold green" if row.mean == best else None)
    Console(width=100, soft_wrap=True).print(table)
