"""Runs that are cut off at any moment and go on, in processes of their own, without MPI."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest
import tiny
from cutting import (
    KILLED,
    Cut,
    check,
    cut_off,
    digests,
    drawn_cut,
    experiment,
    resume,
    run,
    state_files,
)
from test_local_run import make_store

import mophpc
from mophpc.errors import RunFolderError, UserError
from mophpc.experiment import Device
from mophpc.files import read_lines
from mophpc.outputs import Checkpoints
from mophpc.report.results import Results
from mophpc.run.folder import RunFolder
from mophpc.run.recovery.lock import Lock

pytestmark = pytest.mark.timeout(120)

FIXED = {"schedule": mophpc.Schedule(policy="round-robin")}
"""Routes that do not depend on what was measured."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), 4)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, store) -> Results:
    """A run over routes that are the same on any number of ranks."""
    return run(tmp_path_factory.mktemp("whole") / "run", store, 2, **FIXED)


def shards(results: Results) -> list[list[tuple[int, int]]]:
    return [[(visit["epoch"], visit["shard"]) for visit in row.route] for row in results.configs]


# Cut off anywhere, and resumed on other numbers of ranks.


@pytest.mark.parametrize("seed", range(12))
def test_a_run_cut_off_anywhere_ends_as_one_that_was_not(tmp_path, store, seed):
    rng = random.Random(seed)
    settings = [{}, FIXED, {"schedule": mophpc.Schedule(renew=False)}][seed % 3]
    for number in range(1 + seed % 3):
        cut = drawn_cut(rng)
        goes_on = {"resume": True} if number else {}
        status = cut_off(tmp_path / "run", store, rng.randint(1, 4), cut, **goes_on, **settings)
        assert status in (0, KILLED)
    results = resume(tmp_path / "run", store, rng.randint(1, 4), **settings)
    assert [row.status for row in results.configs] == ["done"] * 4
    check(tmp_path / "run", results)


@pytest.mark.parametrize("ranks", [(2, 1), (2, 2), (2, 4), (2, 3, 1, 2)])
def test_states_are_those_of_the_undisturbed_run_over_the_same_routes(
    tmp_path, store, undisturbed, ranks
):
    for number, count in enumerate(ranks[:-1]):
        goes_on = {"resume": True} if number else {}
        cut = Cut("batch", (60 if number == 0 else 30) + number)
        assert cut_off(tmp_path / "run", store, count, cut, **goes_on, **FIXED) == KILLED
    results = resume(tmp_path / "run", store, ranks[-1], **FIXED)
    check(tmp_path / "run", results)
    assert shards(results) == shards(undisturbed)
    assert digests(results) == digests(undisturbed)
    assert [row.final for row in results.configs] == [row.final for row in undisturbed.configs]
    assert results.best == undisturbed.best


def test_what_was_done_is_not_done_again(tmp_path, store):
    cut = Cut("batch", 130, waits=True)
    assert cut_off(tmp_path / "run", store, 2, cut, **FIXED) == KILLED
    newest: dict[str, int] = {}
    for path in state_files(tmp_path / "run"):
        newest[path.parent.name] = int(path.stem.removeprefix("step-"))
    assert newest
    results = resume(tmp_path / "run", store, 2, **FIXED)
    check(tmp_path / "run", results)
    made = _visits(tmp_path / "run")
    for row in results.configs:
        again = {visit for visit in made if made[visit] > 1 and visit[0] == row.config_id}
        assert all(step >= newest.get(row.config, 0) for _, step in again)


def _visits(folder: Path) -> dict[tuple[int, int], int]:
    """Return how often each visit, (config, step), was made."""
    found: dict[tuple[int, int], int] = {}
    for path in (folder / "events").iterdir():
        for event in read_lines(path):
            if event["kind"] == "visit":
                key = (event["config"], event["step"])
                found[key] = found.get(key, 0) + 1
    return found


def test_a_run_that_has_ended_returns_its_results_at_once(tmp_path, store, monkeypatch):
    before = run(tmp_path / "run", store, 2)
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    monkeypatch.setattr("mophpc.train.session.train_step", None)
    again = resume(tmp_path / "run", store, 3)
    assert again.record() == before.record()
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == files


def test_without_a_run_one_begins(tmp_path, store):
    results = resume(tmp_path / "run", store, 2)
    check(tmp_path / "run", results)


@pytest.mark.parametrize("cut", [Cut("line"), Cut("line", 1, "half")])
def test_a_run_that_had_told_its_ranks_nothing_begins_anew(tmp_path, store, undisturbed, cut):
    assert cut_off(tmp_path / "run", store, 2, cut, **FIXED) == KILLED
    with pytest.raises(RunFolderError, match="go on with it by --resume"):
        run(tmp_path / "run", store, 2, **FIXED)
    results = resume(tmp_path / "run", store, 2, **FIXED)
    check(tmp_path / "run", results)
    assert digests(results) == digests(undisturbed)


def test_a_mistake_before_the_first_visit_leaves_the_folder_to_another_run(tmp_path, store):
    wrong = {"objective": mophpc.Objective(metric="nothing", mode="min")}
    with pytest.raises(UserError, match=r"objective.metric is 'nothing'"):
        run(tmp_path / "run", store, 2, **wrong)
    check(tmp_path / "run", run(tmp_path / "run", store, 2))


# What differs.


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, store) -> Path:
    """The folder of a run that was cut off, to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert cut_off(folder, store, 2, Cut("batch", 110, waits=True), **FIXED) == KILLED
    by_config = [path.parent for path in state_files(folder)]
    assert len(by_config) == 8
    assert all(by_config.count(own) == 2 for own in by_config)
    return folder


@pytest.fixture
def left(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 4}, "epochs was 3 and is 4"),
        ({"seed": 6}, "seed was 5 and is 6"),
        (
            {"space": {"lr": [0.01], "width": [4, 6]}},
            r"space.lr was \[0.01, 0.03\] and is \[0.01\]",
        ),
        ({"threads": 2}, "threads was 1 and is 2"),
        (
            {"objective": mophpc.Objective(metric="accuracy", mode="max")},
            "objective.metric was 'valid_loss' and is 'accuracy'",
        ),
        ({"epochs": 4, "seed": 6}, "epochs was 3 and is 4; seed was 5 and is 6"),
    ],
)
def test_another_experiment_is_refused_and_each_difference_named(left, store, settings, said):
    before = {p: p.read_bytes() for p in left.rglob("*") if p.is_file()}
    with pytest.raises(RunFolderError, match=f"holds the run of another experiment: .*{said}"):
        resume(left, store, 2, **{**FIXED, **settings})
    assert {p: p.read_bytes() for p in left.rglob("*") if p.is_file()} == before


def test_another_store_is_refused(left, tmp_path):
    (tmp_path / "other").mkdir()
    other = make_store(tmp_path / "other", 4, rows=66)
    with pytest.raises(RunFolderError, match="the dataset store has changed"):
        resume(left, other, 2, **FIXED)


def test_the_same_store_elsewhere_will_do(left, store, tmp_path, undisturbed):
    moved = Path(shutil.copytree(store, tmp_path / "moved.zarr"))
    assert digests(resume(left, moved, 2, **FIXED)) == digests(undisturbed)


def test_another_build_is_refused(tmp_path, store):
    code = tmp_path / "model.py"
    code.write_text(Path(tiny.__file__).read_text())
    given = {"build": f"{code}:build", **FIXED}
    assert cut_off(tmp_path / "run", store, 2, Cut("batch", 60), **given) == KILLED
    code.write_text(code.read_text().replace("Dropout(0.2)", "Dropout(0.1)"))
    with pytest.raises(RunFolderError, match="the file of build has changed"):
        resume(tmp_path / "run", store, 2, **given)


def test_what_computes_nothing_may_differ(left, store, undisturbed):
    settings = {
        "checkpoints": Checkpoints(keep=2, states="off"),
        "schedule": mophpc.Schedule(policy="balanced", lookahead=2),
        "hop": mophpc.Hop(checksum=True),
        "device": Device(use="cpu", buffers=2),
    }
    results = resume(left, store, 3, **settings)
    check(left, results)
    assert digests(results) == digests(undisturbed)


# What is damaged.


def damage(path: Path, how: str) -> None:
    tensors = path.with_suffix(".safetensors")
    if how == "bit":
        raw = bytearray(tensors.read_bytes())
        raw[-7] ^= 4
        tensors.write_bytes(raw)
    elif how == "short":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif how == "manifest":
        text = path.read_text()
        path.write_text(text.replace('"step":', '"stop":', 1))
    elif how == "no tensors":
        tensors.unlink()
    elif how == "nothing":
        path.write_bytes(b"")


HOWS = ("bit", "short", "manifest", "no tensors", "nothing")


@pytest.mark.parametrize("how", HOWS)
def test_of_a_damaged_state_the_one_before_is_used(left, store, undisturbed, capsys, how):
    newest = [path for path in state_files(left) if path.parent.name.startswith("c001")][-1]
    damage(newest, how)
    capsys.readouterr()
    results = lines(left, store)
    said = capsys.readouterr().err
    assert re.search(
        rf"{re.escape(str(newest.with_suffix('')))}.*the state before it is used", said
    )
    check(left, results)
    assert digests(results) == digests(undisturbed)


def test_where_no_state_is_left_that_is_said(left, store, undisturbed, capsys):
    for path in state_files(left):
        if path.parent.name.startswith("c001"):
            damage(path, "bit")
    capsys.readouterr()
    results = lines(left, store)
    said = capsys.readouterr().err
    assert re.search(r"; c001\S* has none before it: it begins", said)
    assert "the state before it is used" not in said
    check(left, results)
    assert digests(results) == digests(undisturbed)


def lines(folder: Path, store: Path, ranks: int = 2) -> Results:
    """Go on, with what is told on the screen."""
    found = experiment(store, **FIXED)
    return mophpc.run_experiment(
        found, folder, transport="local", ranks=ranks, progress="lines", resume=True
    )


def test_a_config_whose_states_are_all_damaged_begins_anew(left, store, undisturbed):
    for number, path in enumerate(state_files(left)):
        damage(path, HOWS[number % len(HOWS)])
    results = resume(left, store, 3, **FIXED)
    check(left, results)
    assert digests(results) == digests(undisturbed)


def test_half_a_last_line_is_none(left, store, undisturbed):
    for name in ("journal.jsonl", "metrics.jsonl"):
        with (left / name).open("a") as file:
            file.write('{"kind":"promise","vis')
    assert digests(resume(left, store, 2, **FIXED)) == digests(undisturbed)
    read_lines(left / "journal.jsonl")
    read_lines(left / "metrics.jsonl")


@pytest.mark.parametrize("text", ["{", "[]", '{"kind":"promise","visits":["c9e0s0r0n0"]}', "\0"])
def test_a_damaged_line_of_the_journal_is_named(left, store, text):
    rows = (left / "journal.jsonl").read_text().splitlines()
    rows[1] = text
    (left / "journal.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(RunFolderError, match=r"line 2 of '.*journal.jsonl' is damaged"):
        resume(left, store, 2, **FIXED)


@pytest.mark.parametrize("text", ["", '{"kind":"part","num_ra'])
def test_a_journal_without_a_beginning_is_named(left, store, text):
    (left / "journal.jsonl").write_text(text)
    with pytest.raises(RunFolderError, match="it does not say how the run began"):
        resume(left, store, 2, **FIXED)


@pytest.mark.parametrize("text", ["garbage", "[1]", '{"config_id": 0}', "[" * 100_000])
def test_a_damaged_line_of_metrics_is_named(left, store, undisturbed, text):
    path = left / "metrics.jsonl"
    before = path.read_text()
    path.write_text(f"{before}{text}\n")
    count = before.count("\n")
    with pytest.raises(RunFolderError, match=rf"line {count + 1} of '.*' is damaged; remove the"):
        resume(left, store, 2, **FIXED)
    path.write_text(before)
    assert digests(resume(left, store, 2, **FIXED)) == digests(undisturbed)


def test_a_state_of_another_config_is_none(left, store, undisturbed, capsys):
    newest = [path for path in state_files(left) if path.parent.name.startswith("c001")][-1]
    other = [path for path in state_files(left) if path.parent.name.startswith("c002")][-1]
    assert other.name == newest.name
    for suffix in (".json", ".safetensors"):
        shutil.copy(other.with_suffix(suffix), newest.with_suffix(suffix))
    capsys.readouterr()
    results = lines(left, store)
    assert re.search(
        rf"'{re.escape(str(newest))}' is a state of config c002", capsys.readouterr().err
    )
    check(left, results)
    assert digests(results) == digests(undisturbed)


def test_a_run_without_its_experiment_is_named(left, store):
    (left / "experiment.toml").unlink()
    with pytest.raises(RunFolderError, match=r"holds a run without its experiment.toml; restore"):
        resume(left, store, 2, **FIXED)


def test_metrics_that_have_half_a_line_only(left, store, undisturbed):
    (left / "metrics.jsonl").write_text('{"config_id":0')
    assert digests(resume(left, store, 2, **FIXED)) == digests(undisturbed)
    assert len(read_lines(left / "metrics.jsonl")) == 12


@pytest.mark.parametrize("others", [[], ["plan.json"]])
def test_without_its_journal_a_run_does_not_go_on(left, store, others):
    for name in ["journal.jsonl", *others]:
        (left / name).unlink()
    with pytest.raises(RunFolderError, match="without it the run cannot go on"):
        resume(left, store, 2, **FIXED)


def test_an_experiment_that_cannot_be_read_is_named(left, store):
    (left / "experiment.toml").write_text("epochs = \n")
    with pytest.raises(RunFolderError, match=r"experiment.toml' cannot be read"):
        resume(left, store, 2, **FIXED)


def test_metrics_that_nobody_heard_of_are_found_in_the_states(left, store, undisturbed):
    rows = (left / "metrics.jsonl").read_text().splitlines()
    (left / "metrics.jsonl").write_text("\n".join(rows[:-3]) + "\n")
    results = resume(left, store, 2, **FIXED)
    check(left, results)
    assert len(read_lines(left / "metrics.jsonl")) == 12
    assert digests(results) == digests(undisturbed)


# What else may happen.


def test_two_runs_at_once_in_a_folder_are_refused(left, store):
    lock = Lock(RunFolder(left).lock)
    with pytest.raises(RunFolderError, match="a run goes on in"):
        resume(left, store, 2, **FIXED)
    lock.close()
    resume(left, store, 2, **FIXED)


def test_two_states_of_a_config_are_kept_and_none_of_one_that_has_ended(
    tmp_path, store, monkeypatch
):
    from mophpc.run.rank import states

    real, seen = states.prune, []

    def prune(folder, keep):
        real(folder, keep)
        seen.append(len(list(folder.glob("step-*.json"))))

    monkeypatch.setattr(states, "prune", prune)
    results = run(tmp_path / "run", store, 2, epochs=6)
    check(tmp_path / "run", results, epochs=6)
    assert max(seen) == 2
    assert not list((tmp_path / "run").rglob("step-*"))


def test_without_states_a_config_begins_anew(tmp_path, store, undisturbed):
    settings = {**FIXED, "checkpoints": Checkpoints(states="off")}
    assert cut_off(tmp_path / "run", store, 2, Cut("batch", 80), **settings) == KILLED
    assert state_files(tmp_path / "run") == []
    results = resume(tmp_path / "run", store, 3, **settings)
    check(tmp_path / "run", results)
    assert digests(results) == digests(undisturbed)


def test_states_are_written_between_shards_where_minutes_say_so(tmp_path, store, undisturbed):
    settings = {**FIXED, "checkpoints": Checkpoints(states=1e-6)}
    assert cut_off(tmp_path / "run", store, 2, Cut("batch", 80), **settings) == KILLED
    steps = [int(path.stem.removeprefix("step-")) for path in state_files(tmp_path / "run")]
    assert any(step % 4 for step in steps)
    results = resume(tmp_path / "run", store, 3, **settings)
    check(tmp_path / "run", results)
    assert digests(results) == digests(undisturbed)


@pytest.mark.parametrize("call", [1, 4, 7])
def test_a_disk_that_is_full_for_states_ends_nothing(
    tmp_path, store, undisturbed, monkeypatch, call
):
    from mophpc.train import state_file

    real, calls = state_file.write_tensors, []

    def write_tensors(path, tensors):
        calls.append(path)
        if len(calls) >= call:
            path.with_name(f".{path.name}.1").write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(state_file, "write_tensors", write_tensors)
    results = run(tmp_path / "run", store, 2, **FIXED)
    check(tmp_path / "run", results)
    assert digests(results) == digests(undisturbed)
    logs = [path.read_text() for path in sorted((tmp_path / "run/logs").iterdir())]
    told = sum(log.count("No space left on device") for log in logs)
    assert told in ((1, 2) if len(calls) >= call else (0,))  # a slow disk is spared some states


def test_a_config_that_diverged_stays_so(tmp_path, store):
    settings = {"build": tiny.diverges_late, **FIXED}
    before = run(tmp_path / "a", store, 2, **settings)
    assert "diverged" in [row.status for row in before.configs]
    for number, call in enumerate((40, 70)):
        folder = tmp_path / f"run{number}"
        assert cut_off(folder, store, 2, Cut("batch", call), **settings) == KILLED
        results = resume(folder, store, 3, **settings)
        check(folder, results)
        assert [row.status for row in results.configs] == [row.status for row in before.configs]
        assert digests(results) == digests(before)
