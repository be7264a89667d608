"""Live progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from mophpc.report.usage import usage_table
from mophpc.schedule import Plan, Prediction, predicted, time_left_s
from mophpc.search.space import Config

BAR_EVERY_S = 0.1
LINE_EVERY_S = 10.0
"""At most so often does a plain log get a line about visits."""


class _Bar(Progress):
    """A bar and an empty line: Open MPI's launcher passes on whole lines only."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text("")


class _Console(Console):
    """A console whose reader may go away: then it is silent, and the run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class LiveView:
    """Shows a run on standard error.

    Args:
        mode: `bar`, `lines`, `off`, or `auto`: a bar where standard error is a terminal. With
            `off` only what goes wrong is shown.
    """

    def __init__(self, mode: str = "auto") -> None:
        self._console: Console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self._mode = ("bar" if self._console.is_terminal else "lines") if mode == "auto" else mode
        self._prediction: Prediction | None = None
        self._progress: Progress | None = None
        self._best = ""
        self._next_s = 0.0
        self._begun_s = 0.0
        self._end_s: float | None = None
        self._total: int | None = None

    def note(self, text: str) -> None:
        """Say something once."""
        if self._mode != "off":
            self.warn(text)

    def warn(self, text: str) -> None:
        """Say once that something goes wrong."""
        with self._careful():
            self._console.print(text, markup=False)

    def begin(self, plan: Plan, configs: tuple[Config, ...]) -> None:
        """Show how large the plan is, and start the bar."""
        # Scaled by the pace so far, predicted times that are wrong all alike do no harm.
        self._total = plan.num_visits
        self._prediction = predicted(plan) if self._total else None
        self._begun_s = time.monotonic()
        sizes = f"{len(configs)} configs, {plan.num_shards} shards, {plan.num_ranks} ranks"
        if self._prediction is None:
            self.note(f"{sizes}, up to {plan.num_epochs} epochs, as it is decided")
        else:
            self.note(
                f"{sizes}, {plan.num_epochs} epochs: {plan.num_visits} visits, "
                f"{self._prediction.idle_share:.0%} idle by plan"
            )
        if self._mode == "bar":
            self._progress = _Bar(
                TextColumn("visits"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left"),
                TextColumn("best {task.fields[best]}"),
                console=self._console,
                transient=True,
            )
            self._bar = self._progress.add_task(
                "visits", total=self._total, rate="", left="?", best="-"
            )
            self._progress.start()

    def decided(self, visits: int) -> None:
        """Take over how many visits are made or decided, where more may follow."""
        if visits != self._total:
            self._total = visits
            if self._progress is not None:
                self._progress.update(self._bar, total=visits)

    def expect(self, left_s: float) -> None:
        """Take over how many seconds are left, as planned now."""
        self._end_s = time.monotonic() + left_s

    def visited(self, elapsed_s: float, visits: int) -> None:
        """Show how far the plan is."""
        elapsed_s = time.monotonic() - self._begun_s
        if self._mode == "off" or self._total is None:
            return
        total = max(self._total, visits)
        # The time left is found from all visits, and these may be of milliseconds.
        if elapsed_s < self._next_s and (self._progress is None or visits < total):
            return
        self._next_s = elapsed_s + (LINE_EVERY_S if self._progress is None else BAR_EVERY_S)
        left_s = 0.0
        if self._end_s is not None:
            left_s = max(0.0, self._end_s - time.monotonic())
        elif self._prediction is not None:
            left_s = time_left_s(self._prediction, elapsed_s, visits)
        rate = f"{visits / max(elapsed_s, 1e-9):.1f}/s"
        if self._progress is not None:
            self._progress.update(
                self._bar, completed=visits, rate=rate, left=_clock(left_s), best=self._best or "-"
            )
        else:
            best = f", best {self._best}" if self._best else ""
            self.note(f"visits {visits}/{total}, {rate}, {_clock(left_s)} left{best}")

    def evaluated(self, text: str, best: str) -> None:
        """Show a config's metrics after an epoch."""
        self._best = best
        if self._mode == "lines":
            self.note(text)

    def spent(self, ranks: list[dict[str, float]]) -> None:
        """Show what the ranks spent their time on."""
        if self._mode != "off":
            with self._careful():
                self._console.print("", usage_table(ranks), "")

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            with self._careful():
                self._progress.stop()
            self._progress = None

    @contextmanager
    def _careful(self) -> Iterator[None]:
        """Be silent from now on where nothing can be shown, as on a terminal that is gone."""
        try:
            yield
        except OSError:
            self._console.quiet = True


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
