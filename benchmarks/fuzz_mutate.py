"""Damage for files of any kind: bytes, lines, JSON and TOML values, and links in a folder.

Every choice is drawn from one generator, so that a seed says all.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HUGE = 10**30
TEXTS = (
    "",
    " ",
    "..",
    "../../escaped",
    "/tmp/escaped",
    "a/b",
    "\0",
    "x\ny",
    "é\u202e☃",
    "\ud800",
    "con" * 200,
    "nan",
    "inf",
    "c0e0s0r0n0",
    "c9e9s9r9n9",
    "__class__",
    "%s{0}",
)
NUMBERS = (
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**63,
    -(2**63),
    HUGE,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
)
Path_ = tuple[Any, ...]


def value(rng: random.Random, old: Any) -> Any:
    """Return a value to take the place of another: of the same kind or of any other."""
    kind = rng.randrange(9)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice((None, True, False, [], {}, [[]], {"": None}))
    if kind == 6:
        return nested(rng.choice((3, 50, 900)))
    if kind == 7:
        return [old, old] if rng.random() < 0.5 else {"x": old}
    return neighbour(rng, old)


def neighbour(rng: random.Random, old: Any) -> Any:
    """Return something that is nearly the same."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return rng.choice((old + 1, old - 1, -old, old * 2, float(old), str(old)))
    if isinstance(old, str) and old:
        at = rng.randrange(len(old))
        return old[:at] + rng.choice("0a9./\\-é") + old[at + 1 :]
    if isinstance(old, list):
        return old[:-1] if rng.random() < 0.5 else [*old, *old[:1]]
    if isinstance(old, dict):
        gone = rng.choice([*old, None])
        return {key: item for key, item in old.items() if key != gone}
    return 0


def nested(depth: int) -> list[Any]:
    """Return lists in lists."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def places(document: Any) -> list[Path_]:
    """Return the places of all values of a document, itself aside; lists in it may be deep."""
    found: list[Path_] = []
    left: list[tuple[Path_, Any]] = [((), document)]
    while left:
        path, value = left.pop()
        if path:
            found.append(path)
        if isinstance(value, dict):
            items: Sequence[tuple[Any, Any]] = list(value.items())
        else:
            items = list(enumerate(value)) if isinstance(value, list) else []
        left += [((*path, key), item) for key, item in reversed(items)]
    return found


def change(rng: random.Random, document: Any) -> Any:
    """Return a document with one of its values changed, removed, renamed or doubled."""
    found = places(document)
    if not found or rng.random() < 0.03:
        return value(rng, document)
    # Each depth alike: else long lists of numbers would get all the damage.
    depth = rng.choice(sorted({len(place) for place in found}))
    *path, key = rng.choice([place for place in found if len(place) == depth])
    holder = document
    for part in path:
        holder = holder[part]
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[str(rng.choice(TEXTS))] = holder.pop(key)
    elif kind == 1:
        holder.insert(key, holder[key])
    else:
        holder[key] = value(rng, holder[key])
    return document


def as_json(document: Any, like: bytes) -> bytes:
    """Return JSON as Python writes it, which knows NaN, and lone surrogates as escapes."""
    text = json.dumps(document, indent=1 if like[:40].count(b"\n") > 1 else None)
    return text.encode()


def json_damage(rng: random.Random, raw: bytes) -> bytes:
    """Change a value or two of a JSON document; bytes of one that is damaged already."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return byte_damage(rng, raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        document = change(rng, document)
    return as_json(document, raw) + b"\n"


def line_damage(rng: random.Random, raw: bytes) -> bytes:
    """Change, remove, double or swap lines; change a value of one that is JSON."""
    lines = raw.split(b"\n")
    at = rng.randrange(max(1, len(lines) - 1))
    kind = rng.randrange(7)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = rng.choice(
            (b"", b"{}", b"[]", b"null", b'{"kind": "part"}', b"\0\0\0", b"\xff")
        )
    elif kind == 4:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
    else:
        try:
            lines[at] = as_json(change(rng, json.loads(lines[at])), b"")
        except (ValueError, RecursionError):
            lines[at] = byte_damage(rng, lines[at])
    return b"\n".join(lines)


_ASSIGNED = re.compile(r"^(\s*[\w.\"-]+\s*=\s*)(.+)$")


def toml_damage(rng: random.Random, raw: bytes) -> bytes:
    """Change a value of a TOML file, or a line of it."""
    lines = raw.decode(errors="replace").split("\n")
    assigned = [i for i, line in enumerate(lines) if _ASSIGNED.match(line)]
    if not assigned or rng.random() < 0.2:
        return line_damage(rng, raw)
    at = rng.choice(assigned)
    found = _ASSIGNED.match(lines[at])
    assert found is not None
    kind = rng.randrange(8)
    if kind == 0:
        lines[at] = rng.choice(("x = 1", "[search]", "[data]", "[[configs]]", "[space.lr]", "= 3"))
    elif kind == 1:
        lines.insert(at, lines[at])
    elif kind == 2:
        lines.insert(at, rng.choice(EXTRA))
    else:
        lines[at] = found[1] + toml_value(rng, found[2])
    return "\n".join(lines).encode(errors="surrogatepass")


EXTRA = (
    "threads = 0",
    "[schedule]\ncosts = '../../etc/passwd'",
    "[search]\nmethod = 'asha'",
    "[search]\nconfigs = 3",
    "[search]\nmethod = 'nobody.py:none'",
    "[checkpoints]\nstates = -1",
    "[signals]\nalso = ['KILL']",
    "[track]\ntensorboard = 'boards'",
    "[faults]\nhang_s = nan",
    "[data]\nmemory_bytes = 1",
)


def toml_value(rng: random.Random, old: str) -> str:
    """Return a value as TOML has it."""
    kind = rng.randrange(5)
    if kind == 0:
        number = rng.choice(NUMBERS)
        return str(number)
    if kind == 1:
        text = rng.choice(TEXTS)
        return json.dumps(text, ensure_ascii=rng.random() < 0.7)
    if kind == 2:
        return rng.choice(
            (
                "[]",
                "{}",
                "[[]]",
                "true",
                "''",
                "1979-05-27",
                "{ uniform = [1, 0] }",
                "[nan]",
                "[" * 900 + "]" * 900,
                "{ choice = [1], when = { lr = 0.1 } }",
                "0x1F",
                "1_0",
            )
        )
    if kind == 3:
        return f"[{old}]" if rng.random() < 0.5 else f'"{old}"'
    at = rng.randrange(len(old) + 1)
    return old[:at] + rng.choice("0129-.e[]{}\"',/\\ é\0") + old[at:]


def byte_damage(rng: random.Random, raw: bytes) -> bytes:
    """Flip bits, cut, repeat, blank or insert bytes."""
    kind = rng.randrange(7)
    if not raw or kind == 0:
        return rng.choice((b"", b"\0" * 64, b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 5000))
    at = rng.randrange(len(raw))
    size = min(len(raw) - at, rng.choice((1, 8, 64, 512)))
    if kind == 1:
        return raw[:at]
    if kind == 2:
        return raw[:at] + raw[at + size :]
    if kind == 3:
        return raw[:at] + raw[at : at + size] * 2 + raw[at + size :]
    if kind == 4:
        return raw[:at] + b"\0" * size + raw[at + size :]
    if kind == 5:
        return raw[:at] + rng.randbytes(size) + raw[at + size :]
    flipped = bytearray(raw)
    for _ in range(rng.choice((1, 1, 3, 20))):
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


Damage = Callable[[random.Random, bytes], bytes]
OF_NAME: dict[str, tuple[Damage, ...]] = {
    ".toml": (toml_damage, toml_damage, byte_damage),
    ".json": (json_damage, json_damage, byte_damage),
    ".jsonl": (line_damage, line_damage, byte_damage),
}


def damage_file(rng: random.Random, path: Path) -> str:
    """Damage a file in place, or what is there instead of it; return what was done, in words."""
    kind = rng.random()
    if kind < 0.04:
        path.unlink()
        return "removed"
    if kind < 0.06:
        path.unlink()
        path.mkdir()
        return "made a folder"
    if kind < 0.08:
        path.chmod(0)
        return "not readable"
    damage = rng.choice(OF_NAME.get(path.suffix, (byte_damage,)))
    before = path.read_bytes()
    for _ in range(20):
        after = damage(rng, before)
        if after != before:
            break
    path.write_bytes(after)
    return damage.__name__.replace("_", " ")
