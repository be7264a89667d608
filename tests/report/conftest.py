"""Run folders that are made up once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_up import Shape, write_run


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that nobody may change."""
    return write_run(tmp_path_factory.mktemp("made-up") / "pattern", Shape())


@pytest.fixture
def folder(pattern: Path, tmp_path: Path) -> Path:
    """A small run."""
    return Path(shutil.copytree(pattern, tmp_path / "first"))
