"""Data parallelism by all-reduce: DistributedDataParallel over gloo, one config after another.

As in PyTorch's ImageNet example, a config's batch is divided among the processes, so that it means
the same as everywhere else. Each process has its own part of the rows, of the validation too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from compare_model import build
from driver import Record, Spec, drive, leave, note, torchrun
from loop import Data, evaluate, load, stamped, train_epoch
from torch.nn.parallel import DistributedDataParallel

from mophpc import Task


# user: begin
def evaluate_together(task: Task, data: Data) -> dict[str, float]:
    own = evaluate(task, data)
    means = torch.tensor(list(own.values()), dtype=torch.float64)
    dist.all_reduce(means)
    return dict(zip(own, (means / dist.get_world_size()).tolist(), strict=True))


def train_config(spec: Spec, index: int, data: Data) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(spec.seed)
    task = build(spec.configs[index])
    plain = task.model
    task.model = DistributedDataParallel(plain, gradient_as_bucket_view=True)
    torch.manual_seed(spec.seed * size + rank)
    for epoch in range(spec.epochs):
        train_epoch(task, data, task.batch_size // size)
        task.lr_scheduler.step()
        task.model, wrapped = plain, task.model
        metrics = evaluate_together(task, data)
        task.model = wrapped
        if rank == 0:
            note(spec, {"config": index, **stamped(epoch, metrics)})


def train_rank(spec: Spec) -> None:
    dist.init_process_group("gloo")
    data = load(f"{spec.data}/part-{dist.get_rank()}")
    for index in range(len(spec.configs)):
        train_config(spec, index, data)
    dist.destroy_process_group()


# user: end


def train(spec: Spec) -> list[Record]:
    return torchrun(__file__, spec)


if __name__ == "__main__":
    if "RANK" in os.environ:
        train_rank(Spec(**json.loads(Path(sys.argv[1]).read_text())))
        leave()
    else:
        drive(train)
