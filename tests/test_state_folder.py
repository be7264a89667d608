"""Which states a folder has, and which may go."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mophpc.state_folder import list_states, prune, stem_of


def put(folder: Path, step: int, batches: int = 0, *, parts: str = "both") -> str:
    stem = stem_of(step, batches)
    for part, suffix in (("tensors", ".safetensors"), ("manifest", ".json")):
        if parts in ("both", part):
            path = folder / (stem + suffix)
            path.write_text("x")
    return stem


def stems(folder: Path) -> list[str]:
    return sorted({path.stem for path in folder.iterdir()})


def test_states_are_listed_from_the_oldest_to_the_newest(tmp_path):
    for step, batches in ((12, 34), (2, 0), (12, 0), (1_000_000, 0), (12, 4), (0, 7)):
        put(tmp_path, step, batches)
    put(tmp_path, 13, parts="tensors")
    for name in ("step-12.json", "step-000012.json.1", ".step-000012.json.5", "other.json"):
        (tmp_path / name).write_text("x")
    assert [(step, path.name) for step, path in list_states(tmp_path)] == [
        (0, "step-000000-000007.json"),
        (2, "step-000002.json"),
        (12, "step-000012.json"),
        (12, "step-000012-000004.json"),
        (12, "step-000012-000034.json"),
        (1_000_000, "step-1000000.json"),
    ]
    assert list_states(tmp_path / "nowhere") == []


def test_the_newest_states_stay(tmp_path):
    for step, batches in ((1, 0), (2, 0), (3, 0), (3, 5)):
        put(tmp_path, step, batches)
    prune(tmp_path)
    assert stems(tmp_path) == [stem_of(3), stem_of(3, 5)]
    prune(tmp_path, 0)
    assert stems(tmp_path) == [stem_of(3, 5)]


def test_what_is_not_whole_does_not_count_and_goes_once_there_is_a_newer_one(tmp_path):
    put(tmp_path, 1)
    put(tmp_path, 2)
    put(tmp_path, 3, parts="tensors")
    put(tmp_path, 4, parts="manifest")
    prune(tmp_path)
    assert stems(tmp_path) == [stem_of(n) for n in (1, 2, 3, 4)]
    put(tmp_path, 5)
    prune(tmp_path)
    # Another rank may be about to write the manifest of the third.
    assert stems(tmp_path) == [stem_of(n) for n in (2, 3, 5)]
    put(tmp_path, 6)
    prune(tmp_path)
    assert stems(tmp_path) == [stem_of(5), stem_of(6)]


def test_nothing_goes_where_no_state_is_whole(tmp_path):
    put(tmp_path, 1, parts="tensors")
    put(tmp_path, 2, parts="manifest")
    prune(tmp_path)
    prune(tmp_path / "nowhere")
    assert stems(tmp_path) == [stem_of(1), stem_of(2)]


def test_scratch_files_go_when_nobody_writes_them_any_more(tmp_path):
    put(tmp_path, 7)
    new, old = (tmp_path / f".step-00000{n}.safetensors.123" for n in (6, 8))
    for path in (new, old):
        path.write_text("x")
    stays = tmp_path / ".other.1"
    stays.write_text("x")
    for path in (old, stays):
        os.utime(path, (1, 1))
    prune(tmp_path)
    assert new.exists()
    assert stays.exists()
    assert not old.exists()


def test_other_files_and_folders_stay(tmp_path):
    (tmp_path / "step-000001.json").mkdir()
    (tmp_path / "model.safetensors").write_text("x")
    put(tmp_path, 5)
    prune(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-000001.json",
        "model.safetensors",
        "step-000005.json",
        "step-000005.safetensors",
    }


@pytest.mark.parametrize("keep", [1, 3])
def test_several_may_prune_and_write_at_once(tmp_path, keep):
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for step in range(first, 200, 4):
                put(tmp_path, step)
                prune(tmp_path, keep)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    prune(tmp_path, keep)
    assert failures == []
    assert [step for step, _ in list_states(tmp_path)] == list(range(200 - keep, 200))
