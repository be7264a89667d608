"""Commands for people while a run goes on: status, stop, clone, add."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mophpc.cli.common import AsJson
from mophpc.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mophpc.people import Look
    from mophpc.requests import Wish

Run = Annotated[Path, typer.Argument(help="Folder of a run that goes on.")]
Wait = Annotated[
    float, typer.Option(min=0.0, max=86400.0, help="Seconds to wait for the run's answer.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter; may be repeated."),
]
EpochsInAll = Annotated[
    int | None,
    typer.Option(min=1, max=1_000_000, help="How many in all; those of the run by default."),
]


def status(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every 2 seconds, until the run ends.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, while it goes on or after.

    Example: mophpc status runs/first --watch
    """
    from mophpc import people

    if watch and as_json:
        raise UserError("--watch and --json exclude each other; leave one out")
    if as_json:
        print(json.dumps(people.look(run).record(), indent=1))
    elif not watch:
        people.show(run)
    else:
        try:
            people.watch(run)
        except KeyboardInterrupt:  # how one stops watching
            return


def stop(
    run: Run,
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="Config ids or names, as c003.")
    ],
    wait: Wait = 10.0,
) -> None:
    """Stop configs of a run that goes on; their weights are kept.

    Example: mophpc stop runs/first 3 c007
    """
    from mophpc import people

    seen = people.look_running(run)
    _ask(seen, people.wish_stops(seen, configs), [], wait)


def clone(
    run: Run,
    config: Annotated[str, typer.Argument(help="Config id or name, as c003.")],
    settings: Settings = None,
    epochs: EpochsInAll = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start from initial weights, not from the config's.")
    ] = False,
    wait: Wait = 10.0,
) -> None:
    """Let a copy of a config go on with other hyperparameters, beside it.

    Example: mophpc clone runs/first c003 --set lr=3e-4
    """
    from mophpc import people

    seen = people.look_running(run)
    wish, notes = people.wish_clone(seen, config, settings or [], epochs, fresh=fresh)
    _ask(seen, [wish], notes, wait)


def add(
    run: Run,
    settings: Settings = None,
    file: Annotated[
        Path | None, typer.Option(help="Several configs: TOML with [[configs]], or JSON.")
    ] = None,
    epochs: EpochsInAll = None,
    wait: Wait = 10.0,
) -> None:
    """Add configs to a run that goes on.

    Example: mophpc add runs/first --set lr=3e-4 --set width=64
    """
    from mophpc import people

    seen = people.look_running(run)
    wishes, notes = people.wish_additions(seen, settings or [], file, epochs)
    _ask(seen, wishes, notes, wait)


def _ask(seen: Look, wishes: Sequence[Wish], notes: Sequence[str], wait_s: float) -> None:
    """Ask, and print the answers.

    Raises:
        typer.Exit: something was refused.
    """
    from mophpc.people import ask, cell_text

    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    is_refused = False
    for request, answer in ask(seen, wishes, wait_s):
        if answer is None:
            print(
                f"no answer yet to: {request}; it is taken up at the next boundary, and 'mophpc "
                f"status {seen.run}' shows what waits"
            )
        elif answer.accepted:
            print(cell_text(answer.text))
        else:
            is_refused = True
            print(f"mophpc: {cell_text(answer.text)}", file=sys.stderr)
    if is_refused:
        raise typer.Exit(UserError.exit_status)
