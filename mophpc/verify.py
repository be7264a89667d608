"""Train a config again, in one process and plain torch, and compare every byte of its state.

Nothing of the running layer is used here: no arena, no hop, no schedule, and the rows are read
with zarr alone. What is shared is the user's `build`, the `Task` that it returns, and the rules
for order and seeds that the README states, written out a second time. Metrics are computed by the
same function, since they are not part of the state; a GPU is chosen, and torch.compile called, in
the same way, since what they compute differs otherwise.
"""

from __future__ import annotations

import hashlib
import math
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor, nn

from mophpc.data.shard import check_store
from mophpc.data.store import StoreInfo, open_store
from mophpc.errors import LaunchError, StoreError
from mophpc.experiment import Experiment, load_experiment
from mophpc.loading import source_sha256
from mophpc.recorded import check_shards, choose, is_copy, read_rows
from mophpc.train.batches import InMemory
from mophpc.train.compiling import compile_models
from mophpc.train.device import CPU, LOOK_EVERY, Device, be_deterministic, choose_device
from mophpc.train.evaluation import evaluate
from mophpc.train.task import Task

CACHE_BYTES = 4 << 30
"""Shards are kept in memory up to this size."""

Fields = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a config's state is what sequential training gives."""

    config_id: int
    config: str
    recorded: str
    """`state_sha256` of the run."""
    again: str
    """`state_sha256` of training again."""
    note: str = ""
    not_verified: str | None = None
    """Why there is nothing to compare, as in `failed`."""

    @property
    def equal(self) -> bool | None:
        """Whether every byte is the same; None where there is nothing to compare."""
        return None if self.not_verified else self.recorded == self.again

    def record(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"equal": self.equal}

    def __str__(self) -> str:
        if self.not_verified:
            return f"{self.config}: not verified: {self.not_verified}"
        if self.equal:
            return f"{self.config}: equal {self.again}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.config}: NOT EQUAL recorded {self.recorded} again {self.again}{note}"


def verify(run: Path, configs: Sequence[str] = ()) -> Iterator[Verdict]:
    """Train configs of a run again and compare; yield a verdict each.

    Args:
        run: the run folder.
        configs: ids or names; all that the run ended by default.

    Raises:
        RunFolderError: there is no such run or config, or the run did not end.
        StoreError: the store is gone or another one.
    """
    rows = read_rows(run)
    chosen = choose(rows, configs)
    experiment = load_experiment(run / "experiment.toml")
    versions = tomllib.loads((run / "experiment.toml").read_text()).get("versions", {})
    info = open_store(Path(experiment.data.store))
    if info.digest != versions.get("store"):
        raise StoreError(
            f"store '{experiment.data.store}' is not the one of the run: its digest is "
            f"{info.digest}, the run's was {versions.get('store')}"
        )
    check_shards(run, rows, info.num_shards)
    damage = check_store(info.path)  # zarr reads a missing object as zeros
    if damage:
        raise StoreError(damage[0])
    build = experiment.load_build()
    changed = source_sha256(build) != versions.get("build_sha256")
    note = (
        "the file of build has changed since the run"
        if changed
        else "what is no parameter or buffer, nor in optimizer, lr_scheduler or extras, cannot hop"
    )
    torch.set_num_threads(experiment.threads)
    shards = _Shards(info, device_of(experiment))
    again_of = Again(experiment, build, rows, shards)
    for row in chosen:
        why = _why_not(row)
        again = "" if why else state_sha256(again_of.end(row["config_id"]))
        recorded = row["state_sha256"]
        yield Verdict(row["config_id"], row["config"], recorded, again, "" if why else note, why)


def _why_not(row: Mapping[str, Any]) -> str | None:
    """Say why a config has no state to compare; None if it has one."""
    if row["status"] not in ("failed", "unfinished") and not row["route"]:
        return f"{row['status']} before its first visit"
    return None if row["state_sha256"] and row["route"] else str(row["status"])


def device_of(experiment: Experiment) -> Device:
    """Return the device of the kind that the run had.

    Raises:
        LaunchError: this machine has none.
    """
    if experiment.device.use != "cuda":
        return CPU
    if not torch.cuda.is_available():
        raise LaunchError(
            "the run trained on a GPU, and this machine has none; verify it where there is one, "
            "since a CPU rounds differently"
        )
    if experiment.device.deterministic:
        be_deterministic()
    return choose_device("cuda", [], 0)


class _Shards:
    """Rows of the store, as tensors, read with zarr alone."""

    def __init__(self, info: StoreInfo, device: Device) -> None:
        self.device = device
        self._info = info
        self._group = zarr.open_group(info.path, mode="r")
        self._kept: dict[int, Fields] = {}
        self._valid: Fields | None = None

    def train(self, shard: int) -> Fields:
        if shard not in self._kept:
            start = sum(self._info.shard_rows[:shard])
            fields = self._read("train", start, start + self._info.shard_rows[shard])
            size = sum(tensor.nbytes for tensor in fields.values())
            if size * (len(self._kept) + 1) > CACHE_BYTES:
                self._kept.clear()
            self._kept[shard] = fields
        return self._kept[shard]

    def valid(self) -> Fields:
        if self._valid is None:
            self._valid = self._read("valid", 0, self._info.valid_rows)
        return self._valid

    def _read(self, split: str, start: int, stop: int) -> Fields:
        found = {}
        for field in self._info.fields:
            array = self._group[f"{split}/{field.name}"]
            found[field.name] = torch.from_numpy(np.array(array[start:stop]))  # type: ignore[index]  # an array
        return found


class Again:
    """Trains configs again, along their recorded routes.

    Args:
        experiment: of the run.
        build: the user's function.
        rows: of the results, by config_id.
        shards: the store's rows.
    """

    def __init__(
        self,
        experiment: Experiment,
        build: Any,
        rows: Sequence[Mapping[str, Any]],
        shards: _Shards,
    ) -> None:
        self._experiment = experiment
        self._build = build
        self._rows = rows
        self._shards = shards

    def end(self, config_id: int) -> Task:
        """Return the Task of a config as it was at the end."""
        return self._before(config_id, math.inf)

    def _before(self, config_id: int, until: float) -> Task:
        """Return the Task of a config as it was before an epoch, copies made then not yet made."""
        row = self._rows[config_id]
        copies = [e for e in row.get("lineage", ()) if e["epoch"] < until and is_copy(e)]
        begin = 0
        if copies:
            begin = copies[-1]["epoch"]
            source = copies[-1]["source"]
            values = copies[-1]["hyperparameters"]
            task = self._copy(self._before(source, begin), self._values(source, begin), values)
        else:
            task = self._fresh(self._values(config_id, until))
        route = [visit for visit in row["route"] if begin <= visit["epoch"] < until]
        return _train(self._experiment, task, route, self._shards)

    def _values(self, config_id: int, until: float) -> Mapping[str, Any]:
        """Return a config's hyperparameters before an epoch, copies made then not yet made."""
        row = self._rows[config_id]
        found: Mapping[str, Any] = row["hyperparameters"]
        for place, entry in enumerate(row.get("lineage", ())):
            if place == 0 or entry["epoch"] < until:
                found = entry["hyperparameters"]
        return found

    def _fresh(self, values: Mapping[str, Any]) -> Task:
        _seed_all(self._experiment.seed)
        where = self._shards.device.where
        with nullcontext() if where.type == "cpu" else where:
            task: Task = self._build(dict(values))
        task.place(where)
        return task

    def _copy(self, source: Task, old: Mapping[str, Any], new: Mapping[str, Any]) -> Task:
        """Return the Task of new hyperparameters with a state that was trained with old ones.

        Where the optimizers of both differ from the first, the state is changed alike: numbers are
        multiplied by how many times as large they are now, and other values replaced.
        """
        task, before, after = self._fresh(new), self._fresh(old), self._fresh(new)
        task.model.load_state_dict(source.model.state_dict())
        if isinstance(task.loss, nn.Module) and isinstance(source.loss, nn.Module):
            task.loss.load_state_dict(source.loss.state_dict())
        task.optimizer.load_state_dict(source.optimizer.state_dict())
        for name, extra in source.extras.items():
            task.extras[name].load_state_dict(extra.state_dict())
        if task.lr_scheduler is not None:
            task.lr_scheduler.load_state_dict(source.lr_scheduler.state_dict())
        groups = (task.optimizer.param_groups, before.optimizer.param_groups)
        for group, was, now in zip(*groups, after.optimizer.param_groups, strict=True):
            for key in now:
                if key != "params" and key in was and repr(was[key]) != repr(now[key]):
                    group[key] = _scaled(group[key], was[key], now[key])
        _rescale(task.lr_scheduler, before.lr_scheduler, after.lr_scheduler)
        return task


def _scaled(value: Any, was: Any, now: Any) -> Any:
    return value * (now / was) if _are_numbers([value, was, now]) and was else now


def _rescale(scheduler: Any, was: Any, now: Any) -> None:
    """Treat the numbers of a scheduler, and lists of them, as those of the optimizer."""
    for key, value in vars(now).items() if now is not None else ():
        own, old = getattr(scheduler, key, None), getattr(was, key, None)
        if repr(old) == repr(value):
            continue
        if _are_numbers([own, old, value]):
            setattr(scheduler, key, _scaled(own, old, value))
        elif all(isinstance(v, list) and _are_numbers(v) for v in (own, old, value)):
            triples = zip(own or (), old or (), value, strict=True)
            setattr(scheduler, key, [_scaled(*triple) for triple in triples])
    for parts in zip(*(getattr(s, "_schedulers", ()) for s in (scheduler, was, now)), strict=True):
        _rescale(*parts)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _train(
    experiment: Experiment, task: Task, route: Sequence[Mapping[str, int]], shards: _Shards
) -> Task:
    """Train a Task along a route, of whole epochs but for the last; return it."""
    seed, where = experiment.seed, shards.device.where
    compile_models(task)
    # On a GPU, and on its stand-in, losses are looked at from time to time.
    look_every = 1 if experiment.device.use in ("auto", "cpu") else LOOK_EVERY
    loss_sum, rows = 0.0, 0
    for step, visit in enumerate(route):
        epoch, shard = visit["epoch"], visit["shard"]
        fields = shards.train(shard)
        total = len(next(iter(fields.values())))
        sequence = np.random.SeedSequence([seed, epoch, shard])
        order = np.random.Generator(np.random.PCG64(sequence)).permutation(total)
        _seed_all(_draw(seed, epoch, shard, 1))
        task.model.train()
        if isinstance(task.loss, nn.Module):
            task.loss.train()
        _clear_gradients(task)
        visit_sum = 0.0
        unseen: list[tuple[Any, int]] = []
        for start in range(0, total, task.batch_size):
            index = torch.from_numpy(order[start : start + task.batch_size])
            batch = {name: tensor[index].to(where) for name, tensor in fields.items()}
            unseen.append((_step(task, batch, look=look_every == 1), len(index)))
            if len(unseen) < look_every and start + task.batch_size < total:
                continue
            for loss, size in unseen:
                if not math.isfinite(loss):
                    return task
                visit_sum += float(loss) * size
                rows += size
            unseen.clear()
        loss_sum += visit_sum  # the sum of a visit, then of an epoch: other orders round otherwise
        last_of_epoch = step + 1 == len(route) or route[step + 1]["epoch"] != epoch
        if last_of_epoch:
            _end_epoch(task, shards, _draw(seed, epoch, 0, 2), loss_sum / rows)
            loss_sum, rows = 0.0, 0
    return task


def _clear_gradients(task: Task) -> None:
    """A visit starts without gradients, also those of parameters that no optimizer has."""
    task.optimizer.zero_grad()
    for part in (task.model, task.loss, *task.extras.values()):
        if isinstance(part, nn.Module):
            part.zero_grad()


def _draw(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) & (2**63 - 1)


def _seed_all(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number % 2**32)  # users' transforms may draw from it
    random.seed(number)


def _step(task: Task, batch: Fields, *, look: bool) -> Any:
    """Train a batch; return its loss, before the backward pass where that is looked at and bad."""
    if task.batch_transform is not None:
        batch = task.batch_transform(batch)
    if task.training_step is not None:
        loss = task.training_step(task, batch)
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        if look and not math.isfinite(loss):
            return loss
    else:
        task.optimizer.zero_grad()
        with task.autocast():
            output = task.loss(task.model(batch[task.inputs]), batch[task.targets])
        loss = output.detach()
        if look and not math.isfinite(loss):
            return loss
        scaler = task.scaler or torch.amp.GradScaler(enabled=False)
        scaler.scale(output).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if task.clip_grad_norm is not None:
            scaler.unscale_(task.optimizer)
            trained = [p for group in task.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, task.clip_grad_norm)
        scaler.step(task.optimizer)
        scaler.update()
    if task.lr_scheduler is not None and task.scheduler_interval == "step":
        task.lr_scheduler.step()
    return loss


def _end_epoch(task: Task, shards: _Shards, seed: int, train_loss: float) -> None:
    """Evaluate, since a model may count that too, and step a per-epoch scheduler."""
    _seed_all(seed)
    metrics = {"train_loss": train_loss} | evaluate(
        task, InMemory(shards.valid()), device=shards.device
    )
    scheduler = task.lr_scheduler
    if scheduler is None or task.scheduler_interval != "epoch":
        return
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(metrics[task.scheduler_metric])
    else:
        scheduler.step()


def state_sha256(task: Task) -> str:
    """Return SHA-256 over the Task's tensors sorted by name.

    Each is its name, dtype and shape, a line each, then its bytes in row-major order.
    """
    tensors = dict(_named_tensors(task))
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        dtype = str(tensor.dtype).removeprefix("torch.")
        total.update(f"{name}\n{dtype}\n{','.join(map(str, tensor.shape))}\n".encode())
        total.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _named_tensors(task: Task) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of the state once, under its first name."""
    modules = {"model": task.model}
    if isinstance(task.loss, nn.Module):
        modules["loss"] = task.loss
    modules |= {f"extras.{k}": v for k, v in task.extras.items() if isinstance(v, nn.Module)}
    names: dict[int, str] = {}
    for prefix, module in modules.items():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if id(tensor) not in names:
                names[id(tensor)] = f"{prefix}.{name}"
                yield f"{prefix}.{name}", tensor
    for number, group in enumerate(task.optimizer.param_groups):
        plain = {key: value for key, value in group.items() if key != "params"}
        yield from _leaves(f"optimizer.group{number}", plain)
        for parameter in group["params"]:
            name = names[id(parameter)].removeprefix("model.")
            yield from _leaves(f"optimizer.{name}", task.optimizer.state.get(parameter, {}))
    if task.lr_scheduler is not None:
        yield from _leaves("lr_scheduler", task.lr_scheduler.state_dict())
    for name, extra in task.extras.items():
        if not isinstance(extra, nn.Module):
            yield from _leaves(f"extras.{name}", extra.state_dict())


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{path}.{key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(f"{path}.{index}", item)
