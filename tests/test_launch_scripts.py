"""The shell scripts of launch/, with stand-ins for Python and mpirun: nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# A Python that makes a "virtual environment" holding itself, and notes what pip is asked for.
PYTHON = """\
    #!/usr/bin/env bash
    case "$1 $2" in
      "-c "*) ;;
      "-V "*) echo "Python 3.12.0" ;;
      "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>"$CALLS" ;;
      "-m pip") shift 2 && echo "pip $*" >>"$CALLS" && [[ ! -e "$BROKEN" ]] ;;
      "- "*) cat "$2/pyproject.toml" "$2/launch/constraints.txt" - <<<"$4" | cksum ;;
      *) exit 1 ;;
    esac
"""


class Checkout:
    """A copy of what the scripts read, and a PATH of stand-ins before the real one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls_file = root / "calls"
        self.broken = root / "broken"
        self.bin = root / "stand-ins"
        self.bin.mkdir()
        shutil.copytree(REPOSITORY / "launch", root / "launch")
        shutil.copy(REPOSITORY / "pyproject.toml", root)
        self.program("python3", PYTHON)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(textwrap.dedent(text))
        path.chmod(0o755)

    def bash(self, script: str, **settings: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.root,
            env={
                **inherited,
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "CALLS": str(self.calls_file),
                "BROKEN": str(self.broken),
                **settings,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def calls(self) -> list[str]:
        """Return what was asked for since the last time."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MOPHPC_MPI": "lam"}, "MOPHPC_MPI is 'lam'; it can be openmpi, mpich or system."),
        ({"MOPHPC_EXTRAS": "all"}, "MOPHPC_EXTRAS is 'all'; it can be digits or dev."),
        ({"MOPHPC_PYTHON": "no-such-python"}, "MOPHPC_PYTHON=no-such-python cannot be started"),
        ({"MOPHPC_MPI": "system", "PATH": "{bin}:{tools}"}, "needs an mpirun on PATH"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_status_2(
    checkout: Checkout, settings: dict[str, str], said: str
) -> None:
    tools = checkout.root / "tools"  # what env.sh uses, without the machine's mpirun
    tools.mkdir()
    for name in ("bash", "cat", "dirname", "env"):
        (tools / name).symlink_to(str(shutil.which(name)))
    settings = {
        name: value.format(bin=checkout.bin, tools=tools) for name, value in settings.items()
    }
    done = checkout.bash("source launch/env.sh", **settings)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert checkout.calls() == []


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("#!/bin/sh\necho 'is Python 3.10'\n", "is Python 3.10; name a Python 3.11 to 3.14"),
        ("#!/bin/sh\necho 'has no venv module'\n", "has no venv module"),
    ],
)
def test_a_python_that_does_not_fit_is_named(checkout: Checkout, python: str, said: str) -> None:
    checkout.program("odd-python", python)
    done = checkout.bash("source launch/env.sh", MOPHPC_PYTHON="odd-python")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert said in done.stderr


def test_an_environment_is_made_once_and_updated_when_its_pins_change(checkout: Checkout) -> None:
    assert checkout.bash("source launch/env.sh").returncode == 0
    made, installed = checkout.calls()
    assert made == "venv"
    assert "[openmpi,digits]" in installed
    assert "-c " in installed

    again = checkout.bash("source launch/env.sh; command -v python")
    assert again.stdout.strip() == str(checkout.root / ".venv-openmpi/bin/python")
    assert again.stderr == ""
    assert checkout.calls() == []

    with (checkout.root / "launch/constraints.txt").open("a") as pins:
        pins.write("six==1.16.0\n")
    assert checkout.bash("source launch/env.sh").returncode == 0
    (updated,) = checkout.calls()
    assert updated == installed


def test_dev_holds_all_that_the_quickstart_needs(checkout: Checkout) -> None:
    assert checkout.bash("source launch/env.sh").returncode == 0
    assert checkout.bash("source launch/env.sh", MOPHPC_EXTRAS="dev").returncode == 0
    assert "[openmpi,dev]" in checkout.calls()[-1]
    assert checkout.bash("source launch/env.sh").returncode == 0
    assert checkout.calls() == []


def test_a_set_up_that_was_cut_short_starts_again(checkout: Checkout) -> None:
    checkout.broken.touch()
    failed = checkout.bash("source launch/env.sh")
    assert failed.returncode == 2
    assert "installing mophpc failed" in failed.stderr
    checkout.broken.unlink()
    checkout.calls()
    assert checkout.bash("source launch/env.sh").returncode == 0
    assert checkout.calls()[0] == "venv"


def test_each_mpi_has_an_environment_of_its_own(checkout: Checkout) -> None:
    checkout.program("mpirun", "#!/bin/sh\necho HYDRA\n")
    assert checkout.bash("source launch/env.sh", MOPHPC_MPI="mpich").returncode == 0
    assert "[mpich,digits]" in checkout.calls()[-1]
    assert checkout.bash("source launch/env.sh", MOPHPC_MPI="system").returncode == 0
    assert "[digits]" in checkout.calls()[-1]
    assert checkout.bash(
        "source launch/env.sh", MOPHPC_MPI="system", MOPHPC_MPI4PY_SOURCE="1"
    ).returncode == 0  # fmt: skip
    calls = checkout.calls()
    assert calls[0] == "venv"
    assert "--no-binary mpi4py" in calls[1]
    assert sorted(path.name for path in checkout.root.glob(".venv-*")) == [
        ".venv-mpich",
        ".venv-system",
    ]


@pytest.mark.parametrize(
    ("version", "has"), [("mpirun (Open MPI) 5.0.11", True), ("HYDRA build details:", False)]
)
def test_mpirun_gets_the_flags_of_its_mpi(checkout: Checkout, version: str, has: bool) -> None:
    checkout.program(
        "mpirun",
        f"""\
        #!/usr/bin/env bash
        [[ "$1" != --version ]] || {{ echo "{version}"; exit; }}
        echo "$OMP_NUM_THREADS $TTY_COMPATIBLE $*"
        exit 7
        """,
    )
    done = checkout.bash("source launch/env.sh; mpirun_ranks 4096 hello 'two words'")
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("1 0 -n 4096 ")
    assert done.stdout.endswith("hello two words\n")
    assert ("--oversubscribe" in done.stdout) == has
    assert ("--allow-run-as-root" in done.stdout) == (has and os.geteuid() == 0)


def test_mpirun_can_be_given_a_limit(checkout: Checkout) -> None:
    checkout.program("mpirun", "#!/bin/sh\n[ $1 = --version ] || exec sleep 20\n")
    done = checkout.bash("source launch/env.sh; mpirun_ranks 2 x", MOPHPC_TIMEOUT="1")
    assert done.returncode == 124, done.stderr


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_help_and_unknown_options(checkout: Checkout, script: str) -> None:
    shown = checkout.bash(f"bash launch/{script} --help")
    assert shown.returncode == 0
    assert f"bash launch/{script}" in shown.stdout
    assert "MOPHPC_MPI" in shown.stdout
    refused = checkout.bash(f"bash launch/{script} --bogus")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"{script}: '--bogus' is not known")
    assert len(refused.stderr.splitlines()) == 1
    assert checkout.calls() == []


def test_the_quickstart_prepares_once_and_takes_the_next_free_folder(checkout: Checkout) -> None:
    checkout.program(
        "mophpc",
        """\
        #!/usr/bin/env bash
        echo "$*"
        case "$1" in
          inspect) test -d "$2" ;;
          prepare) mkdir -p "$3" ;;
          run) mkdir -p "$4" ;;
        esac
        """,
    )
    checkout.program(
        "mpirun", '#!/bin/sh\n[ $1 = --version ] && exit\nshift 2\necho "ranks: $*"\nexec "$@"\n'
    )
    first = checkout.bash("bash launch/quickstart.sh")
    assert first.returncode == 0, first.stderr
    assert "prepare digits stores/digits.zarr --shards 4" in first.stdout
    assert (
        "ranks: mophpc run launch/experiments/digits.toml --out runs/quickstart-1" in first.stdout
    )
    second = checkout.bash("bash launch/quickstart.sh")
    assert "prepare" not in second.stdout
    assert "--out runs/quickstart-2" in second.stdout


def test_pins_are_exact_and_name_no_build_of_torch() -> None:
    lines = (REPOSITORY / "launch/constraints.txt").read_text().splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert all(pin.count("==") == 1 and "+" not in pin for pin in pins)
