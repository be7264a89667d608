"""`mophpc launch` as people type it, with a stand-in for sbatch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from mophpc.cli import main

TOML = """
build = "{name}.py:build"
epochs = 3
threads = 3
data = "rows.zarr"
[space]
width = [4, 8, 16, 32, 64]
lr = [0.1, 0.2]
"""
CODE = """
from torch import nn, optim
from mophpc import Task

def build(config):
    model = nn.Linear(6, 3)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    return Task(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=8)
"""
SBATCH = """\
#!/bin/sh
echo "$*" >asked
cat >script
[ -z "$FAILS" ] || { echo "sbatch: error: $FAILS" >&2; exit 1; }
echo "${ANSWER:-4711}"
"""


class Place:
    """A folder with an experiment, from which it is launched."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys

    def write(self, code: str, more: str = "") -> None:
        """Write the experiment anew; its code into a new file, since Python imports one once."""
        name = f"made{len(list(self.folder.glob('made*.py')))}"
        (self.folder / f"{name}.py").write_text(code)
        (self.folder / "tune.toml").write_text(TOML.format(name=name) + more)

    def launch(self, *words: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["launch", "tune.toml", *words])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return int(stop.value.code or 0), out, err

    def refusal(self, *words: str) -> str:
        status, out, err = self.launch(*words)
        assert (status, out) == (2, ""), (status, out, err)
        said = [line for line in err.splitlines() if not line.startswith("note: ")]
        assert len(said) == 1, err
        assert not (self.folder / "script").exists()
        return said[0].removeprefix("mophpc: ")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    with pytest.raises(SystemExit) as stop:
        main(["prepare", str(folder / "rows.npz"), str(folder / "rows.zarr"), "--shards", "4"])
    assert stop.value.code == 0
    return folder / "rows.zarr"


@pytest.fixture
def place(rows, tmp_path, monkeypatch, capsys) -> Place:
    (tmp_path / "rows.zarr").symlink_to(rows)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text(SBATCH)
    (tmp_path / "bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    found = Place(tmp_path, capsys)
    found.write(CODE)
    return found


def test_what_is_printed_is_what_is_submitted(place):
    words = ("--slurm", "--nodes", "4", "--requeue", "--time", "1:00:00")
    status, printed, _ = place.launch(*words, "--dry-run")
    assert status == 0
    assert not (place.folder / "script").exists()
    status, said, _ = place.launch(*words)
    assert status == 0
    assert said == "job 4711 is in the queue: 4 ranks, run folder runs/tune\n"
    assert (place.folder / "script").read_text() == printed
    assert (place.folder / "asked").read_text() == "--parsable\n"
    assert "#SBATCH --cpus-per-task=3\n" in printed
    assert f"# Made by: mophpc launch tune.toml {' '.join(words)}\n" in printed


def test_json(place):
    status, out, _ = place.launch("--slurm", "--json", "--no-check")
    assert status == 0
    answer = json.loads(out)
    assert (answer["job"], answer["run"]) == ("4711", "runs/tune")
    assert answer["text"] == (place.folder / "script").read_text()


def test_the_environment_is_that_of_the_command_or_what_setup_says(place):
    _, printed, _ = place.launch("--slurm", "--dry-run", "--no-check")
    assert "\nexport PATH=" in printed
    (place.folder / "my setup").write_text("module load x\n")
    words = ("--setup", "my setup", "--setup", "module load mpi")
    _, printed, _ = place.launch("--slurm", "--dry-run", "--no-check", *words)
    assert f"\nsource '{place.folder}/my setup' || exit\nmodule load mpi\n" in printed
    assert "export PATH=" not in printed


def test_a_mistake_in_the_experiment_costs_no_wait(place):
    assert "5 ranks but the store has 4 shards" in place.refusal("--slurm", "--nodes", "5")
    place.write(CODE.replace("(6, 3)", "(5, 3)"))
    assert "width=4" in place.refusal("--slurm")
    place.write(CODE.replace("def build", "def other"))
    assert "has no function 'build'" in place.refusal("--slurm", "--dry-run")
    assert place.launch("--slurm", "--no-check")[0] == 0


@pytest.mark.parametrize(
    ("search", "missing"),
    [('method = "asha"\nconfigs = 6', ""), ('method = "tpe"\nconfigs = 6', "optuna")],
)
def test_a_search_whose_configs_come_later_is_looked_at_too(place, search, missing):
    if missing:
        pytest.importorskip(missing)
    more = f"[search]\n{search}\n"
    place.write(CODE, more)
    assert place.launch("--slurm", "--dry-run")[0] == 0
    place.write(CODE.replace("(6, 3)", "(5, 3)"), more)
    assert "width=" in place.refusal("--slurm", "--dry-run")


def test_a_folder_that_is_taken_is_refused_before_the_queue(place):
    (place.folder / "runs/tune").mkdir(parents=True)
    assert place.launch("--slurm", "--no-check")[0] == 0
    (place.folder / "script").unlink()
    (place.folder / "runs/tune/results.json").touch()
    assert "--resume to go on" in place.refusal("--slurm", "--no-check", "--requeue")
    assert place.launch("--slurm", "--no-check", "--resume")[0] == 0


def test_what_sbatch_says_is_passed_on(place, monkeypatch):
    monkeypatch.setenv("FAILS", "invalid partition specified: gpu")
    status, _, err = place.launch("--slurm", "--no-check", "--partition", "gpu")
    assert status == 2
    assert "it said: sbatch: error: invalid partition specified: gpu" in err
    monkeypatch.delenv("FAILS")
    monkeypatch.setenv("ANSWER", "9;cluster2")
    assert place.launch("--slurm", "--no-check")[1].startswith("job 9 is")
    monkeypatch.setenv("PATH", "/nowhere")
    (place.folder / "script").unlink()
    assert "there is no sbatch on PATH" in place.refusal("--slurm", "--no-check")


def test_minutes_that_may_be_meant_as_hours_are_noted(place):
    status, _, err = place.launch("--slurm", "--dry-run", "--no-check", "--time", "4:00")
    assert status == 0
    assert err == "note: --time 4:00 is minutes and seconds; 4 hours are 4:00:00\n"


def test_a_signal_that_would_kill_the_ranks_is_refused(place):
    words = ("--slurm", "--no-check", "--signal", "USR2@90")
    assert "name USR2 there too" in place.refusal(*words)
    place.write(CODE, '[signals]\nalso = ["USR2"]\nlimit_s = 100\n')
    status, _, err = place.launch(*words)
    assert status == 0
    assert "comes 90 s before the time limit" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there is neither --slurm nor --kubernetes"),
        (("--slurm", "--kubernetes"), "exclude each other"),
        (("--kubernetes", "--requeue"), "--requeue is for --slurm"),
        (("--kubernetes", "--partition", "a"), "--partition is for --slurm"),
        (("--slurm", "--image", "a"), "--image is for --kubernetes"),
        (("--kubernetes", "--pvc", "files"), "--kubernetes needs --image"),
        (("--kubernetes", "--image", "a"), "--kubernetes needs --pvc"),
        (("--slurm", "--nodes", "0"), "--nodes is 0; allowed: 1 to 16384"),
        (("--slurm", "--gpus-per-node", "-1"), "--gpus-per-node is -1"),
        (("--slurm", "--ranks-per-node", "0"), "--ranks-per-node is 0"),
        (("--slurm", "--cpus-per-rank", "0"), "--cpus-per-rank is 0"),
        (("--slurm", "--array", "0"), "--array is 0"),
        (("--slurm", "--max-restarts", "-1"), "--max-restarts is -1"),
        (("--slurm", "--time", "4h"), "--time is '4h'; allowed: minutes"),
        (("--slurm", "--mpi", "openmpi"), "allowed with --slurm: pmix, pmi2, mpirun"),
        (("--slurm", "--job-name", "a\nb"), "--job-name is 'a\\nb'"),
        (("--slurm", "--out", "a\nb"), "--out is 'a\\nb'"),
        (("--slurm", "--setup", "a\nb"), "--setup is 'a\\nb'"),
        (("--slurm", "--stage", "a\nb"), "--stage is 'a\\nb'"),
        (("--slurm", "--sbatch-option", "gpu-bind=none"), "hides the other GPUs"),
        (("--slurm", "--sbatch-option", "nodes=4"), "--nodes says how many"),
        (("--slurm", "--signal", "KILL@9"), "--signal is 'KILL@9'"),
        (("--slurm", "--", "--bogus"), "No such option: --bogus"),
        (("--slurm", "--", "--transport", "local"), "is what launch decides"),
        (("--slurm", "--", "--out", "other"), "is what launch decides"),
        (("--slurm", "--requeue", "--", "--replay", "p.json"), "--replay begins a new run"),
        (("--slurm", "--", "--device", "tpu\n"), "one line"),
    ],
)
def test_what_does_not_fit_is_one_sentence(place, words, said):
    assert said in place.refusal("--no-check", *words)


def test_kubernetes(place):
    words = ("--kubernetes", "--nodes", "2", "--image", "a/b:1", "--pvc", "files")
    status, out, err = place.launch(*words, "--namespace", "lab")
    assert (status, err) == (0, "")
    manifest = yaml.safe_load(out)
    assert manifest["metadata"]["name"] == "tune"
    assert manifest["metadata"]["namespace"] == "lab"
    assert manifest["spec"]["mpiReplicaSpecs"]["Worker"]["replicas"] == 2
