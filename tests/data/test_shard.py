from __future__ import annotations

import shutil
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_testing import save_npz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mophpc.data import StoreInfo, check_store, prepare, read_shard, read_valid
from mophpc.data.part import Part
from mophpc.data.shard import LoadedShard, ShardReader, StreamedShard
from mophpc.errors import StoreError


def deliver(reader: ShardReader, order: np.ndarray[Any, Any], batch_size: int) -> list[Any]:
    """Return the rows of each block, as training would see them."""
    return [
        {name: array[positions].copy() for name, array in arrays.items()}
        for arrays, positions in reader.blocks(order, batch_size)
    ]


def together(blocks: list[Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def read_all(store: StoreInfo, split: str, shard: int, budget: int | None) -> None:
    reader = read_shard(store, shard, budget) if split == "train" else read_valid(store, budget)
    deliver(reader, np.arange(reader.rows), 4)


def object_files(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("*/*/c/**/*") if path.is_file())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shard=st.integers(0, 2),
    order=st.permutations(range(30)),
    batch_size=st.integers(1, 40),
    budget=st.integers(0, 800),
)
def test_streamed_rows_are_the_loaded_rows(
    store: StoreInfo, shard: int, order: list[int], batch_size: int, budget: int
) -> None:
    loaded = read_shard(store, shard)
    streamed = read_shard(store, shard, memory_budget=budget)
    assert isinstance(loaded, LoadedShard)
    assert isinstance(streamed, StreamedShard)
    for reader in (loaded, streamed):
        assert (reader.rows, reader.fields) == (30, ("x", "y"))
        assert reader.nbytes == 30 * (5 * 4 + 8)
    picked = np.array(order)
    (whole,) = deliver(loaded, picked, batch_size)
    blocks = deliver(streamed, picked, batch_size)
    assert all(len(block["y"]) % batch_size == 0 for block in blocks[:-1])
    rows = together(blocks)
    assert (rows["x"] == whole["x"]).all()
    assert (rows["y"] == whole["y"]).all()
    assert len(rows["y"]) == 30


def test_budget_decides(store: StoreInfo) -> None:
    nbytes = 30 * 28
    assert isinstance(read_shard(store, 0, memory_budget=nbytes), LoadedShard)
    assert isinstance(read_shard(store, 0, memory_budget=nbytes - 1), StreamedShard)
    assert isinstance(read_valid(store, memory_budget=10), StreamedShard)


def test_validation_rows(store: StoreInfo) -> None:
    order = np.arange(10)
    (whole,) = deliver(read_valid(store.path), order, 4)
    rows = together(deliver(read_valid(store, memory_budget=100), order, 4))
    assert rows["y"].tolist() == whole["y"].tolist()


def test_loaded_arrays_can_be_given_to_torch(store: StoreInfo) -> None:
    ((arrays, _),) = read_shard(store, 0).blocks(np.arange(30), 4)
    assert all(array.flags.c_contiguous and array.flags.writeable for array in arrays.values())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> StoreInfo:
    """One shard of 16 MiB in chunks of 1 MiB."""
    folder = tmp_path_factory.mktemp("large")
    np.save(folder / "x.npy", np.random.default_rng(0).random((1 << 12, 1 << 10), np.float32))
    return prepare(
        str(folder / "x.npy"),
        folder / "s",
        num_shards=1,
        valid_fraction=0,
        max_object_bytes=1 << 20,
    )


def test_streaming_keeps_to_its_budget(large: StoreInfo) -> None:
    order = np.random.default_rng(0).permutation(large.rows)
    budget = 12 << 20
    reader = read_shard(large, 0, memory_budget=budget)
    tracemalloc.start()
    count = sum(len(positions) for _, positions in reader.blocks(order, 32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == large.rows
    assert peak < budget * 1.1


def test_next_block_is_built_while_the_current_one_is_used(
    large: StoreInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = read_shard(large, 0, memory_budget=8 << 20)
    assert isinstance(reader, StreamedShard)
    built = threading.Semaphore(0)
    gather = reader._gather

    def gathered(*arguments: Any) -> Any:
        assert threading.current_thread().name == "mophpc-prefetch"
        arrays = gather(*arguments)
        built.release()
        return arrays

    monkeypatch.setattr(reader, "_gather", gathered)
    blocks = reader.blocks(np.arange(large.rows), 32)
    next(blocks)
    for _ in range(2):
        assert built.acquire(timeout=30)
    assert not built.acquire(timeout=0.05)  # a third would be over the budget
    blocks.close()  # type: ignore[attr-defined]  # it is a generator
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]


def test_error_in_the_thread_reaches_the_consumer(store: StoreInfo) -> None:
    reader = read_shard(store, 1, memory_budget=100)
    shutil.rmtree(store.path / "train/y/c")
    with pytest.raises(
        StoreError, match=r"array train/y, shard 1 \(file train/y/c/\d+\) is missing"
    ):
        deliver(reader, np.arange(30), 4)
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]


@pytest.mark.parametrize(("order", "batch_size"), [([30], 1), ([-1], 1), ([0], 0)])
@pytest.mark.parametrize("budget", [None, 100])
def test_wrong_orders(
    store: StoreInfo, order: list[int], batch_size: int, budget: int | None
) -> None:
    with pytest.raises(ValueError, match=r"order|batch_size"):
        deliver(read_shard(store, 0, memory_budget=budget), np.array(order), batch_size)


@pytest.mark.parametrize("shard", [-1, 3])
def test_no_such_shard(store: StoreInfo, shard: int) -> None:
    with pytest.raises(StoreError, match=r"has no shard -?\d; it has 0 to 2"):
        read_shard(store, shard)


def test_no_validation_rows(npz: str, tmp_path: Path) -> None:
    info = prepare(npz, tmp_path / "s", num_shards=1, valid_fraction=0)
    with pytest.raises(StoreError, match=r"has no validation rows"):
        read_valid(info)


# --- damage ---


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    source = save_npz(tmp_path / "a.npz", rows=9, width=1)
    info = prepare(source, tmp_path / "s", num_shards=2, valid_fraction=0)
    for path in object_files(info.path):
        split, field, _, index = path.relative_to(info.path).parts[:4]
        raw = path.read_bytes()
        for position in range(len(raw)):
            path.write_bytes(
                raw[:position] + bytes([raw[position] ^ (1 << position % 8)]) + raw[position + 1 :]
            )
            (sentence,) = check_store(info.path)
            assert f"array {split}/{field}, shard {index} " in sentence
            assert f"(file {path.relative_to(info.path)}) is damaged" in sentence
        path.write_bytes(raw)
    assert check_store(info.path) == []


def test_damaged_object_is_named_by_the_reader(store: StoreInfo) -> None:
    for path in object_files(store.path):
        raw = path.read_bytes()
        path.write_bytes(raw[:3] + bytes([raw[3] ^ 16]) + raw[4:])
        split, field, _, index = path.relative_to(store.path).parts[:4]
        shard = int(index) * store.train.layout.object_rows // store.train.layout.shard_rows
        for budget in (None, 50):
            with pytest.raises(StoreError) as caught:
                read_all(store, split, shard, budget)
            assert f"array {split}/{field}, shard" in str(caught.value)
            assert "is damaged (crc32c mismatch); run 'mophpc prepare' again" in str(caught.value)
            assert "\n" not in str(caught.value)
        path.write_bytes(raw)


@pytest.mark.parametrize("keep", [None, 0, 1, 40])
def test_missing_and_truncated_objects(store: StoreInfo, keep: int | None) -> None:
    (path,) = (store.path / "train/x/c/1").iterdir()
    raw = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(raw[:keep])
    what = "is missing" if keep is None else f"has {keep} bytes instead of {len(raw)}"
    with pytest.raises(StoreError, match=rf"train/x, shard 0 \(file train/x/c/1/0\) {what}"):
        read_shard(store, 0)
    assert read_shard(store, 1).rows == 30


def test_check_lists_all_that_is_damaged(store: StoreInfo) -> None:
    shutil.rmtree(store.path / "train/x/c/1")
    (store.path / "train/y/c/3").write_bytes(b"")
    (store.path / "valid/x/zarr.json").write_text("{")
    seen: list[tuple[int, int]] = []
    damaged = check_store(store.path, lambda done, total: seen.append((done, total)))
    assert len(damaged) == 3
    assert "array train/x, shard 0 (file train/x/c/1/0) is missing" in damaged[0]
    assert "array train/y, shard 1 (file train/y/c/3) has 0 bytes" in damaged[1]
    assert "the metadata of array valid/x" in damaged[2]
    assert seen[-1][0] == seen[-1][1] == len(seen)


def test_objects_that_changed_places(tmp_path: Path) -> None:
    # Each checksum is right, and each row is in a wrong shard.
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random(64))
    store = prepare(str(tmp_path / "x.npy"), tmp_path / "s", num_shards=2, valid_fraction=0)
    one, two = (store.path / f"train/x/c/{index}" for index in (0, 1))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert len(first) == len(second)  # or the sizes would tell
    damaged = check_store(store.path)
    assert len(damaged) == 2
    assert all("sha256 mismatch" in sentence for sentence in damaged)


def test_metadata_of_another_store(store: StoreInfo, npz: str, tmp_path: Path) -> None:
    other = prepare(npz, tmp_path / "other", num_shards=1)
    shutil.copy(other.path / "train/x/zarr.json", store.path / "train/x/zarr.json")
    with pytest.raises(StoreError, match=r"train/x .* does not fit the store's record"):
        read_shard(store, 0)


# --- staging ---


@pytest.mark.parametrize("budget", [None, 100])
def test_stage_copies_this_shard_once_and_reads_the_copy(
    store: StoreInfo, tmp_path: Path, budget: int | None
) -> None:
    stage = tmp_path / "nvme" / "mine"
    order = np.arange(30)
    plain = together(deliver(read_shard(store, 1), order, 4))
    staged = together(deliver(read_shard(store, 1, budget, stage), order, 4))
    assert (staged["y"] == plain["y"]).all()
    files = object_files(next(stage.iterdir()))
    per_shard = len(store.train.layout.objects(1))
    assert len(files) == 2 * per_shard
    times = [path.stat().st_mtime_ns for path in files]
    shutil.rmtree(store.path / "train/x/c")  # a second time, the store's objects are not needed
    again = together(deliver(read_shard(store, 1, budget, stage), order, 4))
    assert (again["y"] == plain["y"]).all()
    assert [path.stat().st_mtime_ns for path in files] == times


@pytest.mark.parametrize("budget", [None, 100])
def test_damaged_copy_is_made_again(store: StoreInfo, tmp_path: Path, budget: int | None) -> None:
    read_shard(store, 1, budget, tmp_path / "nvme")
    path = object_files(next((tmp_path / "nvme").iterdir()))[0]
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    rows = together(deliver(read_shard(store, 1, budget, tmp_path / "nvme"), np.arange(30), 4))
    assert (rows["x"] == rows["y"][:, None]).all()
    assert path.read_bytes() == raw


def test_staging_a_damaged_store(store: StoreInfo, tmp_path: Path) -> None:
    (path,) = (store.path / "train/x/c/0").iterdir()
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"array train/x, shard 0 \(file train/x/c/0/0\)"):
        read_shard(store, 0, stage=tmp_path / "nvme")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"staging train/x/zarr.json of store .* failed"):
        read_shard(store, 1, stage=tmp_path / "file")


def test_ranks_stage_the_same_rows_at_once(store: StoreInfo, tmp_path: Path) -> None:
    assert store.valid is not None
    valid = store.valid
    errors: list[Exception] = []

    def stage() -> None:
        try:
            Part(store, valid, None).stage(tmp_path / "nvme", again=True)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=stage) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert read_valid(store, stage=tmp_path / "nvme").rows == 10
