from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_testing import objects_of, prepare_together, rows_of, save_npz
from PIL import Image

from mophpc.data import StoreInfo, check_store, open_store, prepare, read_shard
from mophpc.data.rows import ArrayRows, Source
from mophpc.errors import SourceError, StoreError

# By this way, as the package has a function of that name.
prepare_module = import_module("mophpc.data.prepare")

ROWS = """
import time
class Rows:
    def __len__(self): return 200
    def __getitem__(self, i):
        time.sleep({pause})
        if i == {bad}: raise RuntimeError("bad item")
        return (i, i, i), i
def rows(): return Rows()
"""


def test_rows_are_shuffled_once_by_seed(store: StoreInfo) -> None:
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1]))).permutation(100)
    train, valid = rows_of(store)
    assert train == order[:90].tolist()
    assert valid == order[90:].tolist()


@pytest.mark.parametrize("num_shards", [1, 2, 5])
def test_shards_change_where_rows_lie_and_nothing_else(
    npz: str, tmp_path: Path, store: StoreInfo, num_shards: int
) -> None:
    other = prepare(npz, tmp_path / "other", num_shards=num_shards, seed=1)
    assert rows_of(other) == rows_of(store)
    assert other.digest != store.digest


def test_same_seed_same_digest(npz: str, tmp_path: Path, store: StoreInfo) -> None:
    # One object a shard instead of many: other files, the same dataset.
    same = prepare(npz, tmp_path / "same", num_shards=3, seed=1)
    again = prepare(npz, tmp_path / "again", num_shards=3, seed=1, max_object_bytes=300)
    other = prepare(npz, tmp_path / "other", num_shards=3, seed=2)
    assert same.digest == store.digest != other.digest
    assert objects_of(again.path) == objects_of(store.path)


def test_source_with_its_own_validation_split(tmp_path: Path) -> None:
    x = np.repeat(np.arange(20, dtype=np.int32)[:, None], 5, axis=1)
    source = save_npz(tmp_path / "a.npz", x_val=x, y_val=np.arange(20))
    info = prepare(source, tmp_path / "s", num_shards=2)
    train, valid = rows_of(info)
    assert valid == list(range(20))
    assert sorted(train) == list(range(100))


def test_no_validation_rows(npz: str, tmp_path: Path) -> None:
    info = prepare(npz, tmp_path / "s", num_shards=2, valid_fraction=0)
    assert (info.rows, info.valid_rows, info.valid) == (100, 0, None)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_bytes_do_not_depend_on_the_number_of_ranks(
    npz: str, tmp_path: Path, store: StoreInfo, size: int
) -> None:
    outcomes = prepare_together(
        size, npz, tmp_path / "together", num_shards=3, seed=1, max_object_bytes=300
    )
    assert {outcome.digest for outcome in outcomes} == {store.digest}
    assert objects_of(tmp_path / "together") == objects_of(store.path)


def test_ranks_share_what_is_unpacked(tmp_path: Path) -> None:
    arrays = {"x": np.arange(60).reshape(30, 2), "y": np.arange(30)}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    outcomes = prepare_together(3, str(tmp_path / "a.npz"), tmp_path / "s", num_shards=2)
    assert all(isinstance(outcome, StoreInfo) for outcome in outcomes)
    assert check_store(tmp_path / "s") == []
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [
        "train",
        "valid",
        "zarr.json",
    ]


def test_error_of_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(ROWS.format(pause=0, bad=150))
    outcomes = prepare_together(3, f"{tmp_path}/rows.py:rows", tmp_path / "s", num_shards=9)
    assert len(outcomes) == 3
    assert all(isinstance(outcome, SourceError) for outcome in outcomes)
    assert "item 150" in str(outcomes[0])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("s")] == []


def test_store_beside_its_source(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("L", (3, 3), number).save(tmp_path / name / f"{number}.png")
    for _ in range(2):
        info = prepare(str(tmp_path), tmp_path / "pets", num_shards=2, overwrite=True)
        assert info.class_names == ("cat", "dog")


def test_zeros_are_written(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 3), np.uint8), y=np.zeros(40, np.int64))
    info = prepare(str(tmp_path / "a.npz"), tmp_path / "s", num_shards=4)
    assert len(list((tmp_path / "s" / "train" / "x" / "c").iterdir())) == 4
    assert check_store(info.path) == []


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "float16", "float32", "float64", "complex64", "uint64"]
)
def test_types_come_back_as_they_are(tmp_path: Path, dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2, (20, 2, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    info = prepare(str(tmp_path / "x.npy"), tmp_path / "s", num_shards=1, valid_fraction=0)
    ((arrays, _),) = read_shard(info, 0).blocks(np.arange(20), 20)
    assert arrays["x"].dtype == dtype
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0]))).permutation(20)
    assert (arrays["x"] == x[order]).all()


def test_reads_one_object_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    class Counting(ArrayRows):
        def read(self, indices: Any) -> dict[str, Any]:
            nonlocal largest
            largest = max(largest, len(indices))
            return super().read(indices)

    rows = Counting({"x": np.zeros((1000, 100), np.uint8)}, "rows")
    monkeypatch.setattr(
        prepare_module, "open_source", lambda *_, **__: Source(rows, None, "counting")
    )
    info = prepare("-", tmp_path / "s", num_shards=2, max_object_bytes=5000)
    assert len(info.train.layout.objects(0)) == 9
    assert largest == 50


def test_memory_stays_at_about_one_object(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (1 << 14, 1 << 10), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)  # 16 MiB that cannot be compressed, in objects of 2 MiB
    del x
    tracemalloc.start()
    prepare(str(tmp_path / "x.npy"), tmp_path / "s", num_shards=2, max_object_bytes=2 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 9 << 20


def test_progress_counts_objects(npz: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(
        npz, tmp_path / "s", num_shards=3, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_existing_store_is_kept_unless_told(npz: str, tmp_path: Path, store: StoreInfo) -> None:
    with pytest.raises(StoreError, match=r"rows.zarr' exists; give --overwrite"):
        prepare(npz, store.path, num_shards=2)
    assert open_store(store.path) == store
    with pytest.raises(SourceError):
        prepare("nope", store.path, num_shards=2, overwrite=True)
    assert open_store(store.path) == store
    info = prepare(npz, store.path, num_shards=2, overwrite=True)
    assert (info.num_shards, check_store(store.path)) == (2, [])
    assert {path.name for path in tmp_path.iterdir()} == {"rows.npz", "rows.zarr"}


def test_what_is_no_store_is_never_replaced(npz: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    with pytest.raises(StoreError, match=r"is not a store of mophpc, so --overwrite leaves it"):
        prepare(npz, precious, num_shards=2, overwrite=True)
    precious.rename(tmp_path / "s.partial")
    with pytest.raises(StoreError, match=r"s.partial' is in the way"):
        prepare(npz, tmp_path / "s", num_shards=2)
    assert (tmp_path / "s.partial" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_shards": 0}, "number of shards is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"valid_fraction": 1.0}, "validation fraction is 1.0"),
        ({"max_object_bytes": 0}, "max_object_bytes is 0"),
    ],
)
def test_bad_settings(npz: str, tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        prepare(npz, tmp_path / "s", **{"num_shards": 2, **settings})
    assert {path.name for path in tmp_path.iterdir()} == {"rows.npz"}


def test_too_few_rows_for_a_validation_split(tmp_path: Path) -> None:
    source = save_npz(tmp_path / "a.npz", rows=1)
    with pytest.raises(SourceError, match=r"none are left for training"):
        prepare(source, tmp_path / "s", num_shards=1)
    assert prepare(source, tmp_path / "s", num_shards=1, valid_fraction=0).rows == 1


def test_validation_rows_unlike_the_training_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 3)), x_val=np.zeros((9, 4)))
    with pytest.raises(SourceError, match=r"fields x \(float64 \(3,\)\), and the validation"):
        prepare(str(tmp_path / "a.npz"), tmp_path / "s", num_shards=1)


def test_full_disk(npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepare_module, "_flush", full)
    with pytest.raises(StoreError, match=r"no room for the store '.*/s' of up to 2800 bytes"):
        prepare(npz, tmp_path / "s", num_shards=2)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.npz"}


def test_folder_that_cannot_be_written(npz: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be written"):
        prepare(npz, tmp_path / "rows.npz" / "s", num_shards=2)


def test_killed_in_the_middle(tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(ROWS.format(pause=0.05, bad=-1))
    source, store = f"{tmp_path}/rows.py:rows", tmp_path / "s"
    command = (
        "from pathlib import Path; from mophpc.data import prepare; "
        f"prepare({source!r}, Path({str(store)!r}), num_shards=9)"
    )
    process = subprocess.Popen([sys.executable, "-c", command])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("s.partial/train/x/c/1/0")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for path in (store, tmp_path / "s.partial"):
        with pytest.raises(StoreError, match=r"half-written"):
            open_store(path)
    (tmp_path / "rows.py").write_text(ROWS.format(pause=0, bad=-1))
    info = prepare(source, store, num_shards=9)  # replaces what is left
    assert check_store(info.path) == []
    assert not (tmp_path / "s.partial").exists()
