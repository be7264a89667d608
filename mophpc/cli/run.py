"""Commands for runs and what they leave: run, verify, report, export."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mophpc.cli.common import AsJson, check_one_of, is_root
from mophpc.errors import UserError


def run(
    experiment: Annotated[Path, typer.Argument(help="TOML file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to make.")],
    transport: Annotated[
        str, typer.Option(help="'mpi', or 'local': ranks are threads that take turns.")
    ] = "mpi",
    ranks: Annotated[
        int | None, typer.Option("--ranks", "-n", min=1, help="For 'local' only; 1 by default.")
    ] = None,
    progress: Annotated[str, typer.Option(help="'auto', 'bar', 'lines' or 'off'.")] = "auto",
    device: Annotated[
        str | None,
        typer.Option(help="'auto', 'cpu', 'cuda', or 'twin', a stand-in for a GPU on the CPU."),
    ] = None,
    costs: Annotated[
        str | None,
        typer.Option(help="'measured', 'equal', or a costs file, as a run's costs.json."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="plan.json of an earlier run, to be walked again.")
    ] = None,
    stage: Annotated[
        Path | None, typer.Option(help="Node-local folder to which ranks copy their shards first.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in the folder, if one was cut off."),
    ] = False,
    survive: Annotated[
        bool,
        typer.Option("--survive", help="Go on without a rank that dies; mpirun --with-ft ulfm."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train every config; start it with mpirun or srun.

    [search] in the file says how: see Methods in README.md, and launch/experiments for ready files.
    With --resume the same command begins a run, and goes on with it after it was cut off.

    Example: mpirun -n 4 mophpc run launch/experiments/digits.toml --out runs/first
    """
    from mophpc.run.faults import startup

    if transport == "mpi":
        startup.begin(out)  # what is imported next takes a second
    is_new = "torch" not in sys.modules
    from mophpc.experiment import DEVICES, load_experiment, with_costs, with_device, with_stage
    from mophpc.report.results import print_table
    from mophpc.run.start import run_experiment

    if is_new:
        # What is loaded by now, most of it PyTorch's, stays to the end. The garbage collector would
        # go through all of it several times as the process ends, which takes half a second.
        gc.freeze()
    check_one_of("--progress", progress, ("auto", "bar", "lines", "off"))
    check_one_of("--transport", transport, ("mpi", "local"))
    if device is not None:
        check_one_of("--device", device, DEVICES)
    if ranks is not None and transport != "local":
        raise UserError(
            f"--ranks {ranks} is for --transport local; with MPI, start with mpirun -n {ranks}"
        )
    if replay is not None and costs is not None:
        raise UserError(
            f"--costs {costs} is for planning, and --replay {replay} walks a plan; leave one out"
        )
    if replay is not None and resume:
        raise UserError(
            f"--replay {replay} begins a new run, and --resume goes on with one; leave one out"
        )
    found = with_device(with_costs(load_experiment(experiment), costs), device)
    found = with_stage(found, stage)
    results = run_experiment(
        found,
        out,
        transport=transport,
        ranks=ranks or 1,
        progress=progress,
        replay=replay,
        resume=resume,
        survive=survive,
        is_last=transport == "mpi",
    )
    if is_root():
        if as_json:
            print(json.dumps(results.record(), indent=1))
        else:
            print_table(results)
            print(f"run folder: {out}")


def verify(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    config: Annotated[
        list[str] | None, typer.Option("--config", "-c", help="Config id or name; all by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train configs again in plain torch and compare every byte.

    Those that failed or never began are not verified, and say so.

    Example: mophpc verify runs/first --config 3
    """
    from mophpc.verify import verify as verify_run

    verdicts = []
    for verdict in verify_run(run, config or []):
        verdicts.append(verdict)
        if not as_json:
            print(verdict)
    compared = [verdict for verdict in verdicts if verdict.equal is not None]
    equal = sum(verdict.equal is True for verdict in compared)
    if as_json:
        print(json.dumps([verdict.record() for verdict in verdicts], indent=1))
    else:
        left = len(verdicts) - len(compared)
        rest = f"; {left} could not be compared" if left else ""
        print(f"{equal} of {len(compared)} configs are equal to sequential training{rest}")
    if equal != len(compared) or not compared:
        raise typer.Exit(1)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    best: Annotated[bool, typer.Option("--best", help="The best config; so by default.")] = False,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Another config, by id or name.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Its newest weights, and not those of its best epoch.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a config's weights, and what is needed to build its model, into a folder.

    Example: mophpc export runs/first --best best-model
    """
    from mophpc.saved import BEST, LAST, load_run

    if best and config is not None:
        raise UserError(f"--best and --config {config} exclude each other; leave one out")
    found = load_run(run)
    row = found.best if config is None else found.config(config)
    folder = found.export(out, row.config_id, LAST if last else BEST)
    if as_json:
        print(json.dumps({"config": row.config, "folder": str(folder)}, indent=1))
    else:
        print(f"{row.config} is in {folder}: mophpc.load_model('{folder}') returns its model")


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to make; report.html in RUN.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Money per rank and hour.")] = None,
    currency: Annotated[str, typer.Option(help="What the price is in, as in EUR.")] = "",
    watts: Annotated[float | None, typer.Option(help="Power that a rank draws.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows of a batch, where no hyperparameter says it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one page of all that a run found, did and cost, and a trace for Perfetto. No MPI.

    Example: mophpc report runs/first --price-per-hour 2.5 --currency EUR --watts 350
    """
    from mophpc.report.expense import Prices
    from mophpc.report.make import make_report

    made = make_report(run, out, Prices(price_per_hour, watts, currency, batch_size))
    print(json.dumps(made.record(), indent=1) if as_json else made.text())
