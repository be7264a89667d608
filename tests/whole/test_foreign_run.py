"""A run folder that somebody else has made is read, and nothing that it names is executed."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_testing import command, local_run

import mophpc
from mophpc.errors import ExperimentError

Capture = pytest.CaptureFixture[str]
PACKAGE = Path(mophpc.__file__).parent
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__"}
READERS = ("load", "save")


@pytest.fixture
def foreign(
    capsys: Capture, write_experiment: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Path]:
    """A run, and a file that is there once the code that it names was executed."""
    assert local_run(capsys, write_experiment(), tmp_path / "run")[0] == 0
    trace = tmp_path / "executed"
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nbuild = None\n")
    path = tmp_path / "run/experiment.toml"
    lines = path.read_text().splitlines()
    changed = [
        f'build = "{tmp_path / "evil.py"}:build"' if line.startswith("build = ") else line
        for line in lines
    ]
    assert changed != lines
    path.write_text("\n".join(changed) + "\n")
    return tmp_path / "run", trace


def test_reading_executes_nothing(capsys: Capture, foreign: tuple[Path, Path]) -> None:
    run, trace = foreign
    for words in (
        ("status", run),
        ("status", run, "--json"),
        ("report", run),
        ("export", run, run.parent / "out"),
        ("stop", run, "c000", "--wait", "0"),
    ):
        command(capsys, *words)
        assert not trace.exists(), words
    found = mophpc.load_run(run)
    assert len(found.frame()) == len(found.results.configs)
    found.history()
    assert not trace.exists()
    with pytest.raises(ExperimentError):
        found.model()  # a model is made by code: this is where it is called
    assert trace.exists()


def test_a_run_that_goes_on_executes_what_the_given_experiment_names(
    capsys: Capture, foreign: tuple[Path, Path]
) -> None:
    run, trace = foreign
    (run / "results.json").unlink()
    words = ("run", run.parent / "experiment.toml", "--out", run, "--resume")
    assert command(capsys, *words, "--transport", "local", "-n", "2")[0] == 0
    assert not trace.exists()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & FORBIDDEN
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in CALLS
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            of = owner.id if isinstance(owner, ast.Name) else ""
            assert not (of in ("torch", "np", "numpy") and node.func.attr in READERS), node.lineno
            assert not any(k.arg == "allow_pickle" for k in node.keywords), node.lineno
