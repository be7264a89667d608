"""Model Hopper Parallelism: `mophpc run` under mpirun."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from driver import Record, Spec, drive

# user: begin
EXPERIMENT = """
build = "{build}"
epochs = {epochs}
seed = {seed}
[data]
store = "{store}"
[objective]
metric = "accuracy"
mode = "max"
"""
COMMAND = "mpirun -n {ranks} mophpc run experiment.toml --out run"
# user: end

BUILD = Path(__file__).resolve().parent.parent / "compare_model.py"
FLAGS = ["--oversubscribe", "--bind-to", "none"]
# Hops go over TCP, where they can be counted, as those of the other systems.
NETWORK = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,tcp",
    "OMPI_MCA_btl_tcp_if_include": "lo",
    "OMPI_MCA_mtl": "^ofi",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def train(spec: Spec) -> list[Record]:
    text = EXPERIMENT.format(
        build=f"{BUILD}:build",
        epochs=spec.epochs,
        seed=spec.seed,
        store=Path(spec.data) / "store.zarr",
    )
    # The same list as for the others; a user would write a [space].
    for config in spec.configs:
        text += "[[configs]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in config.items())
    folder = Path(spec.scratch)
    (folder / "experiment.toml").write_text(text)
    launcher, *rest = COMMAND.format(ranks=spec.ranks).split()
    command = [launcher, *FLAGS, *rest, "--progress", "off"]
    # Open MPI's folder of a job is named by the process's number, which is the same in each process
    # namespace, and what a job that was killed has left there ends the next one.
    own = {"TMPDIR": str(folder)}
    subprocess.run(command, check=True, cwd=folder, env={**os.environ, **NETWORK, **own})
    return read(folder / "run")


def read(run: Path) -> list[Record]:
    """Return the epochs of all configs, with what each config took of the ranks' time.

    `share_s` is seconds of visits and evaluations, `share_bytes` those of hops, of this epoch.
    """
    files = sorted((run / "events").glob("rank-*.jsonl"))
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    metrics_file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    known = {(e["config"], e["epoch"]): e["end"] for e in events if e["kind"] == "eval"}
    # Events count from the run's start; its last line of metrics is written as it ends.
    start = metrics_file.stat().st_mtime - max(known.values())
    records = []
    for line in lines:
        config, epoch = line["config_id"], line["epoch"]
        own = [e for e in events if e.get("config") == config]
        work = [e for e in own if e["kind"] in ("visit", "eval") and e["epoch"] == epoch]
        sent = [e for e in own if e["kind"] == "hop" and e["direction"] == "send"]
        records.append(
            {
                "config": config,
                "epoch": epoch,
                "time": start + known[config, epoch],
                "accuracy": line["accuracy"],
                "valid_loss": line["valid_loss"],
                "share_s": sum(e["end"] - e["start"] for e in work),
                "share_bytes": sum(e["nbytes"] for e in sent) if epoch == 0 else 0,
            }
        )
    return records


if __name__ == "__main__":
    drive(train)
