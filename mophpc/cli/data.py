"""Commands for stores: prepare, inspect."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mophpc.cli.common import AsJson, group_of_ranks
from mophpc.errors import UserError


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
    group = group_of_ranks()
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
