"""The rows of results.json as `mophpc verify` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mophpc.errors import RunFolderError
from mophpc.recorded import check_shards, read_rows

VISIT = {"epoch": 0, "shard": 1, "rank": 0}
COPY = {"epoch": 1, "source": 0, "hyperparameters": {"lr": 0.2}}


def row(config_id: int, **changes: Any) -> dict[str, Any]:
    found = {"config_id": config_id, "config": f"c{config_id:03d}", "status": "done"}
    return found | {"hyperparameters": {}, "state_sha256": "0" * 64, "route": [VISIT]} | changes


def write(run: Path, *rows: dict[str, Any]) -> Path:
    (run / "experiment.toml").touch()
    (run / "results.json").write_text(json.dumps({"configs": rows}))
    return run


def test_rows_are_read(tmp_path: Path) -> None:
    first = COPY | {"epoch": 0, "source": None}
    rows = [row(0), row(1, lineage=[first, COPY])]
    assert read_rows(write(tmp_path, *rows)) == rows


def test_a_run_that_was_cut_off_can_go_on(tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").touch()
    with pytest.raises(RunFolderError, match=r"did not end: .* go on with --resume"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"config_id": "1"},
        {"config_id": True},
        {"config_id": 7},
        {"config": 3},
        {"status": None},
        {"hyperparameters": []},
        {"state_sha256": 0},
        {"route": {}},
        {"route": [3]},
        {"route": [{"epoch": 0}]},
        {"route": [VISIT | {"shard": "0"}]},
        {"route": [VISIT | {"epoch": -1}]},
        {"lineage": 3},
        {"lineage": [[]]},
        {"lineage": [COPY | {"hyperparameters": 1}]},
        {"lineage": [COPY | {"epoch": "1"}]},
        {"lineage": [COPY | {"source": 2}]},
        {"lineage": [COPY | {"source": "0"}]},
    ],
    ids=str,
)
def test_a_row_that_cannot_be_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RunFolderError, match=r"results.json' is damaged: .*; restore it, or run"):
        read_rows(write(tmp_path, row(0), row(1) | change))


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    rows = [row(0), row(1, route=[VISIT | {"shard": 4}])]
    check_shards(tmp_path, rows, 5)
    with pytest.raises(RunFolderError, match="config 1 was on shard 4, and the store has 4"):
        check_shards(tmp_path, rows, 4)
