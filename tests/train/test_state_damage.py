"""State files that are damaged, foreign or made up: each is named, none is taken for whole."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routes import TRAIN, make_trainer
from safetensors.torch import load_file
from test_state_file import stop_after

from mophpc import state_folder
from mophpc.errors import MophpcError, RunFolderError, StateError
from mophpc.state_folder import check_state, list_states, read_manifest, write_manifest
from mophpc.train.batches import InMemory

CONFIG = {"optimizer": "adamw", "lr": 0.02, "more": "thaw"}
TRAINER = make_trainer(CONFIG)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Return the manifest of a state in the middle of a visit, with late tensors."""
    arena = TRAINER.allocate(TRAINER.nbytes(0))
    session = TRAINER.start(0, arena)
    session.train(0, 0, InMemory(TRAIN[0]))
    session.train(0, 2, InMemory(TRAIN[2]))
    outcome = session.train(0, 1, InMemory(TRAIN[1]), should_stop=stop_after(2))
    assert outcome.is_paused
    rest, held = session.release()
    copied = TRAINER.state_copy(0, arena, rest, held, session.cursor)
    folder = tmp_path_factory.mktemp("states")
    copied.write(folder, 2, {"metrics": {"valid_loss": float("inf")}, "route": [[0, 0]]})
    body = read_manifest(copied.manifest(folder, 2))
    assert body["late"] is not None
    assert body["cursor"] is not None
    return copied.manifest(folder, 2)


@pytest.fixture
def manifest(written, tmp_path) -> Path:
    for path in (written, written.with_suffix(".safetensors")):
        shutil.copy(path, tmp_path)
    return tmp_path / written.name


def load(manifest: Path) -> Any:
    arena = TRAINER.allocate(TRAINER.nbytes(0))
    return TRAINER.load(0, manifest, arena)


def go_on(manifest: Path) -> None:
    arena = TRAINER.allocate(TRAINER.nbytes(0))
    rest, cursor, _ = TRAINER.load(0, manifest, arena)
    session = TRAINER.resume(0, arena, rest)
    session.train(0, 1, InMemory(TRAIN[1]), cursor=cursor)


def rewrite(manifest: Path, **changes: Any) -> None:
    """Change a manifest as somebody would who can compute digests."""
    body = read_manifest(manifest)
    del body["digest"]
    write_manifest(manifest, body | changes)


def test_what_was_written_comes_back(manifest):
    _, cursor, facts = load(manifest)
    assert facts == {"metrics": {"valid_loss": float("inf")}, "route": [[0, 0]]}
    assert (cursor.epoch, cursor.shard, cursor.batches, cursor.rows) == (0, 1, 2, 10)
    check_state(manifest)
    json.loads(manifest.read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("place", [0, 5, 100, -1, -500])
@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_among_the_tensors_is_found(manifest, place, bit):
    path = manifest.with_suffix(".safetensors")
    raw = bytearray(path.read_bytes())
    raw[place] ^= bit
    path.write_bytes(raw)
    for look in (check_state, load):
        with pytest.raises(StateError, match=r"safetensors' is damaged: its digest is xxh3-128:"):
            look(manifest)


def test_every_flipped_bit_of_a_manifest_is_found_or_harmless(manifest):
    raw, expected = manifest.read_bytes(), read_manifest(manifest)
    numbers = np.random.default_rng(0).integers(0, len(raw) * 8, 400)
    found = 0
    for number in map(int, numbers):
        changed = bytearray(raw)
        changed[number // 8] ^= 1 << number % 8
        manifest.write_bytes(changed)
        try:
            assert read_manifest(manifest) == expected
        except StateError:
            found += 1
    assert found > 390


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, -1])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_file_that_was_cut_off_is_found(manifest, suffix, kept):
    path = manifest.with_suffix(suffix)
    size = path.stat().st_size
    os.truncate(path, int(size * kept) if kept == 0.5 else kept % size)
    whole = path.read_bytes() + b"\n" if suffix == ".json" and kept == -1 else b""
    if whole == manifest.read_bytes() + b"\n" and whole.endswith(b"}\n"):
        return  # it lacks the end of its line only
    for look in (check_state, load):
        with pytest.raises(StateError, match=f"{path.name}' is damaged"):
            look(manifest)


def test_a_file_with_more_at_its_end_is_found(manifest):
    with manifest.with_suffix(".safetensors").open("ab") as file:
        file.write(b"\0" * 64)
    with pytest.raises(StateError, match="is damaged: it has"):
        load(manifest)


def test_files_that_are_not_there_or_no_files_are_named(manifest):
    manifest.with_suffix(".safetensors").unlink()
    for look in (check_state, load):
        with pytest.raises(StateError, match=r"safetensors' cannot be read: No such file"):
            look(manifest)
    manifest.unlink()
    with pytest.raises(StateError, match=r"json' cannot be read: No such file"):
        load(manifest)
    manifest.mkdir()
    with pytest.raises(StateError, match=r"json' cannot be read: Is a directory"):
        load(manifest)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"digest": 3}',
        b'{"digest": "xxh3-128:00", "format": 1}',
        b"1e999",
        b"9" * 10_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_manifest_is_not_read(manifest, text):
    manifest.write_bytes(text)
    for look in (check_state, load):
        with pytest.raises(StateError, match=f"{manifest.name}' is damaged"):
            look(manifest)


def test_a_manifest_that_is_far_too_large_is_not_read(manifest, monkeypatch):
    monkeypatch.setattr(state_folder, "MOST_MANIFEST_BYTES", 1000)
    with pytest.raises(StateError, match="too large"):
        load(manifest)


@pytest.mark.parametrize(
    "name",
    ["../step-000001.safetensors", "/etc/passwd", "step-000002.safetensors", "", ".", "a\0b", 3],
)
def test_tensors_are_read_from_beside_the_manifest_only(manifest, name):
    about = read_manifest(manifest)["tensors_file"]
    rewrite(manifest, tensors_file=about | {"name": name})
    for look in (check_state, load):
        with pytest.raises(StateError, match=f"{manifest.name}'.* file"):
            look(manifest)


def test_a_state_of_a_newer_version_is_refused(manifest):
    rewrite(manifest, format=state_folder.FORMAT + 1)
    with pytest.raises(RunFolderError, match="newer version of mophpc"):
        check_state(manifest)


def test_a_state_of_another_model_is_refused(manifest):
    arena = TRAINER.allocate(1 << 20)
    for other, words in (
        ({"width": 16}, "was .* and is .*; undo the change"),
        ({"optimizer": "sgd"}, "and is not there; undo"),
        ({"more": "loss"}, "is not one of the model that config c000 has now"),
    ):
        trainer = make_trainer(CONFIG | other)
        with pytest.raises(RunFolderError, match=words):
            trainer.load(0, manifest, arena)


def test_a_state_of_another_config_is_refused(manifest):
    rewrite(manifest, config_id=1, config="c001")
    with pytest.raises(StateError, match="is one of config c001"):
        load(manifest)


HUGE = [2**63, 10**30, -1, 1.5, True, None, "3", [], {}]
PLACES: list[list[Any]] = [
    ["step"],
    ["tensors_file", "nbytes"],
    ["tensors", 0, 2],
    ["tensors", 0, 2, 0],
    ["tensors", -1, 0],
    ["tensors", 3, 1],
    ["late", 0],
    ["late", 1],
    ["late", 2, 1, 2, 0],
    ["late", 2, 1, 3, 0],
    ["late", 2, 1, 4],
    ["late", 2, 1, 1],
    ["late", 3],
    ["slots"],
    ["slots", 0],
    ["rest", "absent"],
    ["rest", "progress"],
    ["rest", "progress", 0],
    ["cursor", "batches"],
    ["cursor", "batch_size"],
    ["cursor", "loss_sum"],
    ["cursor", "tensors"],
    ["cursor", "tensors", 0, 2, 0],
    ["cursor", "tensors", 0, 3, 0],
    ["cursor", "flags"],
]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("value", HUGE, ids=str)
def test_made_up_manifests_are_refused_or_harmless(manifest, place, value):
    body = read_manifest(manifest)
    part: Any = body
    for key in place[:-1]:
        part = part[key]
    was, part[place[-1]] = part[place[-1]], value
    rewrite(manifest, **{place[0]: body[place[0]]})
    with suppress(MophpcError):
        go_on(manifest)
        is_number = isinstance(was, int | float) and type(value) in (int, float)
        assert is_number or value in (was, [])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_any_part_may_be_anything(written, tmp_path, data):
    for path in (written, written.with_suffix(".safetensors")):
        shutil.copy(path, tmp_path)
    manifest = tmp_path / written.name
    body = read_manifest(manifest)
    part, top = body, data.draw(st.sampled_from(sorted(body.keys() - {"digest", "facts"})))
    key: Any = top
    while part[key] and isinstance(part[key], dict | list) and data.draw(st.booleans()):
        part = part[key]
        keys = sorted(part) if isinstance(part, dict) else range(len(part))
        key = data.draw(st.sampled_from(keys))
    part[key] = data.draw(JSON)
    rewrite(manifest, **{top: body[top]})
    with suppress(MophpcError):
        go_on(manifest)


def test_other_libraries_read_the_tensors(manifest):
    found = load_file(manifest.with_suffix(".safetensors"))
    arena = TRAINER.allocate(TRAINER.nbytes(0))
    rest, _, _ = TRAINER.load(0, manifest, arena)
    session = TRAINER.resume(0, arena, rest)
    for name, tensor in session.task.model.state_dict().items():
        if f"model.{name}" in found:
            assert torch.equal(found[f"model.{name}"], tensor)
    assert {"model.conv.weight", "generator.torch", "generator.numpy"} <= found.keys()
    assert any(name.startswith("gradient.") for name in found)
    assert list_states(manifest.parent) == [(2, manifest)]
