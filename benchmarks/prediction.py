"""How well a plan predicts a real training: 2 ranks, 16 mixed configs on Fashion-MNIST.

    python benchmarks/prediction.py --data /usr/share/datasets/fashion-mnist

Costs come from the run's own pilot, and the plan is renewed as visits are measured. Compared is the
end of the run with what the plan said when an epoch's worth of visits was done, and when every
config had ended its first epoch. Takes about 5 minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import events, machine, run_experiment, write_fashion

RANKS, TARGET = 2, 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--keep", type=Path, help="keep the store and the run here")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        return measure(arguments.data, folder)


def measure(data: Path, folder: Path) -> int:
    toml = write_fashion(folder, data, RANKS)
    run = folder / "run"
    run_experiment(toml, run, RANKS)
    records = [r for own in events(run) for r in own]
    visits = [r for r in records if r["kind"] == "visit"]
    begin = min(r["start"] for r in visits)
    end = max(r["end"] for r in records if r["kind"] in ("visit", "eval"))
    renewals = json.loads((run / "plan.json").read_text())["renewals"]
    first = next(r for r in records if r["kind"] == "plan")
    busy = sum(r["end"] - r["start"] for r in records if r["kind"] in ("visit", "eval"))
    print(f"{len(renewals)} renewals; idle {1 - busy / RANKS / (end - begin):.2%}")
    print(
        f"pilot {first['pilot_s']:.2f} s, {first['pilot_s'] / (end - begin):.2%} of the makespan; "
        f"first plan predicted {first['makespan_s']:.1f} s"
    )
    ends = sorted(r["end"] for r in visits)
    epochs = 1 + max(r["epoch"] for r in visits)
    # Configs do not go in step: an epoch's worth of visits is done long before the last config
    # has ended its first.
    whens = {
        "an epoch's worth of visits": ends[len(ends) // epochs - 1],
        "every config's first epoch": max(r["end"] for r in visits if r["epoch"] == 0),
    }
    for what, when in whens.items():
        predicted = [r["end_s"] for r in renewals if r["at_s"] <= when][-1]
        error = (end - predicted) / (end - begin)
        print(
            f"after {what} (at {when - begin:.1f} s) the plan predicted a makespan of "
            f"{predicted - begin:.1f} s; it was {end - begin:.1f} s: {error:+.2%} "
            f"(target {TARGET:.0%} either way)"
        )
    return int(abs(error) > TARGET)


if __name__ == "__main__":
    sys.exit(main())
