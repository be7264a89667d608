"""A small dataset and experiments on it, as a user has them: files in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import whole_testing

from mophpc.cli import main

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 4 shards, 144 training rows of 6 numbers in 3 classes."""
    folder = tmp_path_factory.mktemp("store")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((160, 6)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    with pytest.raises(SystemExit) as stop:
        main(["prepare", str(folder / "rows.npz"), str(folder / "rows.zarr"), "--shards", "4"])
    assert stop.value.code == 0
    return folder / "rows.zarr"


@pytest.fixture
def write_experiment(store: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes an experiment's TOML file, with changes."""

    def write(build: str = "build", **changes: str) -> Path:
        text = whole_testing.TOML.format(file=HERE / "user_code.py", build=build, store=store)
        for old, new in changes.items():
            line = next(row for row in text.splitlines() if row.startswith(old))
            text = text.replace(line, new)
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return path

    return write
