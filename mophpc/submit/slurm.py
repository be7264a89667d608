"""The text of a script for sbatch; pure functions of settings."""

from __future__ import annotations

import shlex

from mophpc.errors import LaunchError
from mophpc.submit.settings import Run, Slurm
from mophpc.submit.words import parse_option, parse_signal, seconds_of, shell_path

HIDES_PEERS = (
    "it hides the other GPUs of the node from each rank, which breaks transfers between GPUs; each "
    "rank takes the GPU of its number by itself"
)
OWN = {
    "gpus-per-task": HIDES_PEERS,
    "gpu-bind": HIDES_PEERS,
    "nodes": "--nodes says how many",
    "ntasks": "--nodes and --ranks-per-node say how many",
    "ntasks-per-node": "--ranks-per-node says how many",
    "cpus-per-task": "--cpus-per-rank says how many",
    "gpus-per-node": "--gpus-per-node says how many",
    "gpus": "--gpus-per-node says how many",
    "mem": "--mem says how much",
    "time": "--time says how long",
    "job-name": "--job-name says it",
    "partition": "--partition says it",
    "account": "--account says it",
    "qos": "--qos says it",
    "signal": "--signal says which",
    "array": "--array says how often",
    "requeue": "--requeue says so",
    "no-requeue": "that is so without --requeue",
    "open-mode": "the log is always appended to",
    "wrap": "there is a script already",
    "parsable": "the command itself reads what sbatch answers",
}
"""Options of sbatch that are not to be given past those of the command, and why."""

START = """\
if [[ -z "$stop$ended" ]]; then
  {launcher} \\
    {command} &
  ranks=$!
  [[ -z "$stop" ]] || stop_ranks
  # A signal to this script ends `wait` before the ranks have ended.
  again=1
  while [[ -n "$again" ]]; do
    again=""
    wait "$ranks"
    status=$?
  done
fi
"""

REQUEUE = """\
# 75: the ranks were stopped and can go on; above 128: they knew of no signal yet when it came. Not
# after TERM: then somebody else has decided.
if [[ -z "$ended" ]] && [[ "$status" -eq 75 || -n "$stop" && "$status" -gt 128 ]]; then
  if [[ "${{SLURM_RESTART_COUNT:-0}}" -ge {max_restarts} ]]; then
    echo "mophpc: stopped after {max_restarts} restarts; 'scontrol requeue' lets it go on" >&2
  else
    echo "mophpc: stopped, goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
"""


def sbatch_script(run: Run, slurm: Slurm) -> str:
    """Return the script that makes a run.

    Raises:
        LaunchError: two settings do not fit each other.
    """
    signal, lead_s = parse_signal("--signal", slurm.signal)
    if run.time is not None and seconds_of("--time", run.time) <= lead_s:
        raise LaunchError(
            f"--signal {slurm.signal} leaves nothing of --time {run.time}, which is "
            f"{seconds_of('--time', run.time)} seconds; 4 hours are 4:00:00"
        )
    parts = ["#!/usr/bin/env bash"]
    if run.made_by is not None:
        parts.append(f"# Made by: {run.made_by}")
    parts += [f"#SBATCH {option}" for option in _directives(run, slurm)]
    parts.append(f"\n{_handlers(signal)}\n")
    parts += _prepare(run, slurm)
    parts.append(START.format(launcher=_launcher(run, slurm), command=_command(run, slurm)))
    if slurm.requeue:
        parts.append(REQUEUE.format(max_restarts=run.max_restarts))
    parts.append('exit "$status"')
    return "\n".join(parts) + "\n"


def _directives(run: Run, slurm: Slurm) -> list[str]:
    signal, lead_s = parse_signal("--signal", slurm.signal)
    log = "%x-%A_%a.log" if slurm.array is not None else "%x-%j.log"
    found = [f"--job-name={slurm.job_name}", f"--nodes={run.nodes}"]
    found.append(f"--ntasks-per-node={run.ranks_of_node}")
    found.append(f"--cpus-per-task={run.cpus_per_rank}")
    if run.gpus_per_node:
        # Never --gpus-per-task or --gpu-bind: see HIDES_PEERS.
        found.append(f"--gpus-per-node={run.gpus_per_node}")
    for option, value in (
        ("mem", run.memory and run.memory.upper()),
        ("time", run.time),
        ("partition", slurm.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
    ):
        if value is not None:
            found.append(f"--{option}={value}")
    if slurm.array is not None:
        # Timings beside other people's ranks on the same node would say little.
        found += [f"--array=1-{slurm.array}", "--exclusive"]
    found += [f"--output={log}", "--open-mode=append", f"--signal=B:{signal}@{lead_s}"]
    found.append("--requeue" if slurm.requeue else "--no-requeue")
    found += [parse_option("--sbatch-option", text, OWN) for text in slurm.sbatch_options]
    return found


def _handlers(signal: str) -> str:
    return f"""\
ranks="" stop="" ended="" again="" status=75
# Slurm sends {signal} to this script before the time limit. The ranks get it from here; they finish
# their minibatch, write their states and end with status 75.
stop_ranks() {{
  stop=1 again=1
  [[ -z "$ranks" ]] || kill -{signal} "$ranks"
}}
trap stop_ranks {signal}
# TERM comes from scancel, at the time limit, and where Slurm itself puts the run back into the
# queue. The ranks get theirs from Slurm.
trap 'ended=1 again=1' TERM"""


def _prepare(run: Run, slurm: Slurm) -> list[str]:
    lines = [*slurm.setup, f"export OMP_NUM_THREADS={run.cpus_per_rank}"]
    if _asks_whether_again(run, slurm):
        lines += [
            "# Slurm counts how often the run was put back into the queue.",
            'resume=""',
            '[[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]] || resume=--resume',
        ]
    if slurm.mpi == "mpirun":
        lines += [
            "# Bound to one core, as Open MPI does with two ranks, a rank's threads share it.",
            "flags=()",
            '[[ "$(mpirun --version 2>&1)" != *"Open MPI"* ]] || flags=(--bind-to none)',
        ]
    return lines


def _asks_whether_again(run: Run, slurm: Slurm) -> bool:
    return slurm.requeue and not run.resume


def _launcher(run: Run, slurm: Slurm) -> str:
    if slurm.mpi == "mpirun":
        return 'mpirun -n "$SLURM_NTASKS" ${flags[@]+"${flags[@]}"}'
    # srun no longer takes --cpus-per-task from sbatch.
    return f"srun --mpi={slurm.mpi} --cpus-per-task={run.cpus_per_rank} --kill-on-bad-exit=1"


def _command(run: Run, slurm: Slurm) -> str:
    out = shlex.quote(run.out)
    if slurm.array is not None:
        out += '/"$SLURM_ARRAY_TASK_ID"'
    command = f"mophpc run {shlex.quote(run.experiment)} --out {out}"
    if run.resume:
        command += " --resume"
    elif slurm.requeue:
        command += ' ${resume:+"$resume"}'
    if run.stage is not None:
        command += f" --stage {shell_path('--stage', run.stage)}"
    return f"{command} {shlex.join(run.options)}".rstrip()
