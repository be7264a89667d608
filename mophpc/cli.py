"""The command line. Heavy libraries are imported inside each command."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mophpc.errors import InterruptError, MophpcError, RunError, UserError
from mophpc.launcher import launched_rank, launched_ranks

if TYPE_CHECKING:
    from mophpc.hop.collectives import Group

app = typer.Typer(
    help="Model Hopper Parallelism: train many configs at once over one copy of the data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="'digits', a folder of IDX files or of images per class, a .npz, a .npy or a "
            "folder of them, or file.py:function that returns a dataset."
        ),
    ],
    store: Annotated[Path, typer.Argument(help="Folder to make.")],
    shards: Annotated[int, typer.Option(min=1, help="How many; at least one per rank.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the one shuffle of the rows.")] = 0,
    valid: Annotated[
        float,
        typer.Option(help="Share of rows for validation, where the source has no split for it."),
    ] = 0.1,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Resize images to this many pixels, squared.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the store.")] = False,
) -> None:
    """Make a sharded dataset store. Under mpirun, each rank writes its own shards.

    Example: mophpc prepare digits digits.zarr --shards 4
    """
    from mophpc.data import prepare as prepare_store

    if not 0.0 < valid < 1.0:
        raise UserError(f"--valid is {valid:g}; allowed: a share between 0 and 1, as in 0.1")
    group = _group()
    info = prepare_store(
        source,
        store,
        num_shards=shards,
        seed=seed,
        valid_fraction=valid,
        image_size=image_size,
        overwrite=overwrite,
        group=group,
    )
    size = f"{info.nbytes / 1e6:.1f} MB" if info.nbytes >= 1e6 else f"{info.nbytes / 1e3:.1f} kB"
    if group is None or group.rank == 0:
        print(
            f"{store}: {info.rows} training rows in {info.num_shards} shards, "
            f"{info.valid_rows} validation rows, {size}"
        )


@app.command()
def inspect(
    store: Annotated[Path, typer.Argument(help="Folder made by 'mophpc prepare'.")],
    check: Annotated[bool, typer.Option("--check", help="Read all and verify checksums.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in a store.

    Example: mophpc inspect digits.zarr --check
    """
    from mophpc.data import check_store, open_store
    from mophpc.report.store import describe_store

    info = open_store(store)
    damage = check_store(store) if check else []
    if as_json:
        record = describe_store(info) | ({"damage": damage} if check else {})
        print(json.dumps(record, indent=1))
    else:
        for name, value in describe_store(info).items():
            print(f"{name:<16} {value}")
        if check and not damage:
            print(f"{'checked':<16} all checksums are right")
    for problem in damage:
        print(f"mophpc: {problem}", file=sys.stderr)
    if damage:
        raise typer.Exit(UserError.exit_status)


Toml = Annotated[
    Path | None,
    typer.Argument(help="TOML file; without it, sizes and costs are those of the options."),
]
Ranks = Annotated[int, typer.Option("--ranks", "-n", min=1, help="How many ranks to plan for.")]
Configs = Annotated[
    int | None, typer.Option(min=1, help="How many; only without EXPERIMENT or a costs file.")
]
Shards = Annotated[
    int | None, typer.Option(min=1, help="How many; one per rank by default. Not with EXPERIMENT.")
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="How many; those of EXPERIMENT, or 2, by default.")
]
CostsFrom = Annotated[
    str | None,
    typer.Option(
        "--costs",
        help="A costs file (JSON, as a run's costs.json), 'equal', or seconds of every visit; what "
        "EXPERIMENT says by default.",
    ),
]
Bandwidth = Annotated[
    float | None, typer.Option(help="Bytes per second of a hop; hops take no time by default.")
]
StateBytes = Annotated[
    int | None, typer.Option(min=0, max=2**62, help="Bytes of every config's state.")
]
Rows = Annotated[
    int | None, typer.Option(min=1, max=10**12, help="Rows of a shard, where costs are per row.")
]


@app.command()
def plan(
    ranks: Ranks,
    experiment: Toml = None,
    configs: Configs = None,
    shards: Shards = None,
    epochs: Epochs = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="'balanced', 'random' or 'round-robin'; that of EXPERIMENT, or all, by default."
        ),
    ] = None,
    costs: CostsFrom = None,
    bandwidth: Bandwidth = None,
    state_bytes: StateBytes = None,
    rows: Rows = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the policy's choices.")] = None,
    show: Annotated[int, typer.Option(min=1, help="How many epochs to show.")] = 2,
    gantt: Annotated[
        Path | None, typer.Option(help="Draw the schedule here: a .png, .svg or .html file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the schedule of an experiment, which is checked, or of any sizes and costs. No MPI.

    Example: mophpc plan launch/experiments/digits.toml --ranks 4

    Example: mophpc plan --configs 16 --ranks 4 --epochs 3 --gantt plan.html
    """
    from mophpc.case import Asked
    from mophpc.forecast import plan_as_asked

    asked = Asked(
        ranks=ranks,
        configs=configs,
        shards=shards,
        epochs=epochs,
        costs=costs,
        bandwidth=bandwidth,
        state_nbytes=state_bytes,
        rows=rows,
        seed=seed,
    )
    found = plan_as_asked(asked, experiment, policy, gantt)
    print(json.dumps(found.record(), indent=1) if as_json else found.text(show))


@app.command()
def simulate(
    ranks: Ranks,
    experiment: Toml = None,
    configs: Configs = None,
    shards: Shards = None,
    epochs: Epochs = None,
    costs: CostsFrom = None,
    bandwidth: Bandwidth = None,
    state_bytes: StateBytes = None,
    rows: Rows = None,
    noise: Annotated[float, typer.Option(help="How wrong a config's costs are; 0.2: 20%.")] = 0.2,
    jitter: Annotated[float, typer.Option(help="How far single visits differ.")] = 0.03,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="How many realities.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what wrong costs do to the plan, with and without renewal, and to other schedules.

    Example: mophpc simulate --configs 16 --ranks 4 --epochs 3 --noise 0.2 --seeds 20
    """
    from mophpc.case import Asked
    from mophpc.report.whatif import print_rows
    from mophpc.simulation import simulate_as_asked

    asked = Asked(
        ranks=ranks,
        configs=configs,
        shards=shards,
        epochs=epochs,
        costs=costs,
        bandwidth=bandwidth,
        state_nbytes=state_bytes,
        rows=rows,
    )
    found = simulate_as_asked(asked, experiment, noise=noise, jitter=jitter, num_seeds=seeds)
    if as_json:
        print(json.dumps(found.record(), indent=1))
    else:
        print(f"{found.heading}\n")
        print_rows(found.rows)
        print("".join(f"\n{note}" for note in found.notes), end="\n" if found.notes else "")


@app.command()
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
    as_json: AsJson = False,
) -> None:
    """Train every config; start it with mpirun or srun.

    Example: mpirun -n 4 mophpc run launch/experiments/digits.toml --out runs/first
    """
    from mophpc.experiment import DEVICES, load_experiment, with_costs, with_device
    from mophpc.report.results import print_table
    from mophpc.run.start import run_experiment

    _one_of("--progress", progress, ("auto", "bar", "lines", "off"))
    _one_of("--transport", transport, ("mpi", "local"))
    if device is not None:
        _one_of("--device", device, DEVICES)
    if ranks is not None and transport != "local":
        raise UserError(
            f"--ranks {ranks} is for --transport local; with MPI, start with mpirun -n {ranks}"
        )
    if replay is not None and costs is not None:
        raise UserError(
            f"--costs {costs} is for planning, and --replay {replay} walks a plan; leave one out"
        )
    found = with_device(with_costs(load_experiment(experiment), costs), device)
    results = run_experiment(
        found, out, transport=transport, ranks=ranks or 1, progress=progress, replay=replay
    )
    if _is_root():
        if as_json:
            print(json.dumps(results.record(), indent=1))
        else:
            print_table(results)
            print(f"run folder: {out}")


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    config: Annotated[
        list[str] | None, typer.Option("--config", "-c", help="Config id or name; all by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train configs again in plain torch and compare every byte.

    Example: mophpc verify runs/first --config 3
    """
    from mophpc.verify import verify as verify_run

    verdicts = []
    for verdict in verify_run(run, config or []):
        verdicts.append(verdict)
        if not as_json:
            print(verdict)
    equal = sum(verdict.equal for verdict in verdicts)
    if as_json:
        print(json.dumps([verdict.record() for verdict in verdicts], indent=1))
    else:
        print(f"{equal} of {len(verdicts)} configs are equal to sequential training")
    if equal != len(verdicts):
        raise typer.Exit(1)


@app.command()
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


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    best: Annotated[bool, typer.Option("--best", help="The best config; so by default.")] = False,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Another config, by id or name.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a config's weights, and what is needed to build its model, into a folder.

    Example: mophpc export runs/first --best best-model
    """
    from mophpc.saved import load_run

    if best and config is not None:
        raise UserError(f"--best and --config {config} exclude each other; leave one out")
    found = load_run(run)
    row = found.best if config is None else found.config(config)
    folder = found.export(out, row.config_id)
    if as_json:
        print(json.dumps({"config": row.config, "folder": str(folder)}, indent=1))
    else:
        print(f"{row.config} is in {folder}: mophpc.load_model('{folder}') returns its model")


@app.command()
def doctor(
    store: Annotated[
        Path | None, typer.Argument(help="Store whose reading is timed; none by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run will meet here, and what to do about it; start it as a run is started.

    Example: mpirun -n 4 mophpc doctor digits.zarr
    """
    from mophpc.data import open_store
    from mophpc.doctor.examine import examine

    report = examine(None if store is None else open_store(store))
    if report is None:
        return
    print(json.dumps(report.record(), indent=1) if as_json else report.text())
    if report.is_broken:
        _end_others(1)
    if report.has_problem:
        raise typer.Exit(1)


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{option} is '{value}'; allowed: {', '.join(allowed)}")


def _group() -> Group | None:
    """Return the ranks that the launcher started, or None where this process is alone."""
    launched = launched_ranks(os.environ)
    if launched is None or launched[0] == 1:
        return None
    from mophpc.hop.collectives import Group
    from mophpc.hop.mpi import start_mpi

    return Group(start_mpi())


def _is_root() -> bool:
    return launched_rank(os.environ) == 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a mistake ends it with one sentence and exit status 2."""
    status = 0
    try:
        status = app(arguments, standalone_mode=False) or 0
    except typer.Exit as stop:
        status = stop.exit_code
    except MophpcError as error:
        # A failure inside a run, or its interruption, has been said where it happened.
        if _is_root() and not isinstance(error, RunError | InterruptError):
            print(f"mophpc: {error}", file=sys.stderr)
        status = _part(error)
    except (KeyboardInterrupt, BrokenPipeError):
        status = InterruptError.exit_status
    except OSError as error:
        print(f"mophpc: {error.strerror}: '{error.filename}'", file=sys.stderr)
        status = UserError.exit_status
        _end_others(status)
    except Exception as error:
        if hasattr(error, "format_message"):
            status = _usage(error)
        else:
            traceback.print_exc()
            status = 1
            _end_others(status)
    sys.exit(status)


def _part(error: MophpcError) -> int:
    """Return this rank's exit status; end the other ranks unless they end on their own."""
    if not error.agreed:
        _end_others(error.exit_status)
    elif "mophpc.hop.mpi" in sys.modules:
        # Rank 0 speaks for all, and leaves last: Open MPI reports at length a rank that failed
        # while others were still there.
        from mophpc.hop.mpi import finalize

        finalize()
        if not _is_root():
            return 0
        time.sleep(0.3)
    return error.exit_status


def _end_others(status: int) -> None:
    """End ranks that would wait for this one for ever, MPI_Finalize included."""
    if "mophpc.hop.mpi" in sys.modules:
        from mophpc.hop.mpi import abort_unless_alone

        abort_unless_alone(status)


def _usage(error: Any) -> int:
    """Show a mistake in the command line's words."""
    if _is_root():
        text = error.format_message()
        bare = type(error).__name__ == "NoArgsIsHelpError"
        print(text if bare else f"mophpc: {text} (see --help)", file=sys.stderr)
    return UserError.exit_status
