"""Live progress, as lines and as a bar."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from run_testing import configs_of

from mophpc.report import live
from mophpc.report.live import LiveView
from mophpc.schedule import make_plan

PLAN = make_plan("round-robin", num_configs=4, num_shards=2, num_ranks=2, num_epochs=2)


def show(view: LiveView) -> None:
    view.begin(PLAN, configs_of(PLAN))
    for visits in range(1, 17):
        view.visited(0.0, visits)
        if visits % 2 == 0:
            view.evaluated(f"c00{visits // 4} epoch 0: loss 0.{visits}", f"c000 loss 0.{visits}")
    view.end()


def test_lines_tell_the_plan_the_visits_and_the_best(capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(live.time, "monotonic", lambda: clock.now)
    view = LiveView("auto")  # standard error is no terminal here
    view.begin(PLAN, configs_of(PLAN))
    for visits in range(1, 17):
        clock.now += 3.0
        view.visited(0.0, visits)
        if visits == 2:
            view.evaluated("c001 epoch 0: accuracy 0.9100", "c001 accuracy 0.9100")
    view.end()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "4 configs, 2 shards, 2 ranks, 2 epochs: 16 visits, 0% idle by plan"
    assert lines[1] == "visits 1/16, 0.3/s, 0:21 left"  # half of a slot of two
    assert lines[2] == "c001 epoch 0: accuracy 0.9100"
    assert lines[3] == "visits 5/16, 0.3/s, 0:25 left, best c001 accuracy 0.9100"
    assert lines[4].startswith("visits 9/16, 0.3/s, ")
    assert lines[5].startswith("visits 13/16, 0.3/s, ")
    assert len(lines) == 6


def test_long_texts_are_not_broken_and_not_read_as_markup(capsys):
    view = LiveView("lines")
    view.note("[bold] c000-arch=[cnn] " + "x" * 300)
    assert capsys.readouterr().err == "[bold] c000-arch=[cnn] " + "x" * 300 + "\n"


def test_off_says_only_what_goes_wrong(capsys):
    view = LiveView("off")
    show(view)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    view.warn("c002 failed")
    assert capsys.readouterr().err == "c002 failed\n"


@pytest.mark.parametrize("error", [BrokenPipeError, lambda: OSError(5, "Input/output error")])
@pytest.mark.parametrize("mode", ["lines", "bar"])
def test_a_reader_that_has_gone_silences_the_view_and_ends_nothing(monkeypatch, mode, error):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error()

    monkeypatch.setattr("sys.stderr", Gone())
    view = LiveView(mode)
    view.note("one")
    view.warn("two")
    show(view)
    view.spent([])


def test_a_bar_shows_visits_rate_time_left_and_the_best():
    view = LiveView("bar")
    screen = io.StringIO()
    view._console = Console(file=screen, force_terminal=True, width=160, highlight=False)
    view.begin(PLAN, configs_of(PLAN))
    view.evaluated("c001 epoch 0", "c001 accuracy 0.9100")
    view.visited(0.0, 5)
    view._progress.refresh()
    text = screen.getvalue()
    assert "5/16" in text
    assert "/s" in text
    assert " left" in text
    assert "best c001 accuracy 0.9100" in text
    view.note("c002 diverged")
    view.end()
    view.end()
    assert "c002 diverged" in screen.getvalue()


def test_a_view_that_never_began_can_be_told_of_visits_and_ended(capsys):
    view = LiveView("lines")
    view.visited(0.0, 1)
    view.end()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_times_read_as_on_a_clock(seconds, text):
    assert live._clock(seconds) == text
