"""What one can do with a run that has ended."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import tiny
import torch
from safetensors.torch import save_file
from test_local_run import make_store, run

import mophpc
from mophpc.cli import main
from mophpc.errors import RunFolderError, UserError
from mophpc.verify import verify
from mophpc.weights_file import check_weights

OBJECTIVE = mophpc.Objective(metric="accuracy", mode="max")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("saved")
    store = make_store(base, 2)
    space = {"lr": [0.01, 1e30], "width": mophpc.choice([4, 6])}
    run(base / "run", store, 2, space=space, objective=OBJECTIVE)
    return base / "run"


def test_a_row_per_config_and_one_per_config_and_epoch(folder):
    saved = mophpc.load_run(folder)
    frame = saved.frame()
    assert list(frame["config_id"]) == [0, 1, 2, 3]
    assert list(frame["status"]) == ["done", "done", "diverged", "diverged"]
    assert list(frame["width"]) == [4, 6, 4, 6]
    best = frame["best_accuracy"].idxmax()
    assert saved.best.config_id == saved.results.best == best
    history = saved.history()
    assert [tuple(row) for row in history[["config_id", "epoch"]].values] == [
        (config, epoch) for config in (0, 1) for epoch in (0, 1)
    ]
    last = history[history["config_id"] == best].iloc[-1]
    assert last["accuracy"] == saved.best.final["accuracy"]


def test_a_model_is_ready_and_has_the_weights_that_were_trained(folder):
    saved = mophpc.load_run(folder)
    model = saved.model()
    assert not model.training
    assert model(torch.zeros(2, 4)).shape == (2, 3)
    other = saved.model("c001")
    assert other[0].out_features == 6
    again = mophpc.load_run(str(folder)).model(1)
    for name, value in other.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert all(verdict.equal for verdict in verify(folder, ["1"]))


def test_an_export_can_be_moved_and_loaded(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["export", str(folder), "--best", str(tmp_path / "out")])
    assert not stop.value.code
    said = capsys.readouterr().out
    best = mophpc.load_run(folder).best
    assert f"{best.config} is in {tmp_path / 'out'}" in said
    shutil.move(tmp_path / "out", tmp_path / "moved")
    files = sorted(path.name for path in (tmp_path / "moved").iterdir())
    assert files == ["config.json", "model.safetensors", "tiny.py"]
    described = json.loads((tmp_path / "moved/config.json").read_text())
    assert described["build"] == "tiny.py:build"
    assert described["hyperparameters"] == best.hyperparameters
    assert described["metrics"]["accuracy"] == best.best
    assert described["epochs"] == best.best_epoch + 1
    model = mophpc.load_model(tmp_path / "moved")
    expected = mophpc.load_run(folder).model()
    x = torch.randn(5, 4)
    assert torch.equal(model(x), expected(x))


def test_another_config_is_exported_by_name(folder, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["export", str(folder), str(tmp_path / "out"), "--config", "c001", "--json"])
    assert not stop.value.code
    assert mophpc.load_model(tmp_path / "out")[0].out_features == 6


def test_mistakes_are_named(folder, tmp_path, monkeypatch):
    saved = mophpc.load_run(folder)
    for call, said in (
        (lambda: saved.config("c009"), r"has no config 'c009'; allowed: 0 to 3, or a name"),
        (lambda: mophpc.load_run(tmp_path), "holds no run; give the folder"),
        (lambda: mophpc.load_model(tmp_path), "holds no export; give the folder"),
        (lambda: saved.export(folder), "is there and not empty; give a folder to be made"),
    ):
        with pytest.raises(RunFolderError, match=said):
            call()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="data frames need pandas"):
        saved.frame()


def test_damaged_runs_are_named_and_nothing_outside_is_read(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    record = json.loads((copy / "results.json").read_text())
    record["configs"][1]["config"] = "../../secret"
    (copy / "results.json").write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match=r"results.json' is damaged: its digest is xxh3"):
        mophpc.load_run(copy)
    del record["digest"]  # as of an earlier version
    (copy / "results.json").write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match=r"called '../../secret', no file name"):
        mophpc.load_run(copy).model(1)
    (copy / "results.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"results.json' is damaged"):
        mophpc.load_run(copy)
    (copy / "results.json").unlink()
    with pytest.raises(RunFolderError, match="did not end"):
        mophpc.load_run(copy)


def test_weights_of_another_model_and_missing_ones_are_named(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    saved = mophpc.load_run(copy)
    first, second = (saved.config(i).config for i in (0, 1))
    shutil.copy(
        copy / "checkpoints" / second / "model.safetensors",
        copy / "checkpoints" / first / "model.safetensors",
    )
    with pytest.raises(RunFolderError, match="not those of the model that build makes now"):
        saved.model(0, "last")
    (copy / "checkpoints" / second / "model.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"weights of c001.* are missing"):
        saved.model(1, "last")


def test_a_run_without_a_best_config_says_so(tmp_path):
    store = make_store(tmp_path, 1)
    run(tmp_path / "run", store, 1, space={"lr": [1e30]}, objective=OBJECTIVE)
    with pytest.raises(RunFolderError, match=r"no config of the run .* ended well"):
        mophpc.load_run(tmp_path / "run").model()


def test_reading_a_run_executes_nothing_of_it(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    marker = tmp_path / "executed"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(marker)!r}, 'w').close()\ndef build(config): ...\n")
    text = (copy / "experiment.toml").read_text().replace(tiny.__file__, str(evil))
    (copy / "experiment.toml").write_text(text)
    saved = mophpc.load_run(copy)
    assert len(saved.frame()) == 4
    assert len(saved.history()) == 4
    assert not marker.exists()


@pytest.mark.parametrize("size", [0, 5, 40, -1, -300])
def test_weights_that_were_cut_short_are_named_before_they_are_exported(folder, tmp_path, size):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    saved = mophpc.load_run(copy)
    weights, _ = saved._weights(saved.best, "best")
    weights.write_bytes(weights.read_bytes()[:size])
    for call in (lambda: saved.export(tmp_path / "out"), saved.model):
        with pytest.raises(RunFolderError, match=r"the weights in '.*safetensors' are damaged: "):
            call()
    assert not (tmp_path / "out").exists()


def test_a_wrong_bit_anywhere_in_weights_is_found(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    saved = mophpc.load_run(copy)
    saved.export(tmp_path / "out")
    for path in (saved._weights(saved.best, "best")[0], tmp_path / "out/model.safetensors"):
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with pytest.raises(RunFolderError, match="are damaged"):
                check_weights(path)
        with pytest.raises(RunFolderError, match="are damaged"):
            saved.model() if "copy" in str(path) else mophpc.load_model(tmp_path / "out")


def test_weights_of_an_earlier_version_have_no_digest(folder, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    check_weights(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match="its header asks for others"):
        check_weights(path)


def test_half_a_line_at_the_end_of_metrics_is_none_and_another_is_named(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"config_id":0,"epo')
    saved = mophpc.load_run(copy)
    assert saved.history().equals(mophpc.load_run(folder).history())
    saved.export(tmp_path / "out")
    path.write_text(whole.replace("}", "", 1))
    for call in (lambda: saved.export(tmp_path / "other"), saved.history):
        with pytest.raises(RunFolderError, match=r"line 1 of '.*metrics.jsonl' is damaged"):
            call()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("read", [mophpc.load_run, mophpc.load_model])
def test_a_folder_is_a_path(read):
    with pytest.raises(RunFolderError, match="the folder is 5; allowed: a path"):
        read(5)
