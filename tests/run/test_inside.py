"""Nothing is written outside a run folder, whoever made what is in it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import mophpc
from mophpc.data import prepare
from mophpc.errors import MophpcError, RunFolderError, StateError
from mophpc.files import write_whole
from mophpc.report.results import read_results
from mophpc.run.folder import RunFolder
from mophpc.run.inside import FILES, FOLDERS, check_inside
from mophpc.run.recovery.journal import Told
from mophpc.saved import load_run
from mophpc.search.space import check_name
from mophpc.state_folder import tensors_path

NAMES = ("..", "../../escaped", "/tmp/escaped", "a/b", "", ".", "\0", "x\ny", "~/x", "c000/..")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("ended")
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    prepare(str(folder / "rows.npz"), folder / "rows.zarr", num_shards=2)
    go_on(folder / "rows.zarr", folder / "run", resume=False)
    return folder / "run"


@pytest.fixture
def left(ended: Path, tmp_path: Path) -> Path:
    """The same run, cut off before it had its results."""
    shutil.copytree(ended, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    return tmp_path / "run"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    return folder


def go_on(store: Path, out: Path, *, resume: bool = True) -> None:
    experiment = mophpc.Experiment(
        build=tiny.build,
        data=mophpc.Data(store=str(store)),
        epochs=1,
        configs=[{"lr": 0.01, "width": 4}],
    )
    mophpc.run_experiment(
        experiment, out, transport="local", ranks=1, progress="off", resume=resume
    )


def is_untouched(outside: Path) -> bool:
    return [path.name for path in outside.iterdir()] == ["kept"] and (
        (outside / "kept").read_text() == "kept"
    )


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_a_link_that_leads_out_is_refused(left: Path, outside: Path, name: str) -> None:
    path = left / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    target = outside if name in FOLDERS else outside / "kept"
    path.symlink_to(os.path.relpath(target, left))
    with pytest.raises(RunFolderError, match="leads out of the run folder; remove it, or choose"):
        check_inside(left)
    path.unlink()
    path.symlink_to(outside / "none")
    with pytest.raises(RunFolderError, match="leads out of the run folder"):
        check_inside(left)
    path.unlink()
    path.symlink_to(name)
    with pytest.raises(RunFolderError, match="leads out of the run folder"):
        check_inside(left)


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints", "checkpoints/c000", "checkpoints/c000/manifest.json", "states"),
        *("logs", "logs/rank-0000.log", "events/rank-0000.jsonl", "places/rank-0000"),
        *("journal.jsonl", "metrics.jsonl", "plan.json", "costs.json", "status.json", "run.lock"),
    ],
)
def test_a_run_that_goes_on_writes_nowhere_else(
    ended: Path, left: Path, outside: Path, name: str
) -> None:
    (found,) = left.glob(name.replace("c000", "c000*")) if "c000" in name else [left / name]
    is_folder = found.is_dir() or ("." not in found.name and found.name != "rank-0000")
    shutil.rmtree(found) if found.is_dir() else found.unlink(missing_ok=True)
    found.symlink_to(outside if is_folder else outside / "kept")
    with pytest.raises(MophpcError, match="leads out of the run folder"):
        go_on(ended.parent / "rows.zarr", left)
    assert is_untouched(outside)


@pytest.mark.parametrize("name", ["logs", "experiment.toml", "run.lock", "checkpoints"])
def test_a_new_run_writes_nowhere_else(
    ended: Path, tmp_path: Path, outside: Path, name: str
) -> None:
    (tmp_path / "new").mkdir()
    target = outside if "." not in name else outside / "none"
    (tmp_path / "new" / name).symlink_to(target)
    with pytest.raises(RunFolderError):
        go_on(ended.parent / "rows.zarr", tmp_path / "new", resume=False)
    assert is_untouched(outside)


def test_links_inside_and_to_the_folder_itself_are_fine(left: Path, tmp_path: Path) -> None:
    (left / "events").rename(left / "old-events")
    (left / "events").symlink_to("old-events")
    (tmp_path / "link").symlink_to(left)
    check_inside(tmp_path / "link")
    check_inside(left)


@pytest.mark.parametrize("name", [*FOLDERS, *FILES])
def test_what_is_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    if name in FOLDERS:
        (tmp_path / name).touch()
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(RunFolderError, match="should be a"):
        check_inside(tmp_path)


def test_a_rank_makes_no_folders_through_links(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(outside)
    with pytest.raises(RunFolderError, match="leads out of the run folder"):
        RunFolder(tmp_path / "run").make()
    assert is_untouched(outside)


def test_files_are_never_written_through_links(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "status.json").symlink_to(outside / "kept")
    scratch = tmp_path / f".status.json.{os.getpid()}"
    scratch.symlink_to(outside / "kept")
    write_whole(tmp_path / "status.json", "new")
    assert (tmp_path / "status.json").read_text() == "new"
    assert is_untouched(outside)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no name of a config"):
        check_name(name)
    line = {"kind": "part", "time": 0.0, "num_ranks": 1, "configs": [[name, {}]]}
    with pytest.raises(ValueError, match="is no name of a config"):
        Told().take(line)
    body: dict[str, Any] = {"tensors_file": {"name": name, "nbytes": 1, "digest": ""}}
    with pytest.raises(StateError, match=r"allowed: 'step-000002\.safetensors' beside it"):
        tensors_path(tmp_path / "step-000002.json", body)


@pytest.mark.parametrize("name", ["..", "../../outside", "/etc"])
def test_weights_are_looked_for_in_the_run_only(ended: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(ended, tmp_path / "run")
    record = json.loads((tmp_path / "run/results.json").read_text())
    record["configs"][0]["config"] = name
    del record["digest"]  # who means harm would make a new one
    (tmp_path / "run/results.json").write_text(json.dumps(record))
    assert read_results(tmp_path / "run").configs[0].config == name
    with pytest.raises(RunFolderError, match="no file name"):
        load_run(tmp_path / "run").export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
