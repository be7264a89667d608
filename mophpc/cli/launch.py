"""The command that puts a run on a cluster: launch."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mophpc.cli.common import AsJson
from mophpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mophpc.fault_settings import Signals
    from mophpc.submit.settings import Kubernetes, Run, Slurm

Toml = Annotated[Path, typer.Argument(help="TOML file.")]
RunOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- OPTION...]", help="More options, for 'mophpc run'."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the script, and submit nothing.")]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Try a batch of each config before submission.")
]
ToSlurm = Annotated[bool, typer.Option("--slurm", help="Submit a script to Slurm.")]
ToKubernetes = Annotated[
    bool, typer.Option("--kubernetes", help="Print an MPIJob for Kubernetes' MPI Operator.")
]
Nodes = Annotated[int, typer.Option("--nodes", "-N", help="Machines.")]
GpusPerNode = Annotated[int, typer.Option(help="GPUs of each; none by default.")]
RanksPerNode = Annotated[int | None, typer.Option(help="By default one per GPU, or one.")]
CpusPerRank = Annotated[int | None, typer.Option(help="The experiment's 'threads' by default.")]
Memory = Annotated[str | None, typer.Option("--mem", help="Of each node, as 64G.")]
Time = Annotated[str | None, typer.Option("--time", "-t", help="Limit, as 4:00:00 for 4 hours.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; by default runs/NAME.")]
JobName = Annotated[str | None, typer.Option(help="By default that of the experiment's file.")]
Mpi = Annotated[
    str | None,
    typer.Option(
        help="Who starts the ranks. Slurm: srun with 'pmix' (Open MPI; the default) or 'pmi2' "
        "(MPICH), or 'mpirun'. Kubernetes: 'openmpi' (the default), 'mpich' or 'intel'."
    ),
]
Stage = Annotated[str | None, typer.Option(help="Node-local folder for shards, as '$TMPDIR'.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from what the run folder holds.")]
MaxRestarts = Annotated[
    int | None, typer.Option(help="By itself; by default 20, and 3 on Kubernetes.")
]
Partition = Annotated[str | None, typer.Option("--partition", "-p", help="Slurm: where.")]
Account = Annotated[str | None, typer.Option("--account", "-A", help="Slurm: who pays.")]
Qos = Annotated[str | None, typer.Option("--qos", "-q", help="Slurm: quality of service.")]
Requeue = Annotated[
    bool,
    typer.Option("--requeue", help="Slurm: before the limit, go back into the queue, and go on."),
]
Signal = Annotated[
    str | None, typer.Option(help="Slurm: SIGNAL@SECONDS before the limit; by default USR1@120.")
]
Array = Annotated[int | None, typer.Option(help="Slurm: run it so often, on nodes of its own.")]
Setup = Annotated[
    list[str] | None,
    typer.Option(help="Slurm: a file to source, or a line of shell; may be repeated."),
]
SbatchOption = Annotated[
    list[str] | None, typer.Option(help="Slurm: as constraint=a100; may be repeated.")
]
Image = Annotated[str | None, typer.Option(help="Kubernetes: with mophpc, MPI and sshd.")]
Namespace = Annotated[str | None, typer.Option(help="Kubernetes.")]
Pvc = Annotated[str | None, typer.Option(help="Kubernetes: claim with experiment and data.")]
Mount = Annotated[
    str | None, typer.Option(help="Kubernetes: the claim's folder; by default /mophpc.")
]


def launch(
    context: typer.Context,
    experiment: Toml,
    run_options: RunOptions = None,
    slurm: ToSlurm = False,
    kubernetes: ToKubernetes = False,
    dry_run: DryRun = False,
    check: Check = True,
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 0,
    ranks_per_node: RanksPerNode = None,
    cpus_per_rank: CpusPerRank = None,
    mem: Memory = None,
    time: Time = None,
    out: Out = None,
    job_name: JobName = None,
    mpi: Mpi = None,
    stage: Stage = None,
    resume: Resume = False,
    max_restarts: MaxRestarts = None,
    partition: Partition = None,
    account: Account = None,
    qos: Qos = None,
    requeue: Requeue = False,
    signal: Signal = None,
    array: Array = None,
    setup: Setup = None,
    sbatch_option: SbatchOption = None,
    image: Image = None,
    namespace: Namespace = None,
    pvc: Pvc = None,
    mount: Mount = None,
    as_json: AsJson = False,
) -> None:
    """Put a run on a cluster: submit a script to Slurm, or print a manifest for Kubernetes.

    Example: mophpc launch tune.toml --slurm --nodes 4 --gpus-per-node 8 --time 4:00:00 --requeue

    Example: mophpc launch tune.toml --kubernetes --nodes 4 --image IMAGE --pvc NAME > job.yaml
    """
    from mophpc.experiment import load_experiment
    from mophpc.submit.settings import Run, name_from

    # Everything is refused that would be left out of the text.
    only_slurm = {
        "partition": partition,
        "account": account,
        "qos": qos,
        "requeue": requeue or None,
        "signal": signal,
        "array": array,
        "setup": setup or None,
        "sbatch_option": sbatch_option or None,
    }
    only_kubernetes = {"image": image, "namespace": namespace, "pvc": pvc, "mount": mount}
    if slurm == kubernetes:
        raise UserError(
            "--slurm and --kubernetes exclude each other; leave one out"
            if slurm
            else "there is neither --slurm nor --kubernetes; give one, to say where to"
        )
    if kubernetes:
        _refuse("--slurm", only_slurm)
    else:
        _refuse("--kubernetes", only_kubernetes)
    toml = load_experiment(experiment)
    name = job_name or name_from(experiment.stem, is_label=kubernetes)
    said = {"job_name": name, "mpi": mpi}
    target = _kubernetes(said | only_kubernetes) if kubernetes else _slurm(said | only_slurm)
    run = Run(
        experiment=str(experiment),
        out=str(out or Path("runs", name)),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        ranks_per_node=ranks_per_node,
        cpus_per_rank=toml.threads if cpus_per_rank is None else cpus_per_rank,
        memory=mem,
        time=time,
        stage=stage,
        resume=resume,
        max_restarts=(3 if kubernetes else 20) if max_restarts is None else max_restarts,
        options=tuple(run_options or ()),
        made_by=_command_line(context),
    )
    _check_options(run, goes_on=requeue or resume or kubernetes)
    _finish(run, target, toml.signals, dry_run=dry_run, check=check, as_json=as_json)


def _finish(
    run: Run,
    target: Slurm | Kubernetes,
    signals: Signals,
    *,
    dry_run: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Make the text, try the experiment out, and print or submit."""
    from mophpc.submit import start
    from mophpc.submit.settings import Slurm

    text = start.text_for(run, target)  # which refuses what does not fit together
    notes = start.notes_on(run)
    if isinstance(target, Slurm):
        notes += start.check_signal(signals, target)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if check:
        start.try_out(Path(run.experiment), run.ranks)
    if dry_run or not isinstance(target, Slurm):
        print(json.dumps({"text": text}, indent=1) if as_json else text.removesuffix("\n"))
        return
    start.check_folder(run, is_array=target.array is not None)
    job = start.submit(text)
    if as_json:
        print(json.dumps({"job": job, "run": run.out, "text": text}, indent=1))
    else:
        print(f"job {job} is in the queue: {run.ranks} ranks, run folder {run.out}")


def _slurm(said: Mapping[str, Any]) -> Slurm:
    from mophpc.submit.settings import Slurm
    from mophpc.submit.start import setup_lines

    given = {name: value for name, value in said.items() if value is not None}
    given["setup"] = setup_lines(given.pop("setup", ()), Path(sys.executable))
    return Slurm(sbatch_options=tuple(given.pop("sbatch_option", ())), **given)


def _kubernetes(said: Mapping[str, Any]) -> Kubernetes:
    from mophpc.submit.settings import Kubernetes

    given = {name: value for name, value in said.items() if value is not None}
    for name in ("image", "pvc"):
        if name not in given:
            raise UserError(f"--kubernetes needs --{name}; 'mophpc launch --help' says what it is")
    return Kubernetes(claim=given.pop("pvc"), **given)


def _refuse(target: str, options: Mapping[str, Any]) -> None:
    """Refuse options of another target.

    Raises:
        UserError: one of them is given.
    """
    for name, value in options.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for {target}; leave it out, or give {target}")


def _check_options(run: Run, *, goes_on: bool) -> None:
    """Check the options that are passed on, as `mophpc run` would.

    Args:
        run: with the options.
        goes_on: whether `--resume` may be among them.

    Raises:
        UserError: `launch` decides on one of them itself.
    """
    from mophpc.cli import app

    commands: Any = typer.main.get_command(app)
    line = [run.experiment, "--out", run.out, *run.options]
    found = commands.commands["run"].make_context("mophpc run", line)
    own = {"transport": "mpi", "ranks": None, "out": Path(run.out)}
    for name, value in own.items():
        if found.params[name] != value:
            raise UserError(f"--{name} for 'mophpc run' is what launch decides; leave it out")
    if goes_on and found.params["replay"] is not None:
        raise UserError(
            "--replay begins a new run, and this one is to go on from where it was stopped; leave "
            "out --replay, or what lets it go on"
        )


def _command_line(context: typer.Context) -> str:
    """Return what was asked, without what changes nothing in the text."""
    words = [word for word in context.find_root().obj if word not in ("--dry-run", "--json")]
    return shlex.join(["mophpc", *words])
