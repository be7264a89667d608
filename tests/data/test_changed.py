"""A store whose rows are other ones now, or while they are read: nobody trains on them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mophpc.data import StoreInfo, check_store, open_store, prepare, read_shard, read_valid
from mophpc.data.part import Part
from mophpc.errors import StoreError

BUDGETS = (None, 64)
WRONG = r"array {}/x, shard {} holds other rows than were prepared"


@pytest.fixture
def noise(tmp_path: Path) -> StoreInfo:
    """Two shards of 32 rows in two objects each, 32 rows of validation; all files are as long."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random(96))
    return prepare(
        str(tmp_path / "x.npy"),
        tmp_path / "s",
        num_shards=2,
        valid_fraction=1 / 3,
        max_object_bytes=128,
    )


def swap(one: Path, other: Path) -> None:
    """Let two files change places: each checksum in them is right."""
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)


def chunk(store: StoreInfo, index: int, split: str = "train") -> Path:
    return store.path / split / "x" / "c" / str(index)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_shard_with_other_rows_is_named_before_it_is_used(
    noise: StoreInfo, budget: int | None
) -> None:
    last = noise.train.layout.num_objects - 1
    swap(chunk(noise, last), chunk(noise, last - 1))
    assert read_shard(noise, 0, budget).rows == 32
    with pytest.raises(StoreError, match=WRONG.format("train", 1)):
        read_shard(noise, 1, budget)
    assert len(check_store(noise.path)) == 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_rows_of_validation_that_are_others(noise: StoreInfo, budget: int | None) -> None:
    assert read_valid(noise, budget).rows == 32
    swap(chunk(noise, 0, "valid"), chunk(noise, 1, "valid"))
    with pytest.raises(StoreError, match=WRONG.format("valid", 0)):
        read_valid(noise, budget)


def test_rows_that_change_while_they_are_streamed(noise: StoreInfo) -> None:
    reader = read_shard(noise, 0, memory_budget=64)
    order = np.random.default_rng(1).permutation(32)
    assert sum(len(at) for _, at in reader.blocks(order, 4)) == 32
    swap(chunk(noise, 0), chunk(noise, 1))
    with pytest.raises(StoreError, match=WRONG.format("train", 0)):
        list(reader.blocks(order, 4))
    swap(chunk(noise, 0), chunk(noise, 1))
    assert sum(len(at) for _, at in reader.blocks(order, 4)) == 32


def test_the_same_rows_put_there_again_are_no_change(noise: StoreInfo) -> None:
    reader = read_shard(noise, 0, memory_budget=64)
    before = [arrays["x"][at] for arrays, at in reader.blocks(np.arange(32), 4)]
    for index in range(2):
        path = chunk(noise, index)
        copy = path.with_name("copy")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
        os.utime(path, (1, 1))
    after = [arrays["x"][at] for arrays, at in reader.blocks(np.arange(32), 4)]
    assert all(map(np.array_equal, before, after))


def test_a_file_that_is_written_to_all_the_time(
    noise: StoreInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = read_shard(noise, 0, memory_budget=64)
    read = Part.read

    def touching(part: Part, *arguments: object) -> object:
        touched.append(1)
        os.utime(chunk(noise, 0), (len(touched), 1))
        return read(part, *arguments)  # type: ignore[arg-type]  # as they came

    touched: list[int] = []
    monkeypatch.setattr(Part, "read", touching)
    with pytest.raises(StoreError, match=r"shard 0 .* is written to again and again"):
        list(reader.blocks(np.arange(32), 4))
    assert len(touched) < 100


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_copy_with_other_rows_is_made_again(
    noise: StoreInfo, tmp_path: Path, budget: int | None
) -> None:
    read_shard(noise, 0, stage=tmp_path / "stage")
    (copy,) = (tmp_path / "stage").iterdir()
    swap(copy / "train/x/c/0", copy / "train/x/c/1")
    reader = read_shard(noise, 0, budget, tmp_path / "stage")
    found = np.concatenate([arrays["x"][at] for arrays, at in reader.blocks(np.arange(32), 4)])
    ((arrays, at),) = read_shard(noise, 0).blocks(np.arange(32), 4)
    assert np.array_equal(found, arrays["x"][at])


def test_another_store_in_the_place_of_one(noise: StoreInfo, tmp_path: Path) -> None:
    assert open_store(noise.path, noise.digest).digest == noise.digest
    noise.path.rename(tmp_path / "old")
    np.save(tmp_path / "x.npy", np.random.default_rng(1).random(96))
    other = prepare(str(tmp_path / "x.npy"), noise.path, num_shards=2)
    with pytest.raises(StoreError, match=r"has changed while the run began: its digest is \w{12}"):
        open_store(noise.path, noise.digest)
    assert other.digest != noise.digest
