"""The run folder and the logs in it."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path

import pytest

from mophpc.errors import RunFolderError
from mophpc.run.folder import RunFolder, open_run, read_settings
from mophpc.run.logs import close_logger, rank_logger
from mophpc.search.space import Config


def test_two_runs_cannot_claim_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)  # both looked before either claimed
    RunFolder(tmp_path).claim({})
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder(tmp_path).claim({})


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "first")
    folder.claim({})
    made = {"experiment.toml", "events", "logs", "checkpoints"}
    assert {p.name for p in folder.path.iterdir()} == made
    folder.unclaim()
    folder.claim({})  # a run that a mistake ended before it began may be started again


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.claim({"epochs": 1})
    with pytest.raises(RunFolderError, match=r"already holds a run; go on with it by --resume"):
        folder.claim({})
    assert read_settings(open_run(tmp_path)) == {"epochs": 1}


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match=r"is not empty \(it has thesis\.tex\)"):
        RunFolder(tmp_path).claim({})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made_is_a_user_s_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunFolderError, match="cannot be made: "):
            RunFolder(path).claim({})


def test_a_folder_without_a_run_cannot_be_opened(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        open_run(tmp_path)


def test_files_of_ranks_and_configs_have_names_of_their_own(tmp_path):
    folder = RunFolder(tmp_path)
    config = Config(3, {"lr": 0.1}, "c003-lr=0.1")
    paths = [folder.events(0), folder.events(12), folder.log(0), folder.log(12)]
    paths += [folder.plan, folder.metrics, folder.results, folder.table, folder.experiment]
    assert len({*paths, folder.checkpoint(config)}) == 10
    assert folder.events(12).name == "rank-0012.jsonl"
    folder.write_manifest(config, {"status": "done"})
    text = (folder.checkpoint(config) / "manifest.json").read_text()
    assert '"config": "c003-lr=0.1"' in text
    assert '"lr": 0.1' in text


def test_settings_are_toml_that_reads_back(tmp_path):
    settings = {"epochs": 2, "space": {"lr": [0.1, 1e-9], "arch": ["a"]}, "text": 'ü"\n'}
    RunFolder(tmp_path).claim(settings)
    assert tomllib.loads((tmp_path / "experiment.toml").read_text()) == settings


def test_a_rank_logs_to_its_file_and_errors_also_to_standard_error_in_a_line(tmp_path, capfd):
    folder = RunFolder(tmp_path)
    folder.make()
    log = rank_logger(folder, 3)
    log.info("loaded %d rows", 5)
    try:
        raise ValueError("bad batch")
    except ValueError as error:
        log.error("rank 3 of 4: %s", error, exc_info=error)
    close_logger(log)
    err = capfd.readouterr().err
    assert err == "mophpc: rank 3 of 4: bad batch\n"
    text = folder.log(3).read_text()
    assert "rank 3 INFO mophpc.rank0003: loaded 5 rows" in text
    assert "Traceback" in text
    assert "ValueError: bad batch" in text


def test_the_next_run_in_this_process_has_a_log_of_its_own(tmp_path):
    for name in ("a", "b"):
        folder = RunFolder(tmp_path / name)
        folder.make()
        rank_logger(folder, 0).info("in %s", name)
    close_logger(logging.getLogger("mophpc.rank0000"))
    assert "in b" not in RunFolder(tmp_path / "a").log(0).read_text()
    assert "in a" not in RunFolder(tmp_path / "b").log(0).read_text()
    assert logging.getLogger("mophpc.rank0000").handlers == []
