"""What a config learns does not depend on where it learns it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from routes import ROUTE, hopped, kept, make_trainer, sequential
from safetensors.torch import load_file
from torture import build

import mophpc
from mophpc import verify
from mophpc.data import prepare
from mophpc.files import read_lines
from mophpc.train.device import CPU, Device, choose_device

OPTIMIZERS = (
    "sgd",
    "momentum",
    "nesterov",
    "adam",
    "adamw",
    "amsgrad",
    "rmsprop",
    "adagrad",
    "lbfgs",
)
SCHEDULERS = ("none", "cosine", "onecycle", "multistep", "plateau", "lambda", "sequential")
MORE = ("ema", "averaged", "deepcopy", "loss", "scaler", "thaw", "metric")

CONFIGS = (
    [{"optimizer": o, "scheduler": SCHEDULERS[i % 7]} for i, o in enumerate(OPTIMIZERS)]
    + [{"optimizer": "adamw", "scheduler": s} for s in SCHEDULERS]
    + [{"optimizer": "momentum", "scheduler": "plateau", "watched": "train_loss"}]
    + [{"optimizer": "adam", "scheduler": "plateau", "watched": "accuracy"}]
    + [{"optimizer": "momentum", "scheduler": "sequential", "more": m} for m in MORE]
    + [{"optimizer": "adamw", "scheduler": "multistep", "more": m} for m in MORE]
)


def apart() -> Device:
    """Return a device whose memory is apart from the arenas', as a GPU's is."""
    return choose_device("twin", [], 0)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(map(str, c.values())))
@pytest.mark.parametrize("device", [CPU, apart()], ids=["cpu", "apart"])
def test_every_visit_ends_in_the_same_bytes_with_and_without_hops(config, device):
    config = {"lr": 0.02} | config
    staying = kept(make_trainer(config, device=device))
    hopping = hopped(make_trainer(config, device=device))
    digests = []
    for step, (stay, hop) in enumerate(zip(staying, hopping, strict=True)):
        assert hop[0] == stay[0], f"after visit {step}"
        values = ({k: v for k, v in m.items() if k != "seconds"} for m in (stay[1], hop[1]))
        assert next(values) == next(values)
        digests.append(hop[0])
        if step + 1 in (3, 6):
            again = sequential(config, step + 1)
            assert verify.state_sha256(again) == hop[0], f"after visit {step}"
            if again.lr_scheduler is not None:
                assert again.lr_scheduler.state_dict() == _scheduler(hop[2])
    assert len(set(digests)) == len(ROUTE)


def _scheduler(session):
    return session.task.lr_scheduler.state_dict()


@pytest.mark.parametrize("more", ["thaw", "none"])
def test_state_that_grows_after_the_first_batch_hops(more):
    config = {"lr": 0.02, "optimizer": "adamw", "more": more}
    trainer = make_trainer(config)
    *_, (_, _, session) = hopped(trainer)
    has_state = session.task.model.frozen.weight in session.task.optimizer.state
    assert has_state == (more == "thaw")


def test_another_order_of_shards_gives_other_bytes(monkeypatch):
    config = {"lr": 0.02, "optimizer": "sgd"}
    first = [digest for digest, *_ in kept(make_trainer(config))][-1]
    monkeypatch.setattr("routes.ROUTE", ((0, 0), (0, 1), (0, 2), *ROUTE[3:]))
    assert [digest for digest, *_ in kept(make_trainer(config))][-1] != first


def test_a_run_over_a_store_is_verified_and_its_weights_load(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(59, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=rng.integers(0, 3, 59))
    prepare(str(tmp_path / "rows.npz"), tmp_path / "rows.zarr", num_shards=3, seed=2)
    experiment = mophpc.Experiment(
        build=build,
        data=tmp_path / "rows.zarr",
        epochs=2,
        seed=3,
        configs=[
            {"optimizer": "adamw", "scheduler": "plateau", "more": "scaler", "lr": 0.02},
            {"optimizer": "lbfgs", "scheduler": "none", "more": "metric", "lr": 0.02},
            {"optimizer": "momentum", "scheduler": "cosine", "more": "averaged", "lr": 0.02},
            {"optimizer": "momentum", "scheduler": "cosine", "more": "averaged", "lr": 1e30},
        ],
    )
    run = tmp_path / "run"
    results = mophpc.run_experiment(experiment, run, transport="local", ranks=2, progress="off")
    assert [row.status for row in results.configs] == ["done"] * 3 + ["diverged"]
    verdicts = list(verify.verify(run))
    assert [v.equal for v in verdicts] == [True] * 4
    assert [v.recorded for v in verdicts] == [row.state_sha256 for row in results.configs]
    for config, row in zip(experiment.configs[:3], results.configs, strict=False):
        model = build(config).model
        model.load_state_dict(load_file(run / "checkpoints" / row.config / "model.safetensors"))
        assert int(model.seen) > 0
    lines = read_lines(run / "metrics.jsonl")
    assert {(r["config_id"], r["epoch"]) for r in lines} == {
        (c, e) for c in range(3) for e in range(2)
    }
    _check_that_verify_finds_a_changed_byte(run, verdicts)


def _check_that_verify_finds_a_changed_byte(run: Path, verdicts: list[verify.Verdict]) -> None:
    wrong = hashlib.sha256(b"other").hexdigest()
    text = (run / "results.json").read_text().replace(verdicts[1].recorded, wrong)
    (run / "results.json").write_text(text)
    assert [v.equal for v in verify.verify(run, ["0", "c001"])] == [True, False]
    assert torch.get_num_threads() == 1
