from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from mophpc.data import Field, StoreInfo, open_store, prepare
from mophpc.data.store import GIB, MIB, plan_layout
from mophpc.errors import StoreError


@given(
    rows=st.integers(1, 2_000_000),
    num_shards=st.integers(1, 64),
    nbytes=st.lists(st.integers(1, 3 << 20), min_size=1, max_size=2),
    bound=st.sampled_from([GIB, 64 * MIB, 1000]),
)
def test_layout_cuts_evenly_and_fills_every_shard(
    rows: int, num_shards: int, nbytes: list[int], bound: int
) -> None:
    fields = [Field(f"f{n}", "uint8", (size,)) for n, size in enumerate(nbytes)]
    try:
        layout = plan_layout(rows, num_shards, fields, bound)
    except StoreError as error:
        usable = int(str(error).rsplit(" ", 1)[1])
        assert 1 <= usable < num_shards
        assert plan_layout(rows, usable, fields, bound).num_shards == usable
        return
    assert layout.num_shards == num_shards
    assert layout.shard_rows >= math.ceil(rows / num_shards)
    assert layout.shard_rows % layout.object_rows == 0
    assert all(layout.object_rows % chunk_rows == 0 for chunk_rows in layout.chunk_rows)
    assert layout.object_rows == 1 or layout.object_rows * max(nbytes) <= bound
    assert sum(len(layout.objects(shard)) for shard in range(num_shards)) == layout.num_objects
    bounds = [layout.bounds(shard) for shard in range(num_shards)]
    assert all(start < stop for start, stop in bounds)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == rows
    assert all(left[1] == right[0] for left, right in pairwise(bounds))


@pytest.mark.parametrize("rows", [60_000, 1_281_167, 50_021, 999_983])
@pytest.mark.parametrize("num_shards", [1, 4, 7, 64])
@pytest.mark.parametrize("row_nbytes", [784, 3072, 150_528])
def test_layout_of_usual_datasets_keeps_chunks_in_range(
    rows: int, num_shards: int, row_nbytes: int
) -> None:
    fields = [Field("x", "uint8", (row_nbytes,)), Field("y", "int64", ())]
    layout = plan_layout(rows, num_shards, fields)
    assert layout.shard_rows <= math.ceil(rows / num_shards) * 1.002 + 1
    for field, chunk_rows in zip(fields, layout.chunk_rows, strict=True):
        nbytes = chunk_rows * field.row_nbytes
        assert nbytes <= 4 * MIB
        assert nbytes >= MIB or chunk_rows == layout.object_rows
    if math.ceil(rows / num_shards) * row_nbytes < 0.99 * GIB:
        assert layout.object_rows == layout.shard_rows  # one shard is one object


def test_too_many_shards(npz: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"90 rows cannot fill 60 shards .* --shards 45"):
        prepare(npz, tmp_path / "s", num_shards=60)
    assert prepare(npz, tmp_path / "s", num_shards=45).num_shards == 45


def test_record(store: StoreInfo, tmp_path: Path) -> None:
    info = open_store(str(store.path))
    assert info == store
    assert (info.num_shards, info.rows, info.valid_rows) == (3, 90, 10)
    assert sum(info.shard_rows) == 90
    assert [field.name for field in info.fields] == ["x", "y"]
    assert info.fields[0] == Field("x", "int32", (5,))
    assert info.seed == 1
    assert info.source == f"npz file {tmp_path / 'rows.npz'}"
    sizes = [file.stat().st_size for file in store.path.glob("*/*/c/**/*") if file.is_file()]
    assert info.nbytes == sum(sizes)
    assert len(info.digest) == 64


def test_other_tools_read_the_store(store: StoreInfo) -> None:
    group = zarr.open_group(store.path, mode="r")
    assert group["train/x"].shape == (90, 5)
    assert group["valid/y"].shape == (10,)
    assert group.attrs["mophpc"]["num_shards"] == 3
    assert len(set(group["train/y"][:]) | set(group["valid/y"][:])) == 100


def test_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"no store at .*nope.*mophpc prepare SOURCE .* --shards P"
    ):
        open_store(tmp_path / "nope")


def test_foreign_paths(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("hello")
    zarr.create_group(tmp_path / "foreign", zarr_format=3)
    zarr.create_array(tmp_path / "array", shape=(3,), dtype="u1")
    for name in ("folder", "file"):
        with pytest.raises(StoreError, match=r"is not a dataset store of mophpc"):
            open_store(tmp_path / name)
    for name in ("foreign", "array"):
        with pytest.raises(StoreError, match=r"is a Zarr store, but not one made by"):
            open_store(tmp_path / name)


def test_half_written(store: StoreInfo, tmp_path: Path) -> None:
    partial = tmp_path / "other.zarr.partial"
    shutil.copytree(store.path, partial)
    document = json.loads((partial / "zarr.json").read_text())
    document["attributes"]["mophpc"] = {"format_version": 1, "complete": False}
    (partial / "zarr.json").write_text(json.dumps(document))
    for path in (tmp_path / "other.zarr", partial):
        with pytest.raises(StoreError, match=r"half-written.*'mophpc prepare' again"):
            open_store(path)


def test_unknown_format_version(store: StoreInfo) -> None:
    _edit(store.path, lambda record: record.update(format_version=2))
    with pytest.raises(StoreError, match=r"format version 2, and this mophpc reads version 1"):
        open_store(store.path)


@pytest.mark.parametrize("key", ["seed", "fields", "splits", "digest", "class_names"])
def test_damaged_record(store: StoreInfo, key: str) -> None:
    _edit(store.path, lambda record: record.pop(key))
    with pytest.raises(StoreError, match=r"the record of store .* is damaged"):
        open_store(store.path)


def test_edited_record(store: StoreInfo) -> None:
    _edit(store.path, lambda record: record.update(seed=2))
    with pytest.raises(StoreError, match=r"is damaged \(its digest does not fit\)"):
        open_store(store.path)


def test_record_that_is_no_json(store: StoreInfo) -> None:
    (store.path / "zarr.json").write_bytes(b"\xff{")
    with pytest.raises(StoreError, match=r"zarr.json of store .* cannot be read"):
        open_store(store.path)


def _edit(path: Path, change: object) -> None:
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"]["mophpc"])  # type: ignore[operator]
    (path / "zarr.json").write_text(json.dumps(document))
