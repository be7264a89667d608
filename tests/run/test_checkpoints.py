"""Weights that a run keeps: the last, and those of the best epochs."""

from __future__ import annotations

import json
import logging
import random

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from test_local_run import EQUAL, make_store, run

import mophpc
from mophpc import verify
from mophpc.data import open_store
from mophpc.errors import ExperimentError, RunError, UserError
from mophpc.events import EventLog
from mophpc.experiment import Device, Objective, load_experiment
from mophpc.files import read_lines
from mophpc.outputs import Checkpoints
from mophpc.run.folder import RunFolder
from mophpc.run.rank.keeper import Keeper, best_epochs, tidy
from mophpc.run.writer import Writer
from mophpc.search.space import Config
from mophpc.train import weights
from mophpc.train.device import CPU

ACCURACY = Objective(metric="accuracy", mode="max")
CONFIG = Config(3, {"lr": 0.1}, "c003-lr=0.1")


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


def kept(folder, row) -> list[int]:
    return RunFolder(folder).kept_epochs(Config(row.config_id, {}, row.config))


def expected(folder, keep: int, metric: str = "accuracy") -> dict[int, list[int]]:
    """Return the best epochs of each config, found from the journal."""
    found: dict[int, list[tuple[float, int]]] = {}
    for line in read_lines(folder / "metrics.jsonl"):
        found.setdefault(line["config_id"], []).append((-line[metric], line["epoch"]))
    return {config: sorted(e for _, e in sorted(own)[:keep]) for config, own in found.items()}


def retrained(folder, row, epochs: int) -> dict[str, torch.Tensor]:
    """Train a config sequentially for so many epochs of its route; return its weights."""
    experiment = load_experiment(folder / "experiment.toml")
    route = [visit for visit in row.route if visit["epoch"] < epochs]
    shards = verify._Shards(open_store(experiment.data.store), CPU)
    again = {"hyperparameters": row.hyperparameters, "route": route}
    task = verify.Again(experiment, experiment.load_build(), [again], shards).end(0)
    return task.model.state_dict()


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(("ranks", "keep"), [(1, 1), (2, 2), (4, 3)])
def test_exactly_the_best_epochs_are_kept_with_the_weights_they_had(tmp_path, store, ranks, keep):
    settings = {"epochs": 7, "objective": ACCURACY, "checkpoints": Checkpoints(keep=keep)}
    folder = tmp_path / "run"
    results = run(folder, store, ranks, **settings)
    best = expected(folder, keep)
    for row in results.configs:
        assert kept(folder, row) == best[row.config_id]
        assert row.best_epoch in best[row.config_id]
        own = folder / "checkpoints" / row.config
        assert len(list(own.iterdir())) == keep + 2  # model.safetensors, manifest.json
        for epoch in best[row.config_id]:
            found = load_file(own / f"epoch-{epoch:04d}.safetensors")
            assert same(found, retrained(folder, row, epoch + 1))
        assert same(load_file(own / "model.safetensors"), retrained(folder, row, 7))
    saved = mophpc.load_run(folder)
    for row in results.configs:
        loaded = saved.model(row.config_id).state_dict()
        assert same(loaded, retrained(folder, row, row.best_epoch + 1))
        last = saved.model(row.config_id, "last").state_dict()
        assert same(last, load_file(folder / "checkpoints" / row.config / "model.safetensors"))


def test_what_is_kept_changes_nothing_that_is_learnt(tmp_path, store):
    found = []
    for number, settings in enumerate(({"keep": 0}, {"keep": 3, "last": "epoch"})):
        folder = tmp_path / f"run{number}"
        results = run(folder, store, 2, checkpoints=Checkpoints(**settings), epochs=3, **EQUAL)
        found.append(results)
        assert all(verdict.equal for verdict in verify.verify(folder))
    assert found[0].configs == found[1].configs
    assert not list((tmp_path / "run0").rglob("epoch-*"))


def test_nothing_kept_means_the_last(tmp_path, store):
    run(tmp_path / "run", store, 2, checkpoints=Checkpoints(keep=0), objective=ACCURACY)
    saved = mophpc.load_run(tmp_path / "run")
    assert same(saved.model().state_dict(), saved.model(None, "last").state_dict())
    out = saved.export(tmp_path / "out")
    described = json.loads((out / "config.json").read_text())
    assert described["state_sha256"] == saved.best.state_sha256
    assert described["metrics"] == saved.best.final
    with pytest.raises(UserError, match="which is 'newest'; allowed: best, last"):
        saved.model(which="newest")


def test_an_export_of_the_last_has_the_last_metrics(tmp_path, store):
    run(tmp_path / "run", store, 2, objective=ACCURACY, epochs=5)
    saved = mophpc.load_run(tmp_path / "run")
    for which, epoch in (("best", saved.best.best_epoch), ("last", 4)):
        out = saved.export(tmp_path / which, which=which)
        described = json.loads((out / "config.json").read_text())
        history = saved.history()
        line = history[(history.config_id == saved.best.config_id) & (history.epoch == epoch)]
        assert described["metrics"]["accuracy"] == line.accuracy.item()
        assert described["epochs"] == epoch + 1
        assert same(
            mophpc.load_model(out).state_dict(), retrained(tmp_path / "run", saved.best, epoch + 1)
        )


def test_weights_come_from_a_device_with_memory_of_its_own(tmp_path, store):
    folder = tmp_path / "run"
    results = run(folder, store, 2, device=Device(use="twin"), epochs=3, objective=ACCURACY)
    for row in results.configs:
        path = folder / "checkpoints" / row.config / f"epoch-{row.best_epoch:04d}.safetensors"
        assert same(load_file(path), retrained(folder, row, row.best_epoch + 1))


def test_the_newest_weights_are_there_after_every_epoch(tmp_path, store):
    results = run(tmp_path / "run", store, 2, checkpoints=Checkpoints(last="epoch"), epochs=4)
    events = [
        e
        for path in (tmp_path / "run/events").iterdir()
        for e in read_lines(path)
        if e["kind"] in ("checkpoint", "snapshot")
    ]
    files = [e["file"] for e in events if e["kind"] == "checkpoint"]
    copied = [e for e in events if e["kind"] == "snapshot"]
    assert len(copied) == 4 * 4
    # A newer one takes the place of one that waits; the last is always written.
    assert files.count("model.safetensors") == 4
    assert files.count("last-0001.safetensors") >= 1
    for row in results.configs:
        own = tmp_path / "run/checkpoints" / row.config
        assert not list(own.glob("last-*"))
        last = load_file(own / "model.safetensors")
        assert same(last, retrained(tmp_path / "run", row, 4))


def test_a_config_that_ended_without_knowing_it_has_its_last_weights(tmp_path):
    """As where rank 0 decides after a visit that there will be no other."""
    folder, objective = RunFolder(tmp_path), Objective()
    writer = _writer()
    keeper = Keeper(folder, Checkpoints(keep=0, last="epoch"), objective, writer)
    for epoch in range(3):
        assert keeper.end_epoch(_Session([], f"{epoch}"), CONFIG, epoch, {"valid_loss": 1.0})
    keeper.flush()
    folder.last_weights(CONFIG, 0).touch()  # of a late rank
    tidy(folder, CONFIG, Checkpoints(keep=0), objective, {})
    assert [path.name for path in folder.checkpoint(CONFIG).iterdir()] == ["model.safetensors"]
    assert folder.weights(CONFIG).read_text() == "2"
    folder.last_weights(CONFIG, 1).touch()
    keeper.save_last(_Session([], "now"), CONFIG, 2)
    keeper.flush()
    writer.close()
    tidy(folder, CONFIG, Checkpoints(keep=0), objective, {})
    assert [path.name for path in folder.checkpoint(CONFIG).iterdir()] == ["model.safetensors"]
    assert folder.weights(CONFIG).read_text() == "now"


def test_a_disk_that_is_full_for_the_best_epochs_ends_nothing(tmp_path, store, monkeypatch):
    _fill(monkeypatch, "epoch-")
    results = run(tmp_path / "run", store, 2)
    assert [row.status for row in results.configs] == ["done"] * 4
    logs = [path.read_text() for path in sorted((tmp_path / "run/logs").iterdir())]
    assert [log.count("No space left on device") for log in logs] == [1, 1]
    saved = mophpc.load_run(tmp_path / "run")
    assert same(saved.model().state_dict(), saved.model(which="last").state_dict())


def test_a_disk_that_is_full_for_final_weights_ends_the_run(tmp_path, store, monkeypatch):
    _fill(monkeypatch, "model.")
    said = r"rank \d of 2 on \S+: OSError: '.*model.safetensors' cannot be written: .*No space left"
    with pytest.raises(RunError, match=said):
        run(tmp_path / "run", store, 2)
    assert not (tmp_path / "run/results.json").exists()


def _fill(monkeypatch, prefix: str) -> None:
    real = weights.save_file

    def save_file(tensors, path, metadata):
        if path.name.removeprefix(".").startswith(prefix):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    monkeypatch.setattr(weights, "save_file", save_file)


@pytest.mark.parametrize("maximise", [True, False])
def test_the_best_so_far_are_the_best_of_all(tmp_path, maximise):
    """Decided epoch by epoch, from what travels with the state, as from the whole history."""
    mode = "max" if maximise else "min"
    rng = random.Random(7)
    for trial in range(40):
        keep = rng.randint(1, 4)
        values = [rng.choice([0.1, 0.2, 0.2, 0.3, float("nan"), float("inf")]) for _ in range(9)]
        folder = RunFolder(tmp_path / f"{mode}{trial}")
        notes: list[float] = []
        for epoch, value in enumerate(values):
            writer = _writer()  # another rank each time
            keeper = Keeper(
                folder, Checkpoints(keep=keep), Objective(metric="m", mode=mode), writer
            )
            session = _Session(json.loads(json.dumps(notes)))  # as it hops
            keeper.end_epoch(session, CONFIG, epoch, {"m": value})
            keeper.flush()
            writer.close()
            notes = session.notes
        best = best_epochs(zip(values, range(9), strict=True), keep, maximise=maximise)
        assert folder.kept_epochs(CONFIG) == sorted(epoch for _, epoch in best)


def test_a_copy_of_another_config_begins_with_nothing(tmp_path):
    writer = _writer()
    objective = Objective(metric="m", mode="max")
    keeper = Keeper(RunFolder(tmp_path), Checkpoints(), objective, writer)
    session = _Session([])
    keeper.end_epoch(session, CONFIG, 0, {"m": 0.9})
    copy = _Session(session.notes)
    other = Config(4, {}, "c004")
    keeper.end_epoch(copy, other, 1, {"m": 0.5})
    keeper.flush()
    writer.close()
    assert RunFolder(tmp_path).kept_epochs(other) == [1]
    assert copy.notes == [4, 0.5, 1]


def test_what_a_late_rank_wrote_is_removed_in_the_end(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoint(CONFIG).mkdir(parents=True)
    history = {epoch: {"accuracy": value} for epoch, value in enumerate((0.1, 0.3, 0.2, 0.3))}
    for there, keep, left in (
        ([0, 1, 2, 3], 2, [1, 3]),
        ([0, 2, 3], 1, [3]),  # the best could not be written
        ([0, 2], 1, [2]),
        ([0, 9], 1, [0]),
        ([0], 0, []),
    ):
        for epoch in there:
            folder.epoch_weights(CONFIG, epoch).touch()
        tidy(folder, CONFIG, Checkpoints(keep=keep), ACCURACY, history)
        assert folder.kept_epochs(CONFIG) == left
        for epoch in left:
            folder.epoch_weights(CONFIG, epoch).unlink()


def test_settings_are_checked():
    common = {"build": "a:b", "data": "x.zarr", "epochs": 1, "space": {"lr": [1]}}
    for settings, said in (
        ({"keep": -1}, "field 'checkpoints.keep' is -1; allowed: at least 0"),
        ({"last": "never"}, "field 'checkpoints.last' is 'never'; allowed: 'end' or 'epoch'"),
        ({"best": 1}, "unknown field 'checkpoints.best'; allowed here: keep, last"),
    ):
        with pytest.raises(ExperimentError, match=said):
            mophpc.Experiment(checkpoints=settings, **common)


def _writer() -> Writer:
    return Writer(EventLog(None, 0, 0.0), logging.getLogger("mophpc.test"))


class _Session:
    def __init__(self, notes, text="x"):
        self.notes = list(notes)
        self.text = text

    def snapshot(self):
        return self

    def write(self, path) -> int:
        return path.write_text(self.text)
