"""`mophpc report`'s page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from browsing import Page, start
from made_up import Shape, add_search, edit_results, write_run

from mophpc.files import read_lines
from mophpc.report.expense import Prices
from mophpc.report.make import make_report

EVIL = "</script><script>window.evil=1</script><img src=x onerror=window.evil=1>"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    found = start()
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def made(pattern: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "first"
    shutil.copytree(pattern, folder)
    make_report(folder, None, Prices(2.0, 300.0, "EUR"))
    return folder


def overflow(page: Page) -> int:
    return int(page.run("document.documentElement.scrollWidth - innerWidth"))


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_it_loads_without_a_word_and_fits(page, made, width, dark):
    page.open(made / "report.html", width=width, dark=dark)
    assert page.log() == []
    assert overflow(page) <= 0
    assert page.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    for canvas in ("#curves-plot", "#parallel-plot", "#schedule-plot", "#schedule-overview"):
        assert page.paints(f"{canvas} canvas") > 10, canvas


def test_its_numbers_are_those_of_results_json(page, made):
    results = json.loads((made / "results.json").read_text())
    page.open(made / "report.html")
    shown = {row["id"]: row for row in page.rows()}
    assert len(shown) == len(results["configs"]) == 6
    for row in results["configs"]:
        own = shown[row["config_id"]]
        assert own["best"] == row["best"]
        assert own["epoch"] == row["best_epoch"]
        assert own["epochs"] == row["epochs"]
        assert own["status"] == row["status"]
        for name, value in row["final"].items():
            assert own[f"final {name}"] == value
        for name, value in row["hyperparameters"].items():
            assert own[name] == value
    best = results["configs"][results["best"]]
    told = page.run("document.querySelector('#best .value').dataset.value")
    assert json.loads(told) == best["best"]
    assert best["config"] in page.run("document.getElementById('best').textContent")
    marked = page.run("document.querySelector('#table-body tr.best').dataset.id")
    assert int(marked) == results["best"]


def test_the_table_sorts(page, made):
    page.open(made / "report.html")
    values = [row["best"] for row in page.rows()]
    assert values == sorted(values, reverse=True)
    page.click("button[data-key=lr]")
    values = [row["lr"] for row in page.rows()]
    assert values == sorted(values)
    page.click("button[data-key=lr]")
    assert [row["lr"] for row in page.rows()] == sorted(values, reverse=True)
    page.click("button[data-key=width]")  # configs that have none come last, either way
    assert [row["width"] is None for row in page.rows()] == [False] * 3 + [True] * 3
    page.click("button[data-key=width]")
    assert [row["width"] is None for row in page.rows()] == [False] * 3 + [True] * 3
    sort = "document.querySelector('button[data-key=width]').parentNode.ariaSort"
    assert page.run(sort) == "descending"


def test_the_table_filters(page, made):
    page.open(made / "report.html")
    everything = page.rows()
    limit = sorted(row["lr"] for row in everything)[2]
    for words, wanted in (
        ("arch=cnn", lambda row: row["arch"] == "cnn"),
        ("mlp", lambda row: row["arch"] == "mlp"),
        (f"lr<={limit}", lambda row: row["lr"] <= limit),
        (f"mlp lr>{limit}", lambda row: row["arch"] == "mlp" and row["lr"] > limit),
        ("width!=1", lambda row: row["width"] != 1),
        ("config=c003", lambda row: row["id"] == 3),
        ("status=diverged", lambda row: False),
        ("accuracy>0.5", lambda row: row["best"] > 0.5),
    ):
        page.write("#filter", words)
        found = {row["id"] for row in page.rows()}
        assert found == {row["id"] for row in everything if wanted(row)}, words
    page.click("#clear")
    assert len(page.rows()) == 6
    assert page.log() == []


def test_dragging_along_an_axis_filters(page, made):
    page.open(made / "report.html")
    page.run("document.getElementById('parallel').scrollIntoView()")
    drag(page, "#parallel-plot canvas", (0.9, 60), (0.9, 120), last_axis=True)
    left = page.rows()
    assert 0 < len(left) < 6
    assert max(row["best"] for row in left) == left[0]["best"]
    page.click("#clear")
    assert len(page.rows()) == 6


def drag(page: Page, selector: str, begin, end, *, last_axis: bool = False) -> None:
    """Press, move and release; places are a share of the width and pixels from the top."""
    box = page.run(
        "((r) => [r.left, r.top, r.width])(document.querySelector(arguments[0])"
        ".getBoundingClientRect())",
        selector,
    )
    places = [(box[0] + x * box[2], box[1] + y) for x, y in (begin, end)]
    if last_axis:
        places = [(box[0] + box[2] - 56, y) for _, y in places]
    middle = tuple((a + b) / 2 for a, b in zip(*places, strict=True))
    steps = [("mousePressed", places[0]), ("mouseMoved", middle), ("mouseMoved", places[1])]
    for kind, (x, y) in [*steps, ("mouseReleased", places[1])]:
        event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
        page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    page.settle()


def test_the_schedule_zooms_and_a_click_follows_a_config(page, made):
    page.open(made / "report.html")
    page.run("document.getElementById('schedule').scrollIntoView()")
    canvas = "#schedule-plot canvas"
    before = shot(page, canvas)
    page.click("#schedule-controls [title='Zoom in']")
    zoomed = shot(page, canvas)
    assert zoomed != before
    drag(page, canvas, (0.5, 40), (0.3, 40))
    assert shot(page, canvas) != zoomed
    page.click("#schedule-controls [title='Show all']")
    assert shot(page, canvas) == before
    for mode in ("planned", "both"):
        page.click(f"#schedule-controls [data-mode={mode}]")
        assert shot(page, canvas) != before
    page.click("#schedule-controls [data-mode=real]")
    drag(page, canvas, (0.5, 40), (0.5, 40))
    assert page.run("document.querySelectorAll('#table-body tr.picked').length") == 1
    assert page.log() == []


def shot(page: Page, selector: str) -> str:
    page.settle()
    return str(page.run("document.querySelector(arguments[0]).toDataURL()", selector))


def test_the_switch_goes_through_the_themes(page, made):
    page.open(made / "report.html")
    seen = []
    for _ in range(3):
        colour = page.run("getComputedStyle(document.body).backgroundColor")
        seen.append((page.run("document.documentElement.dataset.theme"), colour))
        page.click("#theme")
    assert [theme for theme, _ in seen] == ["light", "dark", "light"]
    assert seen[0][1] == seen[2][1] != seen[1][1]
    assert "Auto" in page.run("document.getElementById('theme').textContent")


def test_time_traffic_and_cost_are_there(page, made):
    page.open(made / "report.html")
    events = read_lines(made / "events/rank-0001.jsonl")
    spent = next(event["spent"] for event in events if event["kind"] == "end")
    told = page.run("document.querySelectorAll('#ranks-body [data-seconds]')[1].dataset.seconds")
    assert json.loads(told) == list(spent.values())
    text = page.run("document.getElementById('traffic-body').textContent")
    assert "k m (p\u22121) S says 145 kB" in text
    rows = page.run("[...document.querySelectorAll('#sent tbody tr')].map((r) => r.textContent)")
    assert len(rows) == 3
    ways = page.run("document.getElementById('ways').textContent")
    for word in ("MOP, this run", "measured", "ring all-reduce", "EUR", "Wh"):
        assert word in ways
    assert "Cerebro" in page.run("document.getElementById('expense-body').textContent")


def test_a_search(page, folder):
    add_search(folder)
    make_report(folder)
    page.open(folder / "report.html", width=1000)
    assert page.log() == []
    shown = {row["id"]: row for row in page.rows()}
    assert shown[4]["lineage"] == 1
    cell = page.run("document.querySelector('tr[data-id=\"4\"] [data-key=lineage]').title")
    assert re.fullmatch(r"before epoch 1: state of c00\d, then lr 0.02, batch_size 64", cell)
    hint = page.run("document.getElementById('curves-hint').textContent")
    for words in ("Square: stopped", "Cross: diverged", "Ring: unfinished", "Diamond: took over"):
        assert words in hint


def test_the_headline_says_what_the_name_does_not(page, folder):
    add_search(folder)
    name = json.loads((folder / "results.json").read_text())["configs"][4]["config"]
    began = {"epoch": 0, "source": None, "hyperparameters": {"lr": 0.5, "batch_size": 64}}
    first = {"epoch": 1, "source": 0, "hyperparameters": {"lr": 0.02, "batch_size": 64}}
    second = {"epoch": 2, "source": 0, "hyperparameters": {"lr": 0.03, "batch_size": 32}}
    same = {"epoch": 1, "source": 0, "hyperparameters": began["hyperparameters"]}
    note = " (its name says what it began with)"
    for lineage, epoch, said in (
        ([began, first], 1, f"in epoch 1, with lr 0.02{note}"),
        ([began, first], 0, f"in epoch 0; since epoch 1 with lr 0.02{note}"),
        (
            [began, first, second],
            1,
            f"in epoch 1, with lr 0.02; since epoch 2 with lr 0.03, batch_size 32{note}",
        ),
        ([began, same], 1, "in epoch 1"),  # a clone, whose name is its own
        ([first], 1, f"in epoch 1, with lr 0.02, batch_size 64{note}"),
        ([], 1, "in epoch 1"),
    ):

        def change(record, lineage=lineage, epoch=epoch):
            record["best"] = 4
            record["configs"][4] |= {"lineage": lineage, "best_epoch": epoch}

        edit_results(folder, change)
        make_report(folder)
        page.open(folder / "report.html")
        assert page.log() == []
        text = page.run("document.querySelector('#best .more').textContent")
        assert text == f"{name} {said}"


def test_axes_end_with_the_values(page, folder):
    """Where all but the best are equal, the axis once went on to 1.2."""

    def change(record):
        for number, row in enumerate(record["configs"]):
            row["best"] = 1.0 if number == 0 else 0.75

    edit_results(folder, change)
    make_report(folder)
    page.open(folder / "report.html")
    axis = last_axis(page)
    assert (axis["low"], axis["high"]) == (0.75, 1.0)
    assert axis["ticks"][-1] == 1.0
    for worst, best in ((0.01, 1.0), (0.1, 0.9)):
        most = 0.99 if best == 1.0 else 0.11  # of the others

        def spread(record, worst=worst, best=best, most=most):
            for number, row in enumerate(record["configs"]):
                row["best"] = worst if number == 0 else best if number == 1 else most + number / 1e4

        edit_results(folder, spread)
        make_report(folder)
        page.open(folder / "report.html")
        axis = last_axis(page)
        assert axis["high"] == best  # whatever is far off, the best is not cut off
        assert (axis["low"] > worst) == (best == 1.0)
    edit_results(folder, lambda record: [row.update(best=1.0) for row in record["configs"]])
    make_report(folder)
    page.open(folder / "report.html")
    assert last_axis(page)["ticks"] == [1.0]


def last_axis(page: Page) -> dict[str, Any]:
    """The axis of the results."""
    found = page.run("document.getElementById('parallel-plot').dataset.axes")
    return dict(json.loads(found)[-1])


def test_states_taken_over_are_seen_whole(page, folder):
    add_search(folder)

    def change(record):
        steps = [{"epoch": i, "source": 1, "hyperparameters": {}} for i in range(1, 9)]
        record["configs"][4]["lineage"] = steps

    edit_results(folder, change)
    make_report(folder)
    page.open(folder / "report.html", width=1300)
    wide, room = page.run(
        "((n) => [n.scrollWidth, n.clientWidth])(document.getElementById('table-body'))"
    )
    assert wide <= room


def test_a_run_that_did_not_end(page, folder):
    (folder / "results.json").unlink()
    (folder / "events" / "rank-0002.jsonl").unlink()
    made = make_report(folder)
    assert "The run has not ended" in made.text()
    page.open(folder / "report.html")
    assert page.log() == []
    assert page.run("document.getElementById('state').textContent") == "did not end"
    assert "Best accuracy so far" in page.run("document.getElementById('best').textContent")
    assert page.run("document.querySelectorAll('.problem').length") == 3
    assert len(page.rows()) == 6


def test_nothing_but_an_experiment(page, tmp_path):
    (tmp_path / "experiment.toml").write_text("")
    make_report(tmp_path)
    page.open(tmp_path / "report.html", width=360)
    assert page.log() == []
    assert overflow(page) <= 0


def test_what_users_wrote_is_text(page, folder):
    def change(record):
        for row in record["configs"]:
            row["config"] = EVIL + row["config"]
            row["status"] = EVIL
            row["hyperparameters"] |= {EVIL: EVIL, "__proto__": "x"}
            row["final"] |= {EVIL: 1.0}
        record["metric"] = EVIL

    edit_results(folder, change)
    text = (folder / "metrics.jsonl").read_text().replace("accuracy", EVIL)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "experiment.toml").write_text("# " + EVIL)
    decision = {"kind": EVIL, "config_id": 0, "epochs": 1, "at": 2.0}
    (folder / "decisions.jsonl").write_text(json.dumps(decision))
    evil = folder.with_name("<img src=x onerror=alert(1)>")
    folder.rename(evil)
    make_report(evil)
    page.open(evil / "report.html")
    assert page.log() == []
    assert page.run("window.evil") is None
    assert page.run("document.images.length") == 0
    assert page.run("document.title") == "<img src=x onerror=alert(1)> · mophpc"
    assert overflow(page) <= 0


def test_the_policy_lets_no_other_script_run_and_asks_for_no_network(page, made):
    page.open(made / "report.html")
    page.driver.get_log("performance")
    page.open(made / "report.html")
    entries = page.driver.get_log("performance")
    asked = [json.loads(entry["message"])["message"] for entry in entries]
    urls = {
        urlparse(event["params"]["request"]["url"]).scheme
        for event in asked
        if event["method"] == "Network.requestWillBeSent"
    }
    assert urls == {"file"}
    page.driver.execute_async_script(
        "const done = arguments[0], s = document.createElement('script');"
        "s.textContent = 'window.evil = 1'; document.body.append(s);"
        "fetch('https://example.org/').then(() => { window.evil = 2; }, () => {}).then(done)"
    )
    assert page.run("window.evil") is None
    assert sum("Content Security Policy" in line for line in page.log()) >= 2


@pytest.mark.slow
def test_a_large_run(page, tmp_path):
    folder = write_run(tmp_path / "large", Shape(256, 50, 16, 50_000_000))
    begin_s = time.process_time()  # other tests may share the machine, which may be any
    for path in (folder / "events").iterdir():
        json.loads("[" + ",".join(path.read_text().splitlines()) + "]")
    parsed_s = time.process_time() - begin_s
    make_report(folder)
    assert time.process_time() - begin_s < 8.0 * parsed_s
    assert (folder / "report.html").stat().st_size < 5e6
    begin_s = time.monotonic()
    page.open(folder / "report.html")
    assert time.monotonic() - begin_s < 10.0
    assert page.log() == []
    assert len(page.rows()) == 256
    page.run("document.getElementById('schedule').scrollIntoView()")
    begin_s = time.monotonic()
    for _ in range(16):
        page.click("#schedule-controls [title='Zoom in']")
    assert (time.monotonic() - begin_s) / 16 < 0.5
    assert page.paints("#schedule-plot canvas") > 10
