"""What the script does, with stand-ins for srun, mophpc and scontrol: no Slurm."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from mophpc.cli import main
from mophpc.errors import LaunchError
from mophpc.submit.settings import Run, Slurm
from mophpc.submit.slurm import sbatch_script

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = Run(experiment="tune.toml", out="runs/tune", nodes=2, time="4:00:00")

# Ranks that go on until they are told to stop, or end at once; $END is what they end with.
RANKS = """\
    #!/usr/bin/env bash
    echo "$*" >>calls
    [[ -z "$DEAF" ]] || { echo up >>calls; exec sleep 9; }
    trap 'echo USR1 >>calls; exit 75' USR1
    [[ -z "$WAITS" ]] || { echo up >>calls; while :; do sleep 0.02; done; }
    exit "${END:-0}"
"""


class Submitted:
    """A script in a folder of its own, started as slurmd starts one."""

    def __init__(self, folder: Path, script: str, **settings: str) -> None:
        self.folder = folder
        (folder / "script").write_text(script)
        for name, text in {
            "srun": RANKS,
            "mpirun": "#!/bin/sh\n[ $1 != --version ] || exec echo HYDRA\nexec srun mpirun $*\n",
            "scontrol": '#!/bin/sh\necho "scontrol $*" >>calls\n',
        }.items():
            (folder / name).write_text(textwrap.dedent(text))
            (folder / name).chmod(0o755)
        self.process = subprocess.Popen(
            ["bash", "script"],
            cwd=folder,
            env={
                "PATH": f"{folder}:/usr/bin:/bin",
                "SLURM_JOB_ID": "17",
                "SLURM_NTASKS": "2",
                "DEAF": "",
                "WAITS": "",
                **settings,
            },
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, call: str) -> None:
        limit = time.monotonic() + 10.0
        while call not in self.calls():
            assert time.monotonic() < limit, (call, self.calls())
            time.sleep(0.01)

    def end(self) -> tuple[int, list[str]]:
        """Wait for the end; return the status and what was called after the ranks."""
        try:
            self.process.communicate(timeout=10.0)
        finally:
            self.process.kill()
        return self.process.returncode, self.calls()[1:]


@pytest.fixture
def submitted(tmp_path: Path):
    started: list[Submitted] = []

    def start(slurm: Slurm, run: Run = RUN, **settings: str) -> Submitted:
        started.append(Submitted(tmp_path, sbatch_script(run, slurm), **settings))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()


REQUEUE = Slurm(job_name="tune", requeue=True)
PLAIN = Slurm(job_name="tune")


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_a_run_that_ends_is_not_put_back(submitted, status):
    assert submitted(REQUEUE, END=str(status)).end() == (status, [])


def test_a_run_that_can_go_on_is_put_back(submitted):
    assert submitted(REQUEUE, END="75").end() == (75, ["scontrol requeue 17"])


def test_without_requeue_it_is_not(submitted):
    assert submitted(PLAIN, END="75").end() == (75, [])


@pytest.mark.parametrize(("again", "calls"), [("19", ["scontrol requeue 17"]), ("20", [])])
def test_it_is_put_back_only_so_often(submitted, again, calls):
    assert submitted(REQUEUE, END="75", SLURM_RESTART_COUNT=again).end() == (75, calls)


def test_the_ranks_get_the_signal_and_end_before_the_script(submitted):
    script = submitted(REQUEUE, WAITS="1")
    script.wait_for("up")
    script.process.send_signal(signal.SIGUSR1)
    assert script.end() == (75, ["up", "USR1", "scontrol requeue 17"])


def test_term_is_waited_out_and_nothing_is_put_back(submitted):
    script = submitted(REQUEUE, WAITS="1")
    script.wait_for("up")
    script.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert script.process.poll() is None
    script.process.send_signal(signal.SIGUSR1)
    assert script.end() == (75, ["up", "USR1"])


def test_a_signal_that_comes_before_the_ranks_do(submitted):
    slow = Slurm(
        job_name="tune",
        requeue=True,
        setup=("echo slow >>calls; until [[ -e go ]]; do sleep 0.02; done",),
    )
    script = submitted(slow)
    script.wait_for("slow")
    script.process.send_signal(signal.SIGUSR1)
    (script.folder / "go").touch()
    assert script.end() == (75, ["scontrol requeue 17"])
    for name in ("calls", "go"):
        (script.folder / name).unlink()
    script = submitted(slow)
    script.wait_for("slow")
    script.process.send_signal(signal.SIGTERM)
    (script.folder / "go").touch()
    assert script.end() == (75, [])


def test_ranks_that_die_of_a_signal_that_they_did_not_know_yet(submitted):
    script = submitted(REQUEUE, DEAF="1")
    script.wait_for("up")
    time.sleep(0.1)
    script.process.send_signal(signal.SIGUSR1)
    assert script.end() == (128 + signal.SIGUSR1, ["up", "scontrol requeue 17"])


@pytest.mark.parametrize(
    ("slurm", "run", "first", "later"),
    [
        (PLAIN, RUN, "", ""),
        (REQUEUE, RUN, "", " --resume"),
        (
            REQUEUE,
            Run(experiment="tune.toml", out="runs/tune", nodes=2, resume=True),
            *[" --resume"] * 2,
        ),
    ],
)
def test_only_a_run_that_comes_back_is_resumed(submitted, slurm, run, first, later):
    expected = (
        "--mpi=pmix --cpus-per-task=1 --kill-on-bad-exit=1 mophpc run tune.toml --out runs/tune"
    )
    for settings, resume in (({}, first), ({"SLURM_RESTART_COUNT": "1"}, later)):
        script = submitted(slurm, run, **settings)
        script.end()
        assert script.calls() == [expected + resume]
        (script.folder / "calls").unlink()


def test_mpirun_and_an_array_and_paths_with_all_kinds_of_marks(submitted, tmp_path):
    run = Run(
        experiment="it's $HOME.toml",
        out="runs/$(touch evil) `x`",
        nodes=2,
        stage="$TMPDIR/x;y",
        options=("--costs", "a b"),
    )
    slurm = Slurm(job_name="tune", mpi="mpirun", array=3)
    script = submitted(slurm, run, SLURM_ARRAY_TASK_ID="2", TMPDIR="/tmp/t t")
    assert script.end()[0] == 0
    assert script.calls() == [
        "mpirun -n 2 mophpc run it's $HOME.toml --out runs/$(touch evil) `x`/2 "
        "--stage /tmp/t t/x;y --costs a b"
    ]
    assert not (tmp_path / "evil").exists()


def directives(text: str) -> list[str]:
    return [row.removeprefix("#SBATCH ") for row in text.splitlines() if row.startswith("#SBATCH")]


def test_what_slurm_is_asked_for():
    run = Run(
        experiment="tune.toml",
        out="runs/tune",
        nodes=4,
        gpus_per_node=8,
        cpus_per_rank=6,
        memory="400g",
        time="1-12",
    )
    slurm = Slurm(
        job_name="tune",
        partition="gpu",
        account="me",
        qos="long",
        requeue=True,
        signal="usr2@300",
        sbatch_options=("constraint=a100",),
    )
    assert directives(sbatch_script(run, slurm)) == [
        "--job-name=tune",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--cpus-per-task=6",
        "--gpus-per-node=8",
        "--mem=400G",
        "--time=1-12",
        "--partition=gpu",
        "--account=me",
        "--qos=long",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--signal=B:USR2@300",
        "--requeue",
        "--constraint=a100",
    ]
    text = sbatch_script(run, slurm)
    assert "gpus-per-task" not in text
    assert "gpu-bind" not in text


def test_a_signal_that_leaves_no_time_is_refused():
    short = Run(experiment="a.toml", out="runs/a", nodes=1, time="2:00")
    with pytest.raises(LaunchError, match="leaves nothing of --time 2:00, which is 120 seconds"):
        sbatch_script(short, PLAIN)


@pytest.mark.parametrize("name", ["run", "requeue", "array"])
def test_the_files_of_slurm_are_what_their_command_prints(name, capsys, monkeypatch):
    path = REPOSITORY / "slurm" / f"{name}.sbatch"
    monkeypatch.chdir(REPOSITORY)
    made_by = path.read_text().splitlines()[1].removeprefix("# Made by: ")
    words = shlex.split(made_by)
    assert words[:2] == ["mophpc", "launch"]
    with pytest.raises(SystemExit) as stop:
        main([*words[1:], "--dry-run"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("mpi", ["pmix", "mpirun"])
def test_shellcheck_finds_nothing(mpi, tmp_path):
    run = Run(experiment="a b.toml", out="runs/a;b", nodes=2, stage="$TMPDIR/s", options=("--x",))
    slurm = Slurm(job_name="tune", mpi=mpi, requeue=True, array=2)
    (tmp_path / "script").write_text(sbatch_script(run, slurm))
    done = subprocess.run(
        ["shellcheck", str(tmp_path / "script")], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
