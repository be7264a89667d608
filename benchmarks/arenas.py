"""64 configs of 50 MB of state on 4 ranks: how many arenas a rank holds, and its memory.

python benchmarks/arenas.py
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import events, machine, mophpc, run_experiment

CONFIGS, RANKS, STATE_BYTES = 64, 4, 50_000_000

TOML = """
build = "{file}:build"
epochs = 2
[data]
store = "{store}"
[schedule]
costs = "equal"
[space]
lr = {rates}
"""


def build(config: Mapping[str, Any]) -> Any:
    """Make a model of 50 MB, whose optimizer keeps no state."""
    import torch
    from torch import nn

    from mophpc import Task

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)
            self.ballast = nn.Parameter(torch.zeros(STATE_BYTES // 4 - 18))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    model = Wide()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=config["lr"])
    return Task(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=8)


def main() -> int:
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        generator = np.random.default_rng(0)
        x = generator.standard_normal((64, 8), dtype=np.float32)
        np.savez(folder / "data.npz", x=x, y=generator.integers(0, 2, 64))
        store = folder / "store.zarr"
        mophpc("prepare", str(folder / "data.npz"), str(store), "--shards", str(RANKS))
        rates = [0.001 * (1 + i) for i in range(CONFIGS)]
        toml = folder / "experiment.toml"
        toml.write_text(TOML.format(file=Path(__file__).resolve(), store=store, rates=rates))
        took = run_experiment(toml, folder / "run", RANKS)
        ends = [r for rank in events(folder / "run") for r in rank if r["kind"] == "end"]
    allowed = math.ceil(CONFIGS / RANKS) + 3
    most = max(end["most_arenas"] for end in ends)
    peak = max(end["peak_rss_bytes"] for end in ends)
    before = min(end["start_rss_bytes"] for end in ends)
    print(f"{CONFIGS} configs of {STATE_BYTES / 1e6:.0f} MB on {RANKS} ranks, {took:.0f} s in all")
    print(f"most arenas on a rank: {most} (target {allowed} or less)")
    print(
        f"peak memory of a rank {peak / 1e6:.0f} MB, of which {before / 1e6:.0f} MB before the "
        f"first visit: {(peak - before) / STATE_BYTES:.1f} states"
    )
    return int(most > allowed)


if __name__ == "__main__":
    sys.exit(main())
