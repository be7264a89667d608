"""Parameter server: torch.distributed.rpc, asynchronous, one config after another.

As in PyTorch's tutorial on parameter servers with RPC, a trainer sends its gradients and gets the
newest parameters back; here nobody waits for other trainers. Each of them works on its own part of
the rows with the config's batch size, and each push is a step of the optimizer, so that a config
makes as many steps as everywhere else. The server is a process more than there are trainers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from compare_model import build, flush_denormals
from driver import HOST, Record, Spec, drive, free_port, note, noted, running
from loop import evaluate, load, stamped
from torch import Tensor
from torch.distributed import rpc

# It would else take shared memory, where nobody can count its bytes.
TCP = {"_transports": ["uv"], "_channels": ["basic"]}
DAY_S = 86400  # compare.py has a limit of its own


# user: begin
class Server:
    def __init__(self, config: dict[str, Any], seed: int) -> None:
        torch.manual_seed(seed)
        self.task, self.lock = build(config), Lock()

    def pull(self) -> list[Tensor]:
        with self.lock:
            return [p.detach().clone() for p in self.task.model.parameters()]

    def push(self, gradients: list[Tensor]) -> list[Tensor]:
        with self.lock:
            for parameter, gradient in zip(self.task.model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.task.optimizer.step()
        return self.pull()

    def end_epoch(self) -> None:
        self.task.lr_scheduler.step()


class Trainer:
    def __init__(self, server: rpc.RRef, config: dict[str, Any], seed: int, folder: str) -> None:
        torch.manual_seed(seed)
        self.server, self.task, self.data = server, build(config), load(folder)

    def take(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.task.model.parameters(), values, strict=True):
                parameter.copy_(value)

    def train_epoch(self) -> None:
        task, data = self.task, self.data
        self.take(self.server.rpc_sync().pull())
        task.model.train()
        for rows in torch.randperm(len(data["train_x"])).split(task.batch_size):
            task.model.zero_grad()
            outputs = task.model(data["train_x"].index_select(0, rows))
            task.loss(outputs, data["train_y"].index_select(0, rows)).backward()
            gradients = [p.grad for p in task.model.parameters()]
            self.take(self.server.rpc_sync().push(gradients))

    def evaluate(self) -> dict[str, float]:
        self.take(self.server.rpc_sync().pull())
        return evaluate(self.task, self.data)


def train_all(spec: Spec) -> None:
    for index, config in enumerate(spec.configs):
        server = rpc.RRef(Server(config, spec.seed))
        trainers = []
        for k in range(spec.ranks):
            own = (server, config, spec.seed * spec.ranks + k, f"{spec.data}/part-{k}")
            trainers.append(rpc.remote(f"trainer-{k}", Trainer, args=own))
        for epoch in range(spec.epochs):
            torch.futures.wait_all([t.rpc_async().train_epoch() for t in trainers])
            server.local_value().end_epoch()
            found = torch.futures.wait_all([t.rpc_async().evaluate() for t in trainers])
            metrics = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
            note(spec, {"config": index, **stamped(epoch, metrics)})


def run_rank(spec: Spec, rank: int) -> None:
    name = "server" if rank == spec.ranks else f"trainer-{rank}"
    options = rpc.TensorPipeRpcBackendOptions(rpc_timeout=DAY_S, **TCP)
    rpc.init_rpc(name, rank=rank, world_size=spec.ranks + 1, rpc_backend_options=options)
    if name == "server":
        train_all(spec)
    rpc.shutdown()


# user: end


def train(spec: Spec) -> list[Record]:
    environment = {**os.environ, "MASTER_ADDR": HOST, "MASTER_PORT": str(free_port())}
    command = [sys.executable, __file__, sys.argv[1]]
    own = [{**environment, "RANK": str(rank)} for rank in range(spec.ranks + 1)]
    with running(*[command] * len(own), environments=own) as processes:
        while None in [process.poll() for process in processes]:
            if any(process.returncode for process in processes):
                break  # the others would wait for it
            time.sleep(0.05)
        if any(process.returncode for process in processes):
            raise RuntimeError("a process of the parameter server has failed")
    return noted(spec)


if __name__ == "__main__":
    if "RANK" in os.environ:
        # By its own name, under which all processes find what is sent, and not as __main__.
        import parameter_server

        flush_denormals()  # the threads that serve and train are not the one that builds
        asked = Spec(**json.loads(Path(sys.argv[1]).read_text()))
        parameter_server.run_rank(asked, int(os.environ["RANK"]))
    else:
        drive(train)
