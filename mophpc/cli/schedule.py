"""Commands that need neither MPI nor data: plan, simulate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mophpc.cli.common import AsJson

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
    renewal: Annotated[
        bool, typer.Option(help="Simulate the plan with renewals, too, which takes far longer.")
    ] = True,
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
    found = simulate_as_asked(
        asked, experiment, noise=noise, jitter=jitter, num_seeds=seeds, renews=renewal
    )
    if as_json:
        print(json.dumps(found.record(), indent=1))
    else:
        print(f"{found.heading}\n")
        print_rows(found.rows, found.case.unit)
        print("".join(f"\n{note}" for note in found.notes), end="\n" if found.notes else "")
