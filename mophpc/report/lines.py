"""JSON lines of which some may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic_core import from_json

Record = dict[str, Any]


def read_records(path: Path, problems: list[str], shown: str = "") -> list[Record]:
    """Return the JSON objects of a file's lines; of damaged lines it is said how many there are.

    Args:
        path: of the file.
        problems: gets a sentence where something could not be read.
        shown: what the sentence calls the file; its name by default.
    """
    shown = shown or path.name
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        problems.append(f"{shown} cannot be read: {error.strerror}.")
        return []
    try:  # all at once, and by a parser that is less lenient: several times as fast
        found = from_json(b"[" + b",".join(lines) + b"]", cache_strings="all")
        if len(found) == len(lines) and all(type(item) is dict for item in found):
            return list(found)
    except (ValueError, RecursionError):
        pass
    records = [item for line in lines if (item := _record(line)) is not None]
    if damaged := len(lines) - len(records):
        count = "1 line" if damaged == 1 else f"{damaged} lines"
        problems.append(f"{shown}: {count} could not be read.")
    return records


def _record(line: bytes) -> Record | None:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None
