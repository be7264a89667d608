"""The data of `compare.py`, laid out as each kind of system wants them.

FOLDER/source/           train_x.npy, train_y.npy, valid_x.npy, valid_y.npy
FOLDER/ranks-2/store.zarr     for MOP: each row once, in a shard per rank
FOLDER/ranks-2/worker-0/ ...  for task parallelism: all rows for every worker
FOLDER/ranks-2/part-0/ ...    for data parallelism: each row once, a part per process
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from common import mophpc, refuse
from compare_model import BUCKETS, COUNTS, HASHED
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

IDX_HEADER_BYTES = {"images": 16, "labels": 8}
LAYOUTS = {
    "store": "store.zarr/train/*/c/**/*",
    "copies": "worker-*/train_*",
    "parts": "part-*/train_*",
}
"""Files with training rows, by the kind of system that reads them."""


def fashion(folder: Path, rows: int, valid_rows: int) -> Arrays:
    """Return the first rows of Fashion-MNIST, x (rows, 28, 28) uint8 and y (rows,) int64."""
    if not folder.is_dir():
        refuse(f"there is no folder {folder}; Debian's package dataset-fashion-mnist makes it")

    def read(part: str, kind: str) -> NDArray[np.uint8]:
        file = next(folder.glob(f"{part}-{kind}*.gz"), None)
        if file is None:
            refuse(f"{folder} has no file {part}-{kind}*.gz of Fashion-MNIST; name its folder")
        return np.frombuffer(
            gzip.decompress(file.read_bytes()), np.uint8, -1, IDX_HEADER_BYTES[kind]
        )

    found: Arrays = {}
    for name, part, count in (("train", "train", rows), ("valid", "t10k", valid_rows)):
        images = read(part, "images").reshape(-1, 28, 28)
        if len(images) < count:
            refuse(f"{count} rows are asked for; Fashion-MNIST has {len(images)} for that")
        found[f"{name}_x"] = images[:count]
        found[f"{name}_y"] = read(part, "labels").astype(np.int64)[:count]
    return found


def criteo(rows: int, valid_rows: int) -> Arrays:
    """Return a table like Criteo's, x (rows, 39) int32 and y (rows,) int64: click or not.

    Counts are lognormal and categories Zipf, as there; a category's number is its bucket, counted
    on through all 26. What is clicked on follows from hidden weights, with noise.
    """
    generator = np.random.default_rng(20)
    total = rows + valid_rows
    counts = np.floor(generator.lognormal(1.0, 1.5, (total, COUNTS))).clip(0, 1e6).astype(np.int32)
    buckets = (generator.zipf(1.3, (total, HASHED)) % BUCKETS).astype(np.int32)
    ids = buckets + np.arange(HASHED, dtype=np.int32) * BUCKETS
    logit = generator.normal(0, 0.7, HASHED * BUCKETS)[ids].sum(1)
    logit += np.log1p(counts) @ generator.normal(0, 0.3, COUNTS)
    logit += generator.logistic(0, 1, total) - np.quantile(logit, 0.75)  # a quarter clicks
    x, y = np.concatenate([counts, ids], axis=1), (logit > 0).astype(np.int64)
    return {
        "train_x": x[:rows],
        "train_y": y[:rows],
        "valid_x": x[rows:],
        "valid_y": y[rows:],
    }


def make(data: str, source: Path, rows: int, valid_rows: int, folder: Path) -> None:
    """Write the rows of one of the data sets into FOLDER/source.

    Args:
        data: `fashion` or `criteo`.
        source: the folder of Fashion-MNIST's files.
        rows: for training.
        valid_rows: for validation.
        folder: a new one.
    """
    if data == "fashion":
        write_source(folder, fashion(source, rows, valid_rows))
    else:
        write_source(folder, criteo(rows, valid_rows))


def write_source(folder: Path, arrays: Arrays) -> None:
    """Write the arrays into FOLDER/source, the training rows in a random order."""
    source = folder / "source"
    source.mkdir(parents=True)
    order = np.random.default_rng(1).permutation(len(arrays["train_x"]))
    for name, array in arrays.items():
        np.save(source / f"{name}.npy", array[order] if name.startswith("train") else array)


def lay_out(folder: Path, ranks: int) -> Path:
    """Make the store, the copies and the parts for so many ranks; return their folder."""
    source, out = folder / "source", folder / f"ranks-{ranks}"
    out.mkdir()
    mophpc("prepare", str(source), str(out / "store.zarr"), "--shards", str(ranks))
    for rank in range(ranks):
        shutil.copytree(source, out / f"worker-{rank}")
        (out / f"part-{rank}").mkdir()
        for file in sorted(source.glob("*.npy")):
            array = np.load(file)
            # Equal parts: processes that average after every batch must have equally many.
            np.save(
                out / f"part-{rank}" / file.name, array[: len(array) // ranks * ranks][rank::ranks]
            )
    return out


def storage(folder: Path, layout: str) -> int:
    """Return the bytes of all files with training rows of a layout."""
    return sum(file.stat().st_size for file in folder.glob(LAYOUTS[layout]) if file.is_file())


def chance(folder: Path) -> float:
    """Return the accuracy of always answering with the most frequent class."""
    targets = np.load(folder / "source/valid_y.npy")
    return float(np.bincount(targets).max() / len(targets))
