"""Damaged experiments, stores, states, journals, plans and run folders: what comes of them.

Each case damages a file (or puts a link in its place), and runs a command that reads it. Bad is: a
traceback, an error that nobody explains, a hang, a success that gives something else than the
undamaged files, and anything written outside. Exit status 1 if any case is bad.

    python benchmarks/faults_fuzz.py                       # 200 cases
    python benchmarks/faults_fuzz.py --cases 2000 --seed 7
    python benchmarks/faults_fuzz.py --only states:123456  # one case again, with all that it says
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hypothesis
from fuzz_cases import KINDS, Outcome, case
from fuzz_world import LIMIT_S, World
from hypothesis import strategies

GRACE_S = 40.0
"""A process that says nothing for so much longer than a command may take is ended."""
Case = tuple[str, int]


def draw(count: int, seed: int) -> list[Case]:
    """Return kinds and numbers of cases, all kinds alike; a number says all of its case."""
    found: list[Case] = []
    kinds = strategies.permutations(list(KINDS))

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=4 * count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kinds, strategies.integers(0, 2**48))
    def add(order: Sequence[str], number: int) -> None:
        fewest = min(
            Counter(dict.fromkeys(KINDS, 0) | Counter(k for k, _ in found)).items(),
            key=lambda item: (item[1], order.index(item[0])),
        )
        if len(found) < count:
            found.append((fewest[0], number))

    add()
    return found


def serve(root: Path, cases: Sequence[Case]) -> None:
    """Carry out cases in this process, a line of JSON each."""
    world = World(root)
    stdout = sys.stdout
    for kind, number in cases:
        outcome = case(world, kind, number)
        print(json.dumps(asdict(outcome)), file=stdout, flush=True)
        if outcome.verdict == "hang":
            os._exit(3)  # its threads go on


def carry_out(root: Path, cases: Sequence[Case]) -> Iterator[Outcome]:
    """Yield the outcomes of cases, in processes that may die."""
    left = list(cases)
    while left:
        given = json.dumps(left)
        words = [sys.executable, __file__, "--serve", str(root)]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(given)
            process.stdin.close()
            errors: list[str] = []
            reader = threading.Thread(target=_drain, args=(process, errors), daemon=True)
            reader.start()
            while left:
                alarm = threading.Timer(LIMIT_S + GRACE_S, process.kill)
                alarm.start()
                line = process.stdout.readline()
                alarm.cancel()
                if not line:
                    break
                outcome = Outcome(**json.loads(line))
                left.pop(0)
                yield outcome
                if outcome.verdict == "hang":
                    break
            process.wait()
            reader.join(5.0)
            if left and process.returncode not in (0, 3):
                kind, number = left.pop(0)
                died = f"the process died: {process.returncode}"
                yield Outcome(number, kind, "", "", "", died, 0.0, "".join(errors)[-1500:])


def _drain(process: subprocess.Popen[str], into: list[str]) -> None:
    assert process.stderr is not None
    into.extend(process.stderr)


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of a table: a kind a line."""
    yield "| damaged | cases | refused in a sentence | right all the same | bad | longest |"
    yield "|---|---|---|---|---|---|"
    rows = [(kind, [o for o in outcomes if o.kind == kind]) for kind in KINDS]
    for kind, own in [*rows, ("all", list(outcomes))]:
        if own:
            count = Counter("bad" if o.is_bad else o.verdict for o in own)
            longest = max(o.took_s for o in own)
            cells = (kind, len(own), count["refused"], count["right"], count["bad"])
            yield f"| {' | '.join(map(str, cells))} | {longest:.1f} s |"


def main() -> int:
    """Carry out the cases; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), action="append")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, json.load(sys.stdin))
        return 0
    begin_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "a" / "b"
        World(root)
        if given.only:
            cases = [(one.partition(":")[0], int(one.partition(":")[2])) for one in given.only]
        else:
            cases = draw(given.cases, given.seed)
            cases = [one for one in cases if not given.kind or one[0] in given.kind]
        outcomes = []
        for outcome in carry_out(root, cases):
            outcomes.append(outcome)
            if outcome.is_bad or given.only:
                _show(asdict(outcome))
        print("\n".join(table(outcomes)))
        print(f"{len(outcomes)} cases, seed {given.seed}, {time.monotonic() - begin_s:.0f} s")
    return int(any(outcome.is_bad for outcome in outcomes) or len(outcomes) < len(cases))


def _show(outcome: dict[str, Any]) -> None:
    print(f"{outcome['kind']}:{outcome['number']}: {outcome['verdict']}")
    print(f"    {outcome['file']}: {outcome['damage']}; {outcome['command']}")
    for line in outcome["text"].splitlines():
        print(f"    {line[:400]}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
