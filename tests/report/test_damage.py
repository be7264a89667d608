"""Run folders with bytes changed anywhere: a page comes out, and sentences about what is wrong."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest

from mophpc.report.make import make_report
from mophpc.report.page import json_block

FILES = ("results.json", "plan.json", "metrics.jsonl", "experiment.toml", "events/rank-0001.jsonl")
ODD = [None, -1, 0, 1e300, 2**70, "x", "", [], {}, True, [[]], {"a": None}, 0.5, "c0e0s0r0n0"]


def change(value, rng, depth=0):
    """Return JSON with one value somewhere in it replaced."""
    if isinstance(value, dict | list) and value and (depth == 0 or rng.random() < 0.85):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(list(keys))
        copy = value.copy()
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = change(value[key], rng, depth + 1)
        return copy
    return rng.choice([*ODD, math.nan, math.inf])


def mutate(path, rng):
    text = path.read_text()
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_text(json.dumps(change(json.loads(text), rng)))
    elif path.suffix == ".jsonl" and rng.random() < 0.8:
        lines = text.splitlines()
        for _ in range(5):
            at = rng.randrange(len(lines))
            lines[at] = json.dumps(change(json.loads(lines[at]), rng))
        path.write_text("\n".join(lines) + "\n")
    else:
        raw = bytearray(text.encode())
        for _ in range(rng.randrange(1, 8)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(bytes(raw[: rng.randrange(len(raw) // 2, len(raw))]))


@pytest.mark.parametrize("seed", range(60))
def test_mutated_files(pattern, tmp_path, seed):
    rng = random.Random(seed)
    folder = tmp_path / "run"
    shutil.copytree(pattern, folder)
    for name in rng.sample(FILES, rng.choice([1, 1, 2])):
        mutate(folder / name, rng)
    made = make_report(folder)
    assert all(problem.isprintable() and len(problem) < 400 for problem in made.problems)
    trace = json.loads((folder / "trace.json").read_text())
    json_block(trace)  # refuses what JSON cannot hold
