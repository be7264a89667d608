"""Users' mistakes: one clear sentence, exit status 2, no traceback, nothing lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from whole_testing import command, complaint, local_run

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]

WRONG_FIELDS = [
    ({"epochs": 'epochs = "ten"'}, "field 'epochs' is 'ten'; allowed: integer"),
    ({"epochs": "epochs = 0"}, "field 'epochs' is 0; allowed: at least 1"),
    ({"epochs": "epoch = 2"}, "unknown field 'epoch'; allowed here: build, data, epochs"),
    ({"seed": "seed = -1"}, "field 'seed' is -1; allowed: at least 0"),
    ({"store": "stores = 'a'"}, "unknown field 'data.stores'; allowed here: store"),
    ({"mode": ""}, "metric 'accuracy' needs a mode"),
    ({"mode": "mode = 'best'"}, "field 'objective.mode' is 'best'; allowed: 'min' or 'max'"),
    ({"metric": "metric = 'f1'"}, "objective.metric is 'f1', which config c000"),
    ({"lr": "lr = 0.1"}, "field 'space.lr' is 0.1; allowed: list"),
    ({"lr": "lr = [[1]]"}, "field 'space.lr.0' is [1]; allowed: a boolean, integer, float or"),
    ({"lr": "lr = []"}, "field 'space.lr' is []; allowed: "),
    ({"lr": "lr = [1, 1]"}, "space.lr holds a value twice"),
    ({"width": "width ="}, "not TOML"),
    ({"epochs": "epochs = 99999999999"}, "field 'epochs' is 99999999999; allowed: at most 1000000"),
    ({"width": f"a = {list(range(400))}\nb = {list(range(400))}"}, "has 320000 combinations"),
    ({"seed": "threads = 100000"}, "field 'threads' is 100000; allowed: at most 1024"),
    ({"[space]": "[schedule]\npolicy = 'best'\n[space]"}, "'random' or 'round-robin'"),
    (
        {"[space]": "[device]\nuse = 'gpu'\n[space]"},
        "field 'device.use' is 'gpu'; allowed: 'auto', 'cpu', 'cuda' or 'twin'",
    ),
    (
        {"[space]": "[device]\nindices = [0, -1]\n[space]"},
        "field 'device.indices.1' is -1; allowed: at least 0",
    ),
    (
        {"[space]": "[device]\nbuffers = 1\n[space]"},
        "field 'device.buffers' is 1; allowed: at least 2",
    ),
    (
        {"[space]": "[device]\nmemory = 5\n[space]"},
        "unknown field 'device.memory'; allowed here: use, indices, deterministic",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG_FIELDS)
def test_wrong_experiment(
    capsys: Capture, write_experiment: Write, tmp_path: Path, changes: dict[str, str], sentence: str
) -> None:
    status, _, err = local_run(capsys, write_experiment(**changes), tmp_path / "run")
    assert status == 2
    assert sentence in complaint(err)


WRONG_BUILDS = [
    ("raises", "config c002-width=8,lr=0.01: build raised KeyError: 'momentum'"),
    ("exits", "config c000-width=4,lr=0.01: build raised SystemExit: no licence"),
    ("trains_nothing", "the optimizer has a parameter of shape (1,) that belongs to no module"),
    ("metric_is_a_word", "c000-width=4,lr=0.01: metric 'accuracy' returned a str; it must return"),
    ("metric_is_a_vector", "metric 'accuracy' returned a Tensor of shape (8,)"),
    ("returns_model", "build returned a Sequential; it must return a mophpc.Task"),
    ("wrong_shape", "config c000-width=4,lr=0.01: training on the first batch raised RuntimeError"),
    ("batch_of_seven", "the last batch of a shard has 1 of 7 rows"),
    ("missing", "has no function 'missing'; it has accuracy, batch_of_seven, build"),
    ("NOT_A_FUNCTION", "is a int, not a function"),
]


@pytest.mark.parametrize(("build", "sentence"), WRONG_BUILDS)
@pytest.mark.parametrize("first", ["run", "plan"])
def test_wrong_build(
    capsys: Capture, write_experiment: Write, tmp_path: Path, build: str, sentence: str, first: str
) -> None:
    toml = write_experiment(build)
    if first == "run":
        status, _, err = local_run(capsys, toml, tmp_path / "run")
    else:
        status, _, err = command(capsys, "plan", toml, "--ranks", 2)
    assert status == 2
    assert sentence in complaint(err)


def test_a_mistake_in_build_does_not_use_the_folder_up(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    assert local_run(capsys, write_experiment("raises"), tmp_path / "run")[0] == 2
    assert "Traceback" in (tmp_path / "run/logs/rank-0000.log").read_text()
    status, _, err = local_run(capsys, write_experiment(), tmp_path / "run")
    assert status == 0, err


def test_a_file_that_leaves_the_process(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    toml = write_experiment()
    toml.write_text("build = 'leaves.py:build'\n" + toml.read_text().partition('build"\n')[2])
    for words in (["plan", toml, "--ranks", 2], ["run", toml, "--out", tmp_path / "run"]):
        extra = ["--transport", "local", "--ranks", 2] if words[0] == "run" else []
        status, _, err = command(capsys, *words, *extra)
        assert status == 2
        assert "failed: SystemExit: 0" in complaint(err)
    source = f"{Path(__file__).parent}/user_code.py:leaves"
    status, _, err = command(capsys, "prepare", source, tmp_path / "s.zarr", "--shards", 2)
    assert status == 2
    assert "SystemExit" in complaint(err)


def test_one_line_in_a_run(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    status, _, err = local_run(capsys, write_experiment("two_lines"), tmp_path / "run", ranks=1)
    assert status == 1
    assert complaint(err).endswith("logs/rank-0000.log)")
    assert "second line" not in err
    assert "second line" in (tmp_path / "run/logs/rank-0000.log").read_text()


def test_more_visits_than_can_be_planned(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    toml = write_experiment(epochs="epochs = 1000000")
    status, _, err = command(capsys, "plan", toml, "--ranks", 2)
    assert status == 2
    assert "are 16000000 visits; at most 10000000 can be planned" in complaint(err)


def test_a_picture_that_cannot_be_written(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    words = ["plan", write_experiment(), "--ranks", 2, "--gantt", tmp_path / "no" / "plan.svg"]
    status, _, err = command(capsys, *words)
    assert status == 2
    assert "No such file or directory; name a file in a folder that exists" in complaint(err)


def test_no_experiment(capsys: Capture, tmp_path: Path) -> None:
    status, _, err = local_run(capsys, tmp_path / "no.toml", tmp_path / "run")
    assert status == 2
    assert "does not exist; give a TOML file" in complaint(err)


@pytest.mark.parametrize("command_name", ["run", "plan"])
def test_missing_store(
    capsys: Capture, write_experiment: Write, tmp_path: Path, command_name: str
) -> None:
    toml = write_experiment(store="store = 'no.zarr'")
    arguments = ["--ranks", 2] if command_name == "plan" else ["--out", tmp_path / "run"]
    extra = ["--transport", "local"] if command_name == "run" else []
    status, _, err = command(capsys, command_name, toml, *arguments, *extra)
    assert status == 2
    assert "make one with 'mophpc prepare" in complaint(err)
    assert not (tmp_path / "run").exists()


def test_half_written_store(
    capsys: Capture, write_experiment: Write, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "half.zarr.partial")
    toml = write_experiment(store=f"store = '{tmp_path}/half.zarr'")
    status, _, err = local_run(capsys, toml, tmp_path / "run")
    assert status == 2
    assert "is half-written" in complaint(err)


def test_foreign_store(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    toml = write_experiment(store=f"store = '{tmp_path}/other'")
    status, _, err = local_run(capsys, toml, tmp_path / "run")
    assert status == 2
    assert "is not a dataset store of mophpc" in complaint(err)


def test_corrupt_chunk(
    capsys: Capture, write_experiment: Write, store: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "bad.zarr")
    victim = tmp_path / "bad.zarr/train/x/c/2/0"
    raw = bytearray(victim.read_bytes())
    raw[20] ^= 1
    victim.write_bytes(raw)
    toml = write_experiment(store=f"store = '{tmp_path}/bad.zarr'")
    status, _, err = local_run(capsys, toml, tmp_path / "run")
    assert status == 2
    assert "array train/x, shard 2" in complaint(err)


def test_more_ranks_than_shards(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    status, _, err = local_run(capsys, write_experiment(), tmp_path / "run", ranks=5)
    assert status == 2
    assert "5 ranks but the store has 4 shards" in complaint(err)
    assert "--shards 5" in err


def test_a_folder_that_holds_a_run(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    toml = write_experiment()
    assert local_run(capsys, toml, tmp_path / "run")[0] == 0
    before = (tmp_path / "run/results.json").read_bytes()
    status, _, err = local_run(capsys, toml, tmp_path / "run")
    assert status == 2
    assert "already holds a run" in complaint(err)
    assert (tmp_path / "run/results.json").read_bytes() == before


def test_a_folder_that_holds_something_else(
    capsys: Capture, write_experiment: Write, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").touch()
    status, _, err = local_run(capsys, write_experiment(), tmp_path / "thesis")
    assert status == 2
    assert "is not empty (it has chapter.tex)" in complaint(err)


WRONG_WORDS = [
    (["run"], "Missing argument"),
    (["dance"], "No such command 'dance'"),
    (["run", "a.toml", "--out", "b", "--speed", "9"], "No such option: --speed"),
    (["run", "a.toml", "--out", "b", "--ranks", "4"], "start with mpirun -n 4"),
    (["prepare", "digits", "s.zarr", "--shards", "2", "--valid", "0"], "between 0 and 1"),
    (["run", "a.toml", "--out", "b", "--transport", "pigeon"], "allowed: mpi, local"),
    (["prepare", "nowhere", "s.zarr", "--shards", "2"], "nowhere"),
    (["prepare", "digits", "s.zarr", "--shards", "0"], "greater than or equal to 1"),
    (["inspect", "nowhere"], "there is no store"),
    (["verify", "nowhere"], "holds no run"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG_WORDS)
def test_wrong_words(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = command(capsys, *words)
    assert status == 2
    assert sentence in complaint(err)


def test_verify_wrong_config(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    assert local_run(capsys, write_experiment(), tmp_path / "run")[0] == 0
    status, _, err = command(capsys, "verify", tmp_path / "run", "--config", "99")
    assert status == 2
    assert "the run has no config '99'; allowed: 0 to 3" in complaint(err)
