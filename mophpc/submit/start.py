"""From the command line to a cluster: look at the experiment, make the text, submit it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mophpc.case import Asked
from mophpc.errors import LaunchError, RunFolderError
from mophpc.experiment import load_experiment
from mophpc.fault_settings import Signals
from mophpc.loading import load_callable
from mophpc.search_settings import FIXED, Search, is_reference
from mophpc.submit.kubernetes import as_yaml, mpijob
from mophpc.submit.settings import Kubernetes, Run, Slurm
from mophpc.submit.slurm import sbatch_script
from mophpc.submit.words import check_line, parse_signal, seconds_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SHORT_S = 600
"""A limit below which minutes and seconds may be meant as hours and minutes."""
SOME = 4
"""Configs that are tried, of those that come one after another."""


def text_for(run: Run, target: Slurm | Kubernetes) -> str:
    """Return the script or the manifest.

    Raises:
        LaunchError: two settings do not fit each other, or a library is missing.
    """
    if isinstance(target, Slurm):
        return sbatch_script(run, target)
    return as_yaml(mpijob(run, target))


def try_out(path: Path, num_ranks: int) -> None:
    """Check an experiment as far as that goes without a cluster: a batch of each config.

    Raises:
        UserError: what a run would raise before its first visit.
    """
    from mophpc.preview import preview

    experiment = load_experiment(path)
    method, sampler = experiment.method, experiment.sampler
    if is_reference(method):
        load_callable(method)
    if is_reference(method) or sampler not in FIXED:
        if sampler not in FIXED:
            _check_optuna(sampler)
        # Which configs will come is not known; some of the same space are looked at.
        has_list = bool(experiment.configs)
        search = Search(
            method="list" if has_list else "random",
            configs=None if has_list else SOME,
            constraint=experiment.search.constraint,
        )
        experiment = experiment.model_copy(update={"search": search})
    preview(experiment, Asked(ranks=num_ranks))


def _check_optuna(sampler: str) -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise LaunchError(
            f"sampler '{sampler}' needs Optuna; install it with: pip install 'mophpc[optuna]'"
        )


def setup_lines(given: Sequence[str], python: Path) -> tuple[str, ...]:
    """Return lines of shell that make `mophpc` known to a script.

    Args:
        given: files to source, or lines; may be empty.
        python: the Python to take then, whose folder is put first on PATH.

    Raises:
        LaunchError: one would not stay on its line.
    """
    if not given:
        folder = shlex.quote(check_line("the path of Python", str(python.parent)))
        return (f'export PATH={folder}:"$PATH"',)
    return tuple(
        f"source {shlex.quote(str(Path(line).resolve()))} || exit"
        if Path(check_line("--setup", line)).is_file()
        else line
        for line in given
    )


def check_signal(signals: Signals, slurm: Slurm) -> list[str]:
    """Check that ranks know the signal that Slurm is asked for, and return what may not be meant.

    Raises:
        LaunchError: they do not: it would kill them.
    """
    name, lead_s = parse_signal("--signal", slurm.signal)
    if f"SIG{name}" not in signals.also:
        known = ", ".join(signals.also) or "none but SIGTERM and SIGINT"
        raise LaunchError(
            f"--signal is {slurm.signal}, and signals.also of the experiment is {known}; name "
            f"{name} there too, or another signal here"
        )
    if lead_s <= signals.limit_s:
        return [
            f"--signal {slurm.signal} comes {lead_s} s before the time limit, and ranks may take "
            f"signals.limit_s = {signals.limit_s:g} s for their states"
        ]
    return []


def notes_on(run: Run) -> list[str]:
    """Return what may not be meant."""
    if run.time is None or re.fullmatch(r"\d+:\d+", run.time) is None:
        return []
    if seconds_of("--time", run.time) >= SHORT_S:
        return []
    return [f"--time {run.time} is minutes and seconds; 4 hours are 4:00:00"]


def check_folder(run: Run, *, is_array: bool) -> None:
    """Check that a first start would find no other run in its folder.

    Raises:
        RunFolderError: it would.
    """
    out = Path(run.out)
    if run.resume or is_array or not out.exists():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise RunFolderError(
            f"'{out}' is there already; give another --out, or --resume to go on from what it holds"
        )


def submit(script: str) -> str:
    """Give a script to sbatch, and return the number of the job.

    Raises:
        LaunchError: there is no sbatch, or it does not take the script.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise LaunchError(
            "there is no sbatch on PATH; go to a login node, or print the script with --dry-run"
        )
    done = subprocess.run(
        [sbatch, "--parsable"], input=script, capture_output=True, text=True, check=False
    )
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job.isdigit():
        said = " ".join((done.stderr.strip() or done.stdout.strip() or "nothing").split())
        raise LaunchError(f"sbatch did not take the script; it said: {said}")
    return job
