from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mophpc.data import open_source
from mophpc.data.rows import Rows
from mophpc.errors import SourceError

PICKED = np.array([3, 0, 2, 2])


def write_idx(path: Path, array: np.ndarray[Any, Any], code: int = 8) -> None:
    raw = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def idx_folder(folder: Path, gz: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    images = np.arange(5 * 3 * 2, dtype=np.uint8).reshape(5, 3, 2)
    write_idx(folder / f"train-images-idx3-ubyte{gz}", images)
    write_idx(folder / f"train-labels-idx1-ubyte{gz}", np.arange(5, dtype=np.uint8))
    write_idx(folder / f"t10k-images-idx3-ubyte{gz}", images[:2] + 100)
    write_idx(folder / f"t10k-labels-idx1-ubyte{gz}", np.arange(2, dtype=np.uint8))
    return folder


def image_folder(folder: Path, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> Path:
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            value = 10 * label + number
            colour: Any = (value, value + 1, value + 2) if mode == "RGB" else value
            Image.new(mode, size, colour).save(folder / name / f"{number}.png")
    return folder


def shapes(rows: Rows) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {field.name: (field.dtype, field.shape) for field in rows.fields}


def error_of(source: Path | str, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught, open_source(str(source), **settings):
        pass
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_digits() -> None:
    with open_source("digits") as source:
        assert len(source.train) == 1797
        assert source.valid is None
        assert source.class_names == tuple("0123456789")
        assert shapes(source.train) == {"x": ("uint8", (8, 8)), "y": ("int64", ())}
        assert source.train.read(np.arange(1797))["x"].max() == 16


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_idx(tmp_path: Path, gz: str) -> None:
    with open_source(str(idx_folder(tmp_path / "idx", gz))) as source:
        assert shapes(source.train) == {"x": ("uint8", (3, 2)), "y": ("int64", ())}
        rows = source.train.read(PICKED)
        assert rows["y"].tolist() == [3, 0, 2, 2]
        assert rows["x"][1].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert rows["x"].flags.writeable
        assert source.valid is not None
        assert source.valid.read(np.array([1]))["x"][0, 0, 0] == 106


def test_unpacked_files_go_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with open_source(str(idx_folder(tmp_path / "idx", ".gz"))):
        assert len(list(temporary.rglob("*-ubyte"))) == 4
    assert list(temporary.iterdir()) == []
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no")
    error_of(tmp_path / "idx")
    assert list(temporary.iterdir()) == []


def test_idx_errors(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "idx")
    images = folder / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    assert "'train-images-idx3-ubyte' is truncated: its header promises 30 bytes" in error_of(
        folder
    )
    images.write_bytes(whole[:6])
    assert "is truncated" in error_of(folder)
    images.write_bytes(b"\x89PNG" + whole)
    assert "is not an IDX file: it starts with 89504e47" in error_of(folder)
    images.unlink()
    assert "lacks the IDX file train-images-idx3-ubyte" in error_of(folder)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:-9])
    assert "train-images-idx3-ubyte.gz' is truncated or not gzip" in error_of(folder)
    write_idx(images, np.zeros((4, 3, 2), np.uint8))
    assert "differ in their number of rows: x has 4, y has 5" in error_of(folder)
    write_idx(images, np.zeros((0, 3, 2), np.uint8))
    write_idx(folder / "train-labels-idx1-ubyte", np.zeros(0, np.uint8))
    assert "has no rows" in error_of(folder)


def test_idx_of_wider_types(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "idx")
    write_idx(folder / "train-images-idx3-ubyte", np.arange(5.0).astype(">f4").reshape(5, 1), 13)
    with open_source(str(folder)) as source:
        assert shapes(source.train)["x"] == ("float32", (1,))
        assert source.train.read(PICKED)["x"][:, 0].tolist() == [3, 0, 2, 2]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Any) -> None:
    x = np.asfortranarray(np.arange(12, dtype=">i2").reshape(4, 3))
    save(tmp_path / "a.npz", x_train=x, y_train=np.arange(4), x_test=x[:2], y_test=np.arange(2))
    with open_source(str(tmp_path / "a.npz")) as source:
        rows = source.train.read(PICKED)
        assert rows["x"].tolist() == x[PICKED].tolist()
        assert shapes(source.train) == {"x": ("int16", (3,)), "y": ("int64", ())}
        assert source.valid is not None
        assert len(source.valid) == 2


def test_npz_of_any_fields(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 2)), mask=np.ones((4, 2), bool))
    with open_source(str(tmp_path / "a.npz")) as source:
        assert shapes(source.train) == {"image": ("float64", (2,)), "mask": ("bool", (2,))}
        assert source.valid is None


def test_npz_prefers_val_to_test(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(4), x_test=np.zeros(2), val_x=np.zeros(3))
    with open_source(str(tmp_path / "a.npz")) as source:
        assert source.valid is not None
        assert len(source.valid) == 3


def test_npz_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"

    def wrong(**arrays: Any) -> str:
        np.savez(path, **arrays)
        return error_of(path)

    ragged = np.array([[1], [1, 2]], dtype=object)
    assert "'x' of" in wrong(x=ragged)
    assert "dtype object; allowed are bool, integers and floats" in wrong(x=ragged)
    assert "x has 3, y has 2" in wrong(x=np.zeros(3), y=np.zeros(2))
    assert "has no rows" in wrong(x=np.zeros((0, 3)))
    assert "single value" in wrong(x=np.zeros(3), epoch=np.array(3))
    assert "field 'x' of 'train' twice" in wrong(x=np.zeros(3), x_train=np.zeros(3))
    assert "no training arrays" in wrong(x_test=np.zeros(3))
    assert "dtype <U1" in wrong(x=np.array(["a", "b"]))
    assert "datetime64" in wrong(x=np.array(["2020-01-01"], dtype="M8[D]"))
    assert "has a field '0'" in wrong(**{"0": np.zeros(3)})
    assert "empty rows of shape (0,)" in wrong(x=np.zeros((3, 0)))
    whole = (path.read_bytes())[:-30]
    path.write_bytes(whole)
    assert "truncated or not an .npz file" in error_of(path)
    path.write_bytes(b"PK nonsense")
    assert "truncated or not an .npz file" in error_of(path)
    np.savez_compressed(path, x=np.random.default_rng(0).random(999))
    raw = bytearray(path.read_bytes())
    raw[500] ^= 255
    path.write_bytes(raw)
    assert "truncated or not an .npz file" in error_of(path)


@pytest.mark.parametrize("given", ["", "x.npy"])
def test_npy(tmp_path: Path, given: str) -> None:
    np.save(tmp_path / "x.npy", np.arange(8.0, dtype=np.float32).reshape(4, 2))
    np.save(tmp_path / "y.npy", np.arange(4))
    with open_source(str(tmp_path / given)) as source:
        assert shapes(source.train) == {"x": ("float32", (2,)), "y": ("int64", ())}
        assert source.train.read(PICKED)["y"].tolist() == [3, 0, 2, 2]


def test_npy_folder_with_splits(tmp_path: Path) -> None:
    for name, rows in (("train_x", 4), ("train_y", 4), ("valid_x", 2), ("valid_y", 2)):
        np.save(tmp_path / f"{name}.npy", np.zeros(rows))
    with open_source(str(tmp_path)) as source:
        assert source.valid is not None
        assert (len(source.train), len(source.valid)) == (4, 2)


def test_npy_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(100))
    path.write_bytes(path.read_bytes()[:-1])
    assert "x.npy' is truncated: its header promises 800 bytes" in error_of(path)
    path.write_bytes(b"not numpy")
    assert "x.npy' is not a .npy array" in error_of(path)
    np.save(path, np.array([None, 1], dtype=object), allow_pickle=True)
    assert "dtype object" in error_of(path)
    np.save(tmp_path / "data.npy", np.zeros(3))
    assert "name it x.npy and put y.npy beside it" in error_of(tmp_path / "data.npy")
    if np.dtype("longdouble").itemsize == 16:
        np.save(path, np.zeros(3, "longdouble"))
        assert "differs between machines" in error_of(path)


def test_images(tmp_path: Path) -> None:
    with open_source(str(image_folder(tmp_path / "pets"))) as source:
        assert source.class_names == ("cat", "dog")
        assert shapes(source.train) == {"x": ("uint8", (3, 4, 3)), "y": ("int64", ())}
        rows = source.train.read(PICKED)
        assert rows["y"].tolist() == [1, 0, 0, 0]
        assert rows["x"][:, 0, 0].tolist() == [[10, 11, 12], [0, 1, 2], [2, 3, 4], [2, 3, 4]]


def test_images_with_splits_and_sizes(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", "L")
    image_folder(tmp_path / "val", "L", (9, 9))
    with open_source(str(tmp_path), image_size=5) as source:
        assert shapes(source.train)["x"] == ("uint8", (5, 5))
        assert source.valid is not None
        assert source.valid.read(PICKED)["x"][0].tolist() == [[10] * 5] * 5
    with open_source(str(tmp_path), image_size=(2, 6)) as source:
        assert shapes(source.train)["x"] == ("uint8", (2, 6))
    with open_source(str(tmp_path)) as source:
        assert source.valid is not None
        with pytest.raises(
            SourceError, match=r"0.png' is 9 x 9 and others are 3 x 4; give --image"
        ):
            source.valid.read(PICKED)


def test_image_errors(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets", "L")
    odd = root / "cat" / "1.png"

    def read() -> str:
        with pytest.raises(SourceError) as caught, open_source(str(root)) as source:
            source.train.read(np.arange(6))
        return str(caught.value)

    odd.write_bytes(odd.read_bytes()[:40])
    assert f"image '{odd}' cannot be read" in read()
    odd.write_bytes(b"GIF but not quite")
    assert f"image '{odd}' cannot be read" in read()
    Image.new("RGB", (4, 3)).save(odd)
    assert f"image '{odd}' has colours (RGB) and others are grey" in read()
    Image.new("I;16", (4, 3)).save(odd)
    assert "more than 8 bits" in read()
    Image.new("L", (4, 3)).save(odd)
    Image.new("L", (7, 7)).save(root / "dog" / "0.png")
    assert "images differ in size" in read()
    (root / "empty").mkdir()
    assert "holds no images" in error_of(root)


def test_grey_images_among_coloured_ones_become_coloured(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "pets")
    Image.new("L", (4, 3), 77).save(root / "cat" / "0.png")
    with open_source(str(root)) as source:
        assert source.train.read(np.array([0]))["x"][0, 0, 0].tolist() == [77, 77, 77]


def test_validation_images_of_an_unknown_class(tmp_path: Path) -> None:
    image_folder(tmp_path / "train")
    (image_folder(tmp_path / "test") / "dog").rename(tmp_path / "test" / "wolf")
    assert "class 'wolf' of" in error_of(tmp_path)


DATASETS = """
import numpy as np
class Pairs:
    def __init__(self, rows=5): self.rows = rows
    def __len__(self): return self.rows
    def __getitem__(self, i):
        if i >= self.rows: raise IndexError(i)
        return np.full((2, 2), i, np.float32), i
class Named(Pairs):
    def __getitem__(self, i): return {"tokens": [i, i], "mask": np.bool_(True)}
class Ragged(Pairs):
    def __getitem__(self, i): return [0] * (i + 1), i
class Renamed(Pairs):
    def __getitem__(self, i): return {f"f{i // 2}": i}
class Broken(Pairs):
    def __getitem__(self, i): return 1 / (3 - i), i
class Triple(Pairs):
    def __getitem__(self, i): return 1, 2, 3
class Words(Pairs):
    def __getitem__(self, i): return "word", i
def pairs(): return Pairs()
def split(): return Pairs(), Pairs(2)
def named(): return Named()
def ragged(): return Ragged()
def renamed(): return Renamed()
def broken(): return Broken()
def triple(): return Triple()
def words(): return Words()
def empty(): return Pairs(0)
def stream(): return iter(range(3))
def arrays(): return np.zeros((3, 2)), np.zeros(3)
def failing(): raise RuntimeError("no network")
def plain(): return list(zip(range(4), range(4)))
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "sets.py").write_text(DATASETS)
    return tmp_path / "sets.py"


def test_function(module: Path) -> None:
    with open_source(f"{module}:pairs") as source:
        assert shapes(source.train) == {"x": ("float32", (2, 2)), "y": ("int64", ())}
        assert source.train.read(PICKED)["x"][:, 0, 0].tolist() == [3, 0, 2, 2]
    with open_source(f"{module}:named") as source:
        assert shapes(source.train) == {"tokens": ("int64", (2,)), "mask": ("bool", ())}
    with open_source(f"{module}:split") as source:
        assert source.valid is not None
        assert (len(source.train), len(source.valid)) == (5, 2)
    with open_source(f"{module}:plain") as source:
        assert source.train.read(PICKED)["x"].tolist() == [3, 0, 2, 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("triple", "has 3 parts; it must be (x, y), or a dict"),
        ("words", "dtype <U4"),
        ("empty", "has no rows"),
        ("stream", "must be a map-style dataset"),
        ("arrays", "returned a pair of arrays"),
        ("failing", "RuntimeError: no network"),
        ("nothing", "has no function 'nothing'"),
    ],
)
def test_function_errors(module: Path, name: str, message: str) -> None:
    assert message in error_of(f"{module}:{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ragged", r"field 'x' of item 3 .* all rows must be alike"),
        ("renamed", r"item 3 .* has the fields f1, and the first one has f0"),
        ("broken", r"item 3 .* cannot be read: ZeroDivisionError"),
    ],
)
def test_items_that_differ(module: Path, name: str, message: str) -> None:
    with (
        open_source(f"{module}:{name}") as source,
        pytest.raises(SourceError, match=message),
    ):
        source.train.read(PICKED)


def test_sources_that_are_none(tmp_path: Path) -> None:
    assert "there is no source 'nope'; a source is the word 'digits'" in error_of("nope")
    (tmp_path / "a.csv").write_text("1,2")
    assert "a.csv' is not a source" in error_of(tmp_path / "a.csv")
    (tmp_path / "empty").mkdir()
    assert "holds nothing that can be prepared" in error_of(tmp_path / "empty")
    assert "there is no file" in error_of(tmp_path / "gone.py:function")
    assert "image size is 0" in error_of("digits", image_size=0)
