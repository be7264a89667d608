"""`mophpc report`: a run folder becomes `report.html` and `trace.json`."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mophpc.errors import RunFolderError, UserError
from mophpc.files import write_whole
from mophpc.report.expense import Prices
from mophpc.report.page import make_page
from mophpc.report.page_data import page_data
from mophpc.report.run_data import read_run
from mophpc.report.timeline import make_timeline
from mophpc.report.trace import trace_text

PAGE, TRACE = "report.html", "trace.json"


@dataclass(frozen=True, slots=True)
class Made:
    """What `make_report` wrote."""

    page: Path
    trace: Path
    problems: list[str]

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "page": str(self.page),
            "page_bytes": self.page.stat().st_size,
            "trace": str(self.trace),
            "trace_bytes": self.trace.stat().st_size,
            "problems": self.problems,
        }

    def text(self) -> str:
        """Return it for people."""
        lines = [f"note: {problem}" for problem in self.problems]
        lines.append(f"{self.page}: {_size(self.page)}, opens in any browser, without a network")
        lines.append(f"{self.trace}: {_size(self.trace)}, for https://ui.perfetto.dev")
        return "\n".join(lines)


def make_report(run: Path, out: Path | None = None, prices: Prices | None = None) -> Made:
    """Write the page of a run, and beside it the trace.

    Args:
        run: the run folder.
        out: the page's file; `report.html` in the run folder by default.
        prices: what the user says of a rank's money and power.

    Raises:
        RunFolderError: there is no run, or the files cannot be written.
        UserError: a price or a power is no number from 0.
    """
    prices = prices or Prices()
    _check(prices)
    page = run / PAGE if out is None else out
    if page.is_dir():
        raise UserError(f"--out '{page}' is a folder; give a file, as in {page / PAGE}")
    trace = page.with_name(TRACE if out is None else f"{page.stem}.{TRACE}")
    with _no_collection():
        found = read_run(run)
        text = make_page(page_data(found, make_timeline(found), prices))
        try:
            write_whole(page, text)
            _write_pieces(trace, trace_text(found))
        except OSError as error:
            raise RunFolderError(
                f"cannot write the report '{page}': {error.strerror}; name a file in a folder that "
                f"exists and may be written with --out"
            ) from error
    return Made(page, trace, found.problems)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new objects, none of them garbage, make the collector half of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _check(prices: Prices) -> None:
    given = (("--price-per-hour", prices.per_hour), ("--watts", prices.watts))
    for option, value in given:
        if value is not None and not 0.0 <= value < 1e12:
            raise UserError(f"{option} is {value:g}; allowed: a number from 0, per rank")
    if prices.batch_size is not None and prices.batch_size < 1:
        raise UserError(f"--batch-size is {prices.batch_size}; allowed: 1 or more rows")


def _write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write a long file, whole or not at all; it is made again at will, so no fsync."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    try:
        with scratch.open("x", encoding="utf-8") as file:
            file.writelines(pieces)
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
