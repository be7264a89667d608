"""The format of a dataset on disk: one Zarr v3 group, an array per field and split.

    STORE/zarr.json                  root group; its attribute "mophpc" is the record of this file
    STORE/train/x/zarr.json          one array per field, rows first
    STORE/train/x/c/<object>/0/0     one Zarr shard object: whole inner chunks, then their index

A shard of MOP is one object, or a whole number of consecutive objects where one would be larger
than a bound. Every inner chunk and every index carries its crc32c. What Zarr itself would not
notice is in the record: the size of each object (Zarr reads a missing or empty one as zeros) and
the SHA-256 of each shard's rows, from which the digest of the dataset is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from mophpc.errors import StoreError
from mophpc.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FORMAT_VERSION = 1
GIB = 1 << 30
MIB = 1 << 20
_KEY = "mophpc"
# Level 1 writes twice as fast as the default and images come out equally small.
_ZSTD_LEVEL = 1
# The search for a layout gives up exact chunk sizes before it inflates a shard by more than this.
_MAX_INFLATION = 1 / 64
_CONFIG = threading.Lock()


@dataclass(frozen=True, slots=True)
class Field:
    """One named part of a row, e.g. `x` or `y`."""

    name: str
    dtype: str
    """NumPy's name of the type, e.g. `uint8`."""
    shape: tuple[int, ...]
    """Shape of one row."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a split are cut into shards, objects and inner chunks."""

    rows: int
    shard_rows: int
    """Rows of every shard but the last, which may be shorter."""
    object_rows: int
    """Rows of a Zarr shard object; divides `shard_rows`."""
    chunk_rows: tuple[int, ...]
    """Rows of an inner chunk, by field; each divides `object_rows`."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return math.ceil(self.rows / self.shard_rows)

    @property
    def num_objects(self) -> int:
        """Number of objects in each array."""
        return math.ceil(self.rows / self.object_rows)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first row of `shard` and the row after its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    def objects(self, shard: int) -> range:
        """Return the indices of the objects of `shard`."""
        start, stop = self.bounds(shard)
        return range(start // self.object_rows, math.ceil(stop / self.object_rows))


@dataclass(frozen=True, slots=True)
class Split:
    """The training or the validation rows of a store."""

    name: str
    layout: Layout
    sha256: tuple[tuple[str, ...], ...]
    """SHA-256 of the rows (C order, little-endian), indexed by shard, then field."""
    object_nbytes: tuple[tuple[int, ...], ...]
    """Sizes of the object files, indexed by object, then field."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds; made by `open_store`."""

    path: Path
    format_version: int
    source: str
    seed: int
    fields: tuple[Field, ...]
    class_names: tuple[str, ...] | None
    train: Split
    valid: Split | None
    digest: str
    """Identifies the dataset: rows, their order and their shards, not how they are compressed."""

    @property
    def num_shards(self) -> int:
        """Number of shards of the training rows."""
        return self.train.layout.num_shards

    @property
    def rows(self) -> int:
        """Number of training rows."""
        return self.train.layout.rows

    @property
    def valid_rows(self) -> int:
        """Number of validation rows, 0 where there are none."""
        return self.valid.layout.rows if self.valid else 0

    @property
    def shard_rows(self) -> tuple[int, ...]:
        """Number of rows of each shard."""
        layout = self.train.layout
        bounds = (layout.bounds(shard) for shard in range(layout.num_shards))
        return tuple(stop - start for start, stop in bounds)

    @property
    def nbytes(self) -> int:
        """Bytes of all objects on disk."""
        splits = (self.train, self.valid) if self.valid else (self.train,)
        return sum(sum(sizes) for split in splits for sizes in split.object_nbytes)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row in memory, all fields together."""
        return sum(field.row_nbytes for field in self.fields)


def plan_layout(
    rows: int, num_shards: int, fields: Sequence[Field], max_object_bytes: int = GIB
) -> Layout:
    """Cut `rows` into `num_shards` shards.

    A shard has the smallest number of rows, from rows / num_shards upward, that can be cut evenly
    into objects of at most `max_object_bytes` and inner chunks of 1 to 4 MiB. Where only a shard
    much larger, or an empty last one, would do, the chunks may leave that range.

    Raises:
        StoreError: there are more shards than the rows can fill; says how many they can.
    """
    if num_shards < 1:
        raise StoreError(f"the number of shards is {num_shards}; it must be 1 or more")
    if max_object_bytes < 1:
        raise StoreError(f"max_object_bytes is {max_object_bytes}; it must be 1 or more")
    fewest = math.ceil(rows / num_shards)
    if (num_shards - 1) * fewest >= rows:
        raise StoreError(
            f"{rows} rows cannot fill {num_shards} shards of {fewest} rows each; the largest "
            f"usable number up to that is --shards {math.ceil(rows / fewest)}"
        )
    most = fewest + math.ceil(fewest * _MAX_INFLATION)
    if num_shards > 1:
        most = min(most, (rows - 1) // (num_shards - 1))  # one more would empty the last shard
    slack = 1
    while True:
        for shard_rows in range(fewest, min(most, fewest + 4096) + 1):
            cut = _cut_evenly(shard_rows, fields, max_object_bytes, slack)
            if cut:
                return Layout(rows, shard_rows, *cut)
        slack *= 2  # ends: with enough slack one row is an allowed object and an allowed chunk


def _cut_evenly(
    shard_rows: int, fields: Sequence[Field], max_object_bytes: int, slack: int
) -> tuple[int, tuple[int, ...]] | None:
    """Return (object_rows, chunk_rows by field), or None where `shard_rows` does not divide."""
    small = np.arange(1, math.isqrt(shard_rows) + 1)
    small = small[shard_rows % small == 0]
    divisors = np.union1d(small, shard_rows // small)
    widest = max(field.row_nbytes for field in fields)
    fewest = min(math.ceil(shard_rows * widest / max_object_bytes), shard_rows)
    for objects in divisors[(divisors >= fewest) & (divisors <= 2 * fewest * slack)]:
        object_rows = shard_rows // int(objects)
        usable = divisors[object_rows % divisors == 0]
        chunk_rows = [_chunk_rows(object_rows, usable, field.row_nbytes, slack) for field in fields]
        if all(chunk_rows):
            return object_rows, tuple(chunk_rows)
    return None


def _chunk_rows(object_rows: int, divisors: Any, row_nbytes: int, slack: int) -> int:
    """Return the largest number of rows of an inner chunk in range, or 0 where there is none."""
    most = max(4 * MIB * slack // row_nbytes, 1)
    best = int(divisors[divisors <= most].max())
    whole = best in {object_rows, most}
    return best if whole or best * row_nbytes * slack >= MIB else 0


def array_key(split: str, field: str) -> str:
    """Return the path of an array inside the store."""
    return f"{split}/{field}"


def object_key(split: str, field: Field, index: int) -> str:
    """Return the path of an object file inside the store."""
    return f"{split}/{field.name}/c/{index}" + "/0" * len(field.shape)


def little_endian(data: NDArray[Any]) -> Any:
    """Return the bytes of contiguous `data` as every machine hashes them."""
    fixed = data.astype(data.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(fixed).reshape(-1).view(np.uint8).data


def create_arrays(root: Path, split: str, fields: Sequence[Field], layout: Layout) -> None:
    """Write the metadata of a split's group and arrays below `root`; no data yet.

    Raises:
        OSError: the folder cannot be written.
    """
    (root / split).mkdir()
    _write_group(root / split, {})
    for field, chunk_rows in zip(fields, layout.chunk_rows, strict=True):
        zarr.create_array(
            LocalStore(root),
            name=array_key(split, field.name),
            shape=(layout.rows, *field.shape),
            dtype=field.dtype,
            chunks=(chunk_rows, *field.shape),
            shards=(layout.object_rows, *field.shape),
            filters=None,
            compressors=[ZstdCodec(level=_ZSTD_LEVEL), Crc32cCodec()],
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "/"},
            zarr_format=3,
        )


def open_array(
    root: Path, split: str, field: Field, layout: Layout, *, write: bool = False
) -> zarr.Array[Any]:
    """Open one array below `root`.

    Raises:
        StoreError: its metadata is missing, unreadable or not what the store's record says.
    """
    key = array_key(split, field.name)
    try:
        # Otherwise Zarr drops objects that are all zeros, and a dropped one looks like a lost one.
        # An array keeps the setting it was opened with; the lock is for threads that open others.
        with _CONFIG, zarr.config.set({"array.write_empty_chunks": True}):
            array = zarr.open_array(
                LocalStore(root, read_only=not write),
                path=key,
                mode="r+" if write else "r",
                zarr_format=3,
            )
        right = (
            array.shape == (layout.rows, *field.shape)
            and array.dtype == np.dtype(field.dtype)
            and array.shards == (layout.object_rows, *field.shape)
        )
    except Exception as error:  # Zarr raises a dozen types for a document that is damaged
        if isinstance(error, MemoryError):
            raise
        raise StoreError(
            f"store {root}: the metadata of array {key} (file {key}/zarr.json) cannot be read "
            f"({_first_line(error)}); run 'mophpc prepare' again"
        ) from error
    if not right:
        raise StoreError(
            f"store {root}: the metadata of array {key} (file {key}/zarr.json) does not fit the "
            f"store's record; run 'mophpc prepare' again"
        )
    return array


def write_record(
    root: Path,
    *,
    source: str,
    seed: int,
    fields: Sequence[Field],
    class_names: Sequence[str] | None,
    splits: Sequence[Split],
) -> None:
    """Write the record of a finished store; the last thing written before the rename."""
    record: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "complete": True,
        "source": source,
        "seed": seed,
        "fields": [
            {"name": field.name, "dtype": field.dtype, "shape": field.shape} for field in fields
        ],
        "class_names": class_names,
        "num_shards": splits[0].layout.num_shards,
        "splits": {split.name: _split_record(split) for split in splits},
        "digest": _digest(seed, fields, splits),
    }
    _write_group(root, {_KEY: record})


def write_unfinished(root: Path) -> None:
    """Mark `root` as a store that is being written."""
    _write_group(root, {_KEY: {"format_version": FORMAT_VERSION, "complete": False}})


def partial_path(path: Path) -> Path:
    """Return the folder in which the store `path` is written before it is renamed."""
    return path.with_name(path.name + ".partial")


def is_store(path: Path) -> bool:
    """Return whether `path` is a store of mophpc, finished or not."""
    try:
        document = json.loads((path / "zarr.json").read_text())
        return isinstance(document["attributes"][_KEY], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def open_store(path: Path | str, digest: str | None = None) -> StoreInfo:
    """Read what a store holds; looks at its record only, not at its data.

    Args:
        path: the store.
        digest: that it must have, since it had it before.

    Raises:
        StoreError: the store is missing, foreign, half-written, damaged or of another version; or
            another one has taken its place.
    """
    path = Path(path)
    record = _read_record(path)
    try:
        info = _info(path, record)
        intact = info.digest == _digest(
            info.seed, info.fields, (info.train, info.valid) if info.valid else (info.train,)
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise StoreError(
            f"the record of store '{path}' (file zarr.json) is damaged "
            f"({type(error).__name__}: {error}); run 'mophpc prepare' again"
        ) from error
    if not intact:
        raise StoreError(
            f"the record of store '{path}' (file zarr.json) is damaged (its digest does not fit); "
            f"run 'mophpc prepare' again"
        )
    if digest is not None and info.digest != digest:
        raise StoreError(
            f"the store '{path}' has changed while the run began: its digest is {info.digest[:12]} "
            f"and was {digest[:12]}; let it be, or give each host the same one, and run again"
        )
    return info


def _read_record(path: Path) -> dict[str, Any]:
    if not path.exists():
        if is_store(partial_path(path)):
            raise StoreError(
                f"the store '{path}' is half-written: its preparation did not finish; run "
                f"'mophpc prepare' again"
            )
        raise StoreError(
            f"there is no store at '{path}'; make one with "
            f"'mophpc prepare SOURCE {path} --shards P'"
        )
    if not (path / "zarr.json").is_file():
        raise StoreError(
            f"'{path}' is not a dataset store of mophpc; make one with "
            f"'mophpc prepare SOURCE STORE --shards P'"
        )
    try:
        document = json.loads((path / "zarr.json").read_text())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the file zarr.json of store '{path}' cannot be read ({_first_line(error)}); run "
            f"'mophpc prepare' again"
        ) from error
    if not is_store(path):
        raise StoreError(
            f"'{path}' is a Zarr store, but not one made by 'mophpc prepare SOURCE STORE "
            f"--shards P'"
        )
    record: dict[str, Any] = document["attributes"][_KEY]
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise StoreError(
            f"store '{path}' has format version {version}, and this mophpc reads version "
            f"{FORMAT_VERSION}; run 'mophpc prepare' again or use the mophpc that made it"
        )
    if record.get("complete") is not True:
        raise StoreError(
            f"the store '{path}' is half-written: its preparation did not finish; run "
            f"'mophpc prepare' again"
        )
    return record


def _info(path: Path, record: dict[str, Any]) -> StoreInfo:
    fields = tuple(
        Field(item["name"], np.dtype(item["dtype"]).name, tuple(item["shape"]))
        for item in record["fields"]
    )
    splits = {name: _read_split(name, item) for name, item in record["splits"].items()}
    names = record["class_names"]
    return StoreInfo(
        path=path,
        format_version=record["format_version"],
        source=record["source"],
        seed=record["seed"],
        fields=fields,
        class_names=None if names is None else tuple(names),
        train=splits["train"],
        valid=splits.get("valid"),
        digest=record["digest"],
    )


def _split_record(split: Split) -> dict[str, Any]:
    layout = split.layout
    bounds = [layout.bounds(shard) for shard in range(layout.num_shards)]
    return {
        "rows": layout.rows,
        "shard_rows": [stop - start for start, stop in bounds],
        "rows_per_shard": layout.shard_rows,
        "rows_per_object": layout.object_rows,
        "rows_per_chunk": layout.chunk_rows,
        "object_nbytes": split.object_nbytes,
        "sha256": split.sha256,
    }


def _read_split(name: str, item: dict[str, Any]) -> Split:
    layout = Layout(
        item["rows"], item["rows_per_shard"], item["rows_per_object"], tuple(item["rows_per_chunk"])
    )
    split = Split(
        name,
        layout,
        tuple(tuple(hashes) for hashes in item["sha256"]),
        tuple(tuple(sizes) for sizes in item["object_nbytes"]),
    )
    if len(split.sha256) != layout.num_shards or len(split.object_nbytes) != layout.num_objects:
        raise ValueError("the number of shards does not fit")
    return split


def _digest(seed: int, fields: Sequence[Field], splits: Sequence[Split]) -> str:
    content = [
        seed,
        [[field.name, field.dtype, field.shape] for field in fields],
        [
            [split.name, split.layout.rows, split.layout.shard_rows, split.sha256]
            for split in splits
        ],
    ]
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _write_group(folder: Path, attributes: dict[str, Any]) -> None:
    write_json(
        folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
