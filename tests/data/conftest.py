from __future__ import annotations

from pathlib import Path

import pytest
from data_testing import save_npz

from mophpc.data import StoreInfo, prepare


@pytest.fixture
def npz(tmp_path: Path) -> str:
    return save_npz(tmp_path / "rows.npz")


@pytest.fixture
def store(tmp_path: Path, npz: str) -> StoreInfo:
    """100 rows: 90 in three shards of several objects each, 10 for validation."""
    return prepare(npz, tmp_path / "rows.zarr", num_shards=3, seed=1, max_object_bytes=300)
