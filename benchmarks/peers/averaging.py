"""Model averaging: PyTorch's PeriodicModelAverager over gloo, once per epoch.

One config is trained after another. Each process trains on its own part of the rows with the
config's own batch size, and the models' parameters are averaged after each epoch, and so are
BatchNorm's statistics, which the averager leaves alone.
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
from loop import Data, evaluate, load, stamped
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

from mophpc import Task


# user: begin
def train_epoch(task: Task, data: Data, averager: PeriodicModelAverager) -> None:
    task.model.train()
    for rows in torch.randperm(len(data["train_x"])).split(task.batch_size):
        task.optimizer.zero_grad()
        outputs = task.model(data["train_x"].index_select(0, rows))
        loss = task.loss(outputs, data["train_y"].index_select(0, rows))
        loss.backward()
        task.optimizer.step()
        averager.average_parameters(task.model.parameters())


def average(values: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(values)
    return values.div_(dist.get_world_size())


def train_config(spec: Spec, index: int, data: Data) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(spec.seed)
    task = build(spec.configs[index])
    torch.manual_seed(spec.seed * size + rank)
    steps = -(-len(data["train_x"]) // task.batch_size)
    averager = PeriodicModelAverager(period=steps, warmup_steps=steps - 1)
    for epoch in range(spec.epochs):
        train_epoch(task, data, averager)
        task.lr_scheduler.step()
        for buffer in task.model.buffers():
            if buffer.is_floating_point():
                average(buffer)
        own = evaluate(task, data)
        means = average(torch.tensor(list(own.values()), dtype=torch.float64)).tolist()
        if rank == 0:
            note(spec, {"config": index, **stamped(epoch, dict(zip(own, means, strict=True)))})


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
