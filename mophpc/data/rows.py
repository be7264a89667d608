"""Rows that can be read in any order without loading them all, and the source that holds them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from mophpc.data.store import MIB, Field
from mophpc.errors import SourceError

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_GATHER_BYTES = 8 * MIB


class Rows(Protocol):
    """Rows with random access."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the rows `indices`, in that order, as one array (rows, ...) per field.

        Raises:
            SourceError: a row cannot be read, or is not like the others.
        """
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source. A context manager: leaving it removes what was unpacked."""

    train: Rows
    valid: Rows | None
    """None where the source has no validation split of its own."""
    description: str
    class_names: tuple[str, ...] | None = None
    unpacked: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove temporary files; calling it twice is fine."""
        if self.unpacked is not None:
            self.unpacked.cleanup()


def field_of(name: str, dtype: np.dtype[Any], shape: Sequence[int], where: str) -> Field:
    """Return the field of rows of `shape`.

    Raises:
        SourceError: the name, type or shape cannot be stored.
    """
    if not _NAME.fullmatch(name):
        raise SourceError(
            f"{where} has a field '{name}'; a field's name is letters, digits, '_' and '-' and "
            f"starts with a letter"
        )
    if dtype.kind not in "biufc" or dtype.name not in np.sctypeDict or dtype.itemsize > 16:
        raise SourceError(
            f"field '{name}' of {where} has dtype {dtype}; allowed are bool, integers and floats "
            f"(rows of different shapes or objects must be made into such an array first)"
        )
    if dtype.kind in "fc" and dtype.newbyteorder("=").char in "gG":
        raise SourceError(
            f"field '{name}' of {where} has dtype {dtype}, which differs between machines; "
            f"convert it to float64 or smaller"
        )
    if 0 in shape:
        raise SourceError(f"field '{name}' of {where} has empty rows of shape {tuple(shape)}")
    return Field(name, dtype.newbyteorder("=").name, tuple(int(size) for size in shape))


class ArrayRows:
    """Rows of NumPy arrays or memory maps that share their first dimension."""

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        where: str,
        dtypes: Mapping[str, str] | None = None,
    ) -> None:
        """Check and wrap `arrays`.

        Args:
            arrays: (rows, ...) per field.
            where: what to call the arrays in a message.
            dtypes: types other than the arrays' own, by field.

        Raises:
            SourceError: there is nothing to read, or the arrays do not fit together.
        """
        lengths = {}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise SourceError(
                    f"'{name}' of {where} is a single value; each array must hold one entry per row"
                )
            lengths[name] = len(array)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise SourceError(
                f"the arrays of {where} differ in their number of rows: {listed}; they must share "
                f"the first dimension"
            )
        if not lengths or not next(iter(lengths.values())):
            raise SourceError(f"{where} has no rows")
        types = dtypes or {}
        self._arrays = dict(arrays)
        self._fields = tuple(
            field_of(name, np.dtype(types.get(name, array.dtype)), array.shape[1:], where)
            for name, array in arrays.items()
        )
        self._rows = next(iter(lengths.values()))

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return self._fields

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the rows `indices`, in that order."""
        # In the order of the file, a memory map on a disk reads forward; in pieces, the copy that
        # fancy indexing makes stays small.
        sorter = np.argsort(indices, kind="stable")
        rows = {}
        for field in self._fields:
            array = self._arrays[field.name]
            out = np.empty((len(indices), *field.shape), field.dtype)
            step = max(_GATHER_BYTES // field.row_nbytes, 1)
            for start in range(0, len(indices), step):
                piece = sorter[start : start + step]
                out[piece] = array[indices[piece]]
            rows[field.name] = out
        return rows


class DatasetRows:
    """Rows of a map-style dataset: `len(dataset)`, and `dataset[i]` is `(x, y)` or a dict."""

    def __init__(self, dataset: Any, where: str) -> None:
        """Look at the first item of `dataset`.

        Raises:
            SourceError: it has no length or no items, or the first item cannot be stored.
        """
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise SourceError(
                f"{where} is a {type(dataset).__name__}; it must be a map-style dataset, with "
                f"len(dataset) and dataset[i], or a pair (train, valid) of them"
            )
        self._dataset = dataset
        self._where = where
        self._rows = len(dataset)
        if not self._rows:
            raise SourceError(f"{where} has no rows")
        first = self._item(0)
        self._fields = tuple(
            field_of(name, value.dtype, value.shape, where) for name, value in first.items()
        )
        if not self._fields:
            raise SourceError(f"item 0 of {where} has no fields")

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return self._fields

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the rows `indices`, in that order.

        Raises:
            SourceError: the dataset raised, or an item is not like the first one.
        """
        rows = {
            field.name: np.empty((len(indices), *field.shape), field.dtype)
            for field in self._fields
        }
        for position, index in enumerate(indices.tolist()):
            item = self._item(index)
            if item.keys() != rows.keys():
                raise SourceError(
                    f"item {index} of {self._where} has the fields {', '.join(item)}, and the "
                    f"first one has {', '.join(rows)}"
                )
            for field in self._fields:
                value = item[field.name]
                if value.shape != field.shape or not np.can_cast(value.dtype, field.dtype):
                    raise SourceError(
                        f"field '{field.name}' of item {index} of {self._where} is {value.dtype} "
                        f"{value.shape}, and that of the first one is {field.dtype} {field.shape}; "
                        f"all rows must be alike"
                    )
                rows[field.name][position] = value
        return rows

    def _item(self, index: int) -> dict[str, NDArray[Any]]:
        try:
            item = self._dataset[index]
            if isinstance(item, dict):
                return {str(name): np.asarray(value) for name, value in item.items()}
            pair = item if isinstance(item, tuple | list) else (item,)
            if len(pair) <= 2:
                return {name: np.asarray(part) for name, part in zip("xy", pair, strict=False)}
        except (Exception, SystemExit) as error:  # whatever the user's dataset raises
            raise SourceError(
                f"item {index} of {self._where} cannot be read: {type(error).__name__}: {error}"
            ) from error
        raise SourceError(
            f"item {index} of {self._where} has {len(pair)} parts; it must be (x, y), or a dict of "
            f"named fields"
        )


class ImageRows:
    """Rows of image files: `x` (height, width) or (height, width, 3) uint8, `y` int64."""

    def __init__(
        self,
        files: Sequence[Path],
        labels: NDArray[np.int64],
        *,
        size: tuple[int, int],
        colour: bool,
        resize: bool,
    ) -> None:
        """Wrap `files` with their `labels`.

        Args:
            files: paths of the images.
            labels: (rows,) class of each image.
            size: height and width of a row.
            colour: whether images are read as RGB; otherwise as grey.
            resize: whether images of another size are resized; otherwise they are an error.
        """
        self._files = files
        self._labels = labels
        self._size = size
        self._colour = colour
        self._resize = resize
        shape = (*size, 3) if colour else size
        self._fields = (Field("x", "uint8", shape), Field("y", "int64", ()))

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of a row."""
        return self._fields

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._files)

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the rows `indices`, in that order.

        Raises:
            SourceError: an image cannot be read, or its size or colours differ; names the file.
        """
        x = np.empty((len(indices), *self._fields[0].shape), np.uint8)
        for position, index in enumerate(indices.tolist()):
            x[position] = self._image(self._files[index])
        return {"x": x, "y": self._labels[indices]}

    def _image(self, path: Path) -> NDArray[np.uint8]:
        from PIL import Image

        try:
            with Image.open(path) as image:
                check_depth(image.mode, path)
                if not self._colour and not is_grey(image.mode):
                    raise SourceError(
                        f"image '{path}' has colours ({image.mode}) and others are grey; make "
                        f"them all of one kind"
                    )
                pixels = image.convert("RGB" if self._colour else "L")
            if pixels.size != self._size[::-1]:
                if not self._resize:
                    raise SourceError(
                        f"image '{path}' is {pixels.height} x {pixels.width} and others are "
                        f"{self._size[0]} x {self._size[1]}; give --image-size to resize them all"
                    )
                pixels = pixels.resize(self._size[::-1], Image.Resampling.BILINEAR)
            return np.asarray(pixels)
        except SourceError:
            raise
        except Exception as error:  # Pillow's decoders raise what they like
            raise SourceError(
                f"image '{path}' cannot be read: {type(error).__name__}: {error}"
            ) from error


def is_grey(mode: str) -> bool:
    """Return whether a Pillow mode has no colours."""
    return mode in {"1", "L", "LA", "La"}


def check_depth(mode: str, path: Path) -> None:
    """Refuse images that do not fit uint8.

    Raises:
        SourceError: the image has more than 8 bits per channel.
    """
    if mode.startswith(("I", "F")):
        raise SourceError(
            f"image '{path}' has more than 8 bits per channel (mode {mode}); convert it to 8 bits, "
            f"or give the data as .npz or .npy"
        )
