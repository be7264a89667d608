"""The command, and the files it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mophpc.cli import main
from mophpc.report.page import SCRIPTS, json_block

ROOT = Path(__file__).parent.parent.parent


def command(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_it_writes_page_and_trace_into_the_run_folder(capsys, folder):
    status, out, err = command(capsys, folder)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith(f"{folder / 'report.html'}: ")
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    json.loads((folder / "trace.json").read_text())
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_same_run_gives_the_same_page(capsys, folder, tmp_path):
    command(capsys, folder)
    first = (folder / "report.html").read_bytes()
    status, out, _ = command(capsys, folder, "--out", tmp_path / "other.html", "--json")
    assert status == 0
    record = json.loads(out)
    assert record["page"] == str(tmp_path / "other.html")
    assert record["trace"] == str(tmp_path / "other.trace.json")
    assert record["page_bytes"] == len(first)
    assert record["problems"] == []
    assert (tmp_path / "other.html").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["nowhere"],
            "'nowhere' holds no run: it has no experiment.toml; give the folder that 'mophpc run' "
            "made",
        ),
        (["RUN", "--out", "nowhere/x.html"], "name a file in a folder that exists"),
        (["RUN", "--out", "RUN"], "is a folder; give a file, as in"),
        (["RUN", "--watts", "-1"], "--watts is -1; allowed: a number from 0, per rank"),
        (["RUN", "--price-per-hour", "nan"], "--price-per-hour is nan; allowed"),
        (["RUN", "--batch-size", "0"], "--batch-size is 0; allowed: 1 or more rows"),
    ],
)
def test_mistakes_are_one_sentence(capsys, folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    status, out, err = command(capsys, *(str(folder) if a == "RUN" else a for a in arguments))
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


def test_help_shows_an_example(capsys):
    status, out, _ = command(capsys, "--help")
    assert status == 0
    assert "Example: mophpc report runs/first" in out


def test_neither_torch_nor_mpi_is_loaded(folder):
    code = (
        "import sys; from pathlib import Path; from mophpc.report.make import make_report; "
        f"make_report(Path({str(folder)!r})); "
        "sys.exit(bool({'torch', 'mpi4py', 'zarr', 'altair', 'rich'} & set(sys.modules)))"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, timeout=60, check=False)
    assert done.returncode == 0


def test_nothing_can_end_the_data():
    text = json_block({"a": "</script><!--&\u2028\ud800"})
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {"a": "</script><!--&\u2028\ud800"}


def test_every_part_of_the_page_is_used():
    parts = {path.name for path in (ROOT / "mophpc/report/page").iterdir()}
    assert parts == {*SCRIPTS, "page.html", "style.css"}
    for name in parts:
        assert len((ROOT / "mophpc/report/page" / name).read_text().splitlines()) < 500
