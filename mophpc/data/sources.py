"""What `mophpc prepare` reads: seven kinds of source, each told from the text that names it.

digits                      scikit-learn's handwritten digits
FOLDER                      IDX files, .npy files, or a folder of images per class
FILE.npz, FILE.npy          arrays that share their first dimension
FILE.py:FUNCTION            a function that returns a map-style dataset, or a pair (train, valid)
"""

from __future__ import annotations

import gzip
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.lib import format as npy_format

from mophpc.data.rows import ArrayRows, DatasetRows, ImageRows, Source, check_depth, is_grey
from mophpc.errors import ExperimentError, SourceError
from mophpc.loading import load_callable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ImageSize = int | tuple[int, int]
_KINDS = (
    "the word 'digits', a folder of IDX files, of .npy files or of one folder of images per class, "
    "a .npz or .npy file, or file.py:function"
)
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_VALID_NAMES = ("valid", "val", "test")
_IDX_FILE = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx\d-ubyte(\.gz)?")
_IDX_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_SPLIT_FIRST = re.compile(r"(train|valid|val|test)_(.+)")
_SPLIT_LAST = re.compile(r"(.+)_(train|valid|val|test)")
_ZIP_HEADER = struct.Struct("<4s22xHH")  # magic, length of the name, length of the extra field
_COPY_BYTES = 1 << 20


def open_source(
    source: str, *, image_size: ImageSize | None = None, scratch: Path | None = None
) -> Source:
    """Open what `source` names, without loading its rows.

    Args:
        source: see the head of this module.
        image_size: side, or (height, width), to which images are resized.
        scratch: folder for what has to be unpacked; what is there already is used, so that many
            ranks can share one copy. By default, a temporary one that the source removes.

    Raises:
        SourceError: there is no such source, or its rows cannot be stored.
    """
    if image_size is not None and min(_pair(image_size)) < 1:
        raise SourceError(f"the image size is {image_size}; it must be 1 or more pixels")
    unpacked = tempfile.TemporaryDirectory(prefix="mophpc-") if scratch is None else None
    target = Path(unpacked.name) if unpacked else scratch
    assert target is not None  # one of the two is
    try:
        return replace(_open(source, image_size, target), unpacked=unpacked)
    except BaseException as error:
        if unpacked:
            unpacked.cleanup()
        # No room to unpack (a write names no file) is not the fault of the source.
        if not isinstance(error, OSError) or str(error.filename or target).startswith(str(target)):
            raise
        raise SourceError(
            f"the source '{source}' cannot be read: {error.strerror}: '{error.filename}'"
        ) from error


def _open(source: str, image_size: ImageSize | None, target: Path) -> Source:
    if source == "digits":
        return _digits()
    where, _, name = source.rpartition(":")
    if where and name.isidentifier() and not Path(source).exists():
        return _function(source)
    path = Path(source)
    if not path.exists():
        raise SourceError(f"there is no source '{source}'; a source is {_KINDS}")
    if path.is_dir():
        return _folder(path, image_size, target)
    if path.suffix == ".npz":
        return _npz(path, target)
    if path.suffix == ".npy":
        return _npy_file(path)
    raise SourceError(f"'{source}' is not a source; a source is {_KINDS}")


def _digits() -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SourceError(
            "the source 'digits' needs scikit-learn; pip install 'mophpc[digits]'"
        ) from error
    bundle = load_digits()
    arrays = {"x": bundle.images.astype(np.uint8), "y": bundle.target.astype(np.int64)}
    names = tuple(str(name) for name in bundle.target_names)
    return Source(ArrayRows(arrays, "the digits"), None, "digits of scikit-learn", names)


def _function(source: str) -> Source:
    try:
        function = load_callable(source)
    except ExperimentError as error:
        raise SourceError(str(error)) from error
    try:
        made = function()
    except (Exception, SystemExit) as error:  # whatever the user's function raises
        raise SourceError(f"'{source}' failed: {type(error).__name__}: {error}") from error
    train, valid = made, None
    if isinstance(made, tuple) and len(made) == 2:
        train, valid = made
        if isinstance(train, np.ndarray):
            raise SourceError(
                f"'{source}' returned a pair of arrays; return a dataset whose items are (x, y), "
                f"or a pair (train, valid) of such datasets"
            )
    return Source(
        DatasetRows(train, f"what '{source}' returned"),
        None if valid is None else DatasetRows(valid, f"the validation part of '{source}'"),
        f"function {source}",
    )


def _folder(path: Path, image_size: ImageSize | None, target: Path) -> Source:
    children = sorted(path.iterdir())
    if any(_IDX_FILE.fullmatch(child.name) for child in children):
        return _idx(path, target)
    arrays = [child for child in children if child.suffix == ".npy"]
    if arrays:
        maps = {child.stem: _npy(child) for child in arrays}
        return _split_arrays(maps, f"folder '{path}'", f"npy files in {path}")
    if (path / "zarr.json").exists():
        raise SourceError(f"'{path}' is a Zarr store, not a source; a source is {_KINDS}")
    if any(_is_folder(child) for child in children):
        return _images(path, image_size)
    raise SourceError(f"folder '{path}' holds nothing that can be prepared; a source is {_KINDS}")


# --- IDX ---


def _idx(path: Path, target: Path) -> Source:
    found: dict[tuple[str, str], Path] = {}
    # Backwards, so that of two files that differ only in .gz the unpacked one stays.
    for child in sorted(path.iterdir(), reverse=True):
        match = _IDX_FILE.fullmatch(child.name)
        if match:
            split = "train" if match[1] == "train" else "valid"
            found[split, {"images": "x", "labels": "y"}[match[2]]] = child
    for split, images, labels in (
        ("train", "train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("valid", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ):
        has = [(split, field) in found for field in "xy"]
        if any(has) != all(has) or (split == "train" and not all(has)):
            missing = images if not has[0] else labels
            raise SourceError(f"folder '{path}' lacks the IDX file {missing} (or {missing}.gz)")
    parts = {}
    for split in ("train", "valid"):
        arrays = {
            field: _idx_array(_gunzip(found[split, field], target))
            for field in "xy"
            if (split, field) in found
        }
        # Losses of classifiers want int64 labels; IDX has bytes.
        parts[split] = ArrayRows(arrays, f"'{path}'", {"y": "int64"}) if arrays else None
    assert parts["train"] is not None  # checked above
    return Source(parts["train"], parts["valid"], f"IDX files in {path}")


def _idx_array(path: Path) -> NDArray[Any]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
        dtype = _IDX_DTYPES.get(head[2]) if len(head) == 4 and head[:2] == b"\0\0" else None
        if dtype is None:
            raise SourceError(
                f"'{path.name}' is not an IDX file: it starts with {head.hex()}, and should with "
                f"0000, a type and a number of dimensions"
            )
        shape = struct.unpack(f">{head[3]}I", file.read(4 * head[3]).ljust(4 * head[3], b"\0"))
        start = 4 + 4 * head[3]
    return _map(path, np.dtype(dtype), shape, start=start, end=size)


def _gunzip(path: Path, target: Path) -> Path:
    if path.suffix != ".gz":
        return path

    def copy(out: BinaryIO) -> None:
        try:
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, out, _COPY_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise SourceError(f"'{path}' is truncated or not gzip: {error}") from error

    return _unpack(target / path.stem, copy)


# --- .npy and .npz ---


def _npy_file(path: Path) -> Source:
    stem = path.stem
    match = _SPLIT_FIRST.fullmatch(stem) or _SPLIT_LAST.fullmatch(stem)
    parts = match.groups() if match else (stem,)
    if "x" not in parts:
        raise SourceError(
            f"'{path}' has no partner: name it x.npy and put y.npy beside it, or give the folder"
        )
    beside = path.with_name("_".join("y" if part == "x" else part for part in parts) + ".npy")
    arrays = {"x": _npy(path)}
    if beside.exists():
        arrays["y"] = _npy(beside)
    return Source(ArrayRows(arrays, f"'{path}'"), None, f"npy file {path}")


def _npz(path: Path, target: Path) -> Source:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.filename.endswith(".npy"):
                    raise SourceError(f"'{path}' has a member '{member.filename}' that is no array")
                name = member.filename.removesuffix(".npy")
                where = f"'{name}' of '{path}'"
                if member.compress_type == zipfile.ZIP_STORED:
                    arrays[name] = _npy(path, _zip_start(path, member), member.file_size, where)
                    continue

                def copy(out: BinaryIO, member: zipfile.ZipInfo = member) -> None:
                    with archive.open(member) as packed:
                        shutil.copyfileobj(packed, out, _COPY_BYTES)

                arrays[name] = _npy(_unpack(target / f"{len(arrays)}.npy", copy), where=where)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise SourceError(f"'{path}' is truncated or not an .npz file: {error}") from error
    return _split_arrays(arrays, f"'{path}'", f"npz file {path}")


def _zip_start(path: Path, member: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(_ZIP_HEADER.size)
    if len(head) < _ZIP_HEADER.size or head[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no header of '{member.filename}'")
    _, name_nbytes, extra_nbytes = _ZIP_HEADER.unpack(head)
    return int(member.header_offset + _ZIP_HEADER.size + name_nbytes + extra_nbytes)


def _npy(
    path: Path, start: int = 0, size: int | None = None, where: str | None = None
) -> NDArray[Any]:
    """Memory-map the array whose .npy header is at byte `start`; never unpickles."""
    where = where or f"'{path}'"
    end = start + size if size is not None else path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
        try:
            version = npy_format.read_magic(file)
            read = (
                npy_format.read_array_header_1_0
                if version == (1, 0)
                else npy_format.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
        except ValueError as error:
            raise SourceError(f"{where} is not a .npy array: {error}") from error
        start = file.tell()
    if dtype.hasobject:
        raise SourceError(
            f"{where} has dtype object; allowed are bool, integers and floats, so make its rows "
            f"one shape and save them again"
        )
    return _map(
        path, dtype, shape, start=start, end=end, where=where, order="F" if fortran else "C"
    )


def _map(
    path: Path,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    *,
    start: int,
    end: int,
    where: str | None = None,
    order: Any = "C",
) -> NDArray[Any]:
    """Memory-map an array from byte `start` of a file; its data has to end by byte `end`."""
    nbytes = math.prod(shape) * dtype.itemsize
    if start + nbytes > end:
        raise SourceError(
            f"{where or repr(path.name)} is truncated: its header promises {nbytes} bytes of data, "
            f"and {max(end - start, 0)} are there"
        )
    if nbytes == 0:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order)


def _split_arrays(arrays: dict[str, NDArray[Any]], where: str, description: str) -> Source:
    """Sort arrays named x, x_train, train_x, x_valid … into fields of the two splits."""
    splits: dict[str, dict[str, NDArray[Any]]] = {}
    for name, array in arrays.items():
        first, last = _SPLIT_FIRST.fullmatch(name), _SPLIT_LAST.fullmatch(name)
        split, field = first.groups() if first else last.groups()[::-1] if last else ("train", name)
        if field in splits.setdefault(split, {}):
            raise SourceError(f"{where} has the field '{field}' of '{split}' twice (as '{name}')")
        splits[split][field] = array
    if "train" not in splits:
        raise SourceError(
            f"{where} has no training arrays, such as x and y, or x_train and y_train"
        )
    # Where there is more than one, 'test' stays out: nothing may be chosen by it.
    valid = next((splits[name] for name in _VALID_NAMES if name in splits), None)
    return Source(
        ArrayRows(splits["train"], where),
        ArrayRows(valid, f"the validation part of {where}") if valid else None,
        description,
    )


# --- images ---


def _images(path: Path, image_size: ImageSize | None) -> Source:
    try:
        from PIL import Image
    except ImportError as error:
        raise SourceError(
            f"the images in '{path}' need Pillow; pip install 'mophpc[images]'"
        ) from error
    root, valid_root = path, None
    if _is_folder(path / "train") and any(
        _is_folder(child) for child in (path / "train").iterdir()
    ):
        root = path / "train"
        valid_root = next((path / name for name in _VALID_NAMES if _is_folder(path / name)), None)
    names = _classes(root)
    files = {root: _image_files(root, names)}
    if valid_root:
        new = sorted(set(_classes(valid_root)) - set(names))
        if new:
            raise SourceError(
                f"class '{new[0]}' of '{valid_root}' is not among the classes of '{root}'"
            )
        files[valid_root] = _image_files(valid_root, names)
    # One image of each class settles size and colours; the others are checked when they are read.
    modes: set[bool] = set()
    sizes: dict[tuple[int, int], Path] = {}
    for _, group in files[root]:
        sample = group[0]
        try:
            with Image.open(sample) as image:
                modes.add(is_grey(image.mode))
                check_depth(image.mode, sample)
                sizes.setdefault(image.size, sample)
        except (OSError, Image.DecompressionBombError) as error:
            raise SourceError(f"image '{sample}' cannot be read: {error}") from error
    if len(sizes) > 1 and image_size is None:
        one, two = list(sizes.items())[:2]
        raise SourceError(
            f"images differ in size: '{one[1]}' is {one[0][1]} x {one[0][0]} and '{two[1]}' is "
            f"{two[0][1]} x {two[0][0]}; give --image-size to resize them all"
        )
    width, height = next(iter(sizes))
    size = (height, width) if image_size is None else _pair(image_size)
    rows = [
        ImageRows(
            [file for _, group in groups for file in group],
            np.repeat([label for label, _ in groups], [len(group) for _, group in groups]),
            size=size,
            colour=False in modes,
            resize=image_size is not None,
        )
        for groups in files.values()
    ]
    return Source(rows[0], rows[1] if valid_root else None, f"images in {path}", tuple(names))


def _classes(root: Path) -> list[str]:
    return sorted(child.name for child in root.iterdir() if _is_folder(child))


def _image_files(root: Path, names: list[str]) -> list[tuple[int, list[Path]]]:
    """Return (label, files) of each class that `root` has."""
    groups = []
    for label, name in enumerate(names):
        if not (root / name).is_dir():
            continue  # a validation split need not have every class
        files = sorted(
            file
            for file in (root / name).iterdir()
            if file.suffix.lower() in _IMAGES and not file.name.startswith(".")
        )
        if not files:
            raise SourceError(
                f"the class folder '{root / name}' holds no images ({', '.join(sorted(_IMAGES))})"
            )
        groups.append((label, files))
    return groups


def _is_folder(path: Path) -> bool:
    # A store may lie beside the classes, or is just being written there.
    hidden = path.name.startswith((".", "_"))
    return path.is_dir() and not hidden and not (path / "zarr.json").exists()


def _pair(size: ImageSize) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


# --- unpacking ---


def _unpack(target: Path, copy: Callable[[BinaryIO], None]) -> Path:
    """Stream into `target` unless it is there; it appears whole or not at all."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    with scratch.open("wb") as out:
        copy(out)
    scratch.replace(target)
    return target
