"""Makes sessions: builds Tasks, lays their state out, and proves that lean builds are safe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mophpc.errors import ExperimentError, MophpcError, StateError
from mophpc.train.arena import Arena, Home, Layout, allocate
from mophpc.train.batches import InMemory, Rows, batches
from mophpc.train.bind import (
    Draft,
    bind,
    bind_new,
    flatten_rnns,
    layout_of,
    module_tensors,
    settle,
)
from mophpc.train.compiling import compile_models
from mophpc.train.cursor import Cursor
from mophpc.train.device import CPU, Device
from mophpc.train.digest import state_sha256
from mophpc.train.evaluation import evaluate, metric_of
from mophpc.train.explore import explore
from mophpc.train.probe import Probe, Rehearsal
from mophpc.train.roster import Roster
from mophpc.train.seeds import seed_all
from mophpc.train.session import Session, first_step, train_step
from mophpc.train.stage import Held, bytes_of, scratch_home, staging_for
from mophpc.train.state_file import StateCopy, read_state
from mophpc.train.task import Batch, Task, check_task, said


class TorchTrainer:
    """Builds configs and binds them to their states.

    Args:
        build: the user's function.
        configs: (name, hyperparameters) of each config, by config_id.
        fields: the store's field names.
        seed: of the experiment.
        between: called after each batch; it may raise to stop.
        device: where configs are trained.
        buffers: states that are on the device at a time, where its memory is its own.
    """

    def __init__(
        self,
        build: Callable[[dict[str, Any]], Any],
        configs: Sequence[tuple[str, Mapping[str, Any]]],
        *,
        fields: tuple[str, ...],
        seed: int,
        between: Callable[[], None] = lambda: None,
        device: Device = CPU,
        buffers: int = 3,
    ) -> None:
        self._build_config = build
        self._roster = Roster(configs)
        self._fields = fields
        self._seed = seed
        self._between = between
        self.device = device
        self.staging = staging_for(device, buffers)
        self._shard_rows: Sequence[int] = ()

    def adopt(self, probes: Sequence[Probe | None], shard_rows: Sequence[int] = ()) -> None:
        """Take over what the probes of all configs told, by config_id.

        Args:
            probes: of each config.
            shard_rows: rows of all shards, for the probes of configs that come later.
        """
        self._roster.adopt(probes)
        self._shard_rows = shard_rows

    def learn(self, news: Sequence[Mapping[str, Any]]) -> None:
        """Take over what is said of configs that are new, or have other hyperparameters now.

        Args:
            news: as for `Roster.learn`.
        """
        self._roster.learn(news)

    def turn_to(self, config_id: int, step: int) -> None:
        """Say that a config makes this visit next, with the hyperparameters that it has then."""
        self._roster.turn_to(config_id, step)

    def knows(self, config_id: int) -> bool:
        """Return whether it is known how a config's state is laid out."""
        return self._roster.now(config_id).probe is not None

    def lay_out(self, config_id: int, rows: Rows) -> dict[str, Any]:
        """Find out how a new config's state is laid out; return it for `learn` of other ranks.

        Raises:
            ExperimentError: `build` or a batch failed; the message names the config.
        """
        found = self.probe(config_id, rows, self._shard_rows)
        self._roster.lay_out(config_id, found)
        return found.to_json()

    def check_change(self, config_id: int, step: int) -> None:
        """Return if the state that a config got fits the Task that it is to be trained as.

        Raises:
            ExperimentError: `build` fails with the new hyperparameters, or makes another model.
        """
        if self._before(config_id, step) is None:
            return
        slots = {slot.name: slot.shape for slot in self._roster.probe(config_id).layout.slots}
        for tensor_name, tensor in module_tensors(self._fresh(config_id)).items():
            if slots.get(tensor_name) != tuple(tensor.shape):
                raise ExperimentError(
                    f"config {self.name(config_id)}: the new hyperparameters make a model whose "
                    f"'{tensor_name}' is of shape {tuple(tensor.shape)}; in the state that was "
                    f"copied it is {slots.get(tensor_name, 'not there')}; what shapes a model "
                    f"must stay (for a population, leave it out of search.explore)"
                )

    def is_copy(self, config_id: int, step: int) -> bool:
        """Return whether a config's state before this visit is a copy of another's."""
        return self._before(config_id, step) is not None

    def change(self, session: Session, config_id: int, step: int) -> None:
        """Change the optimizer of a state that was copied, before its first visit.

        Raises:
            ExperimentError: the new hyperparameters make another kind of optimizer.
        """
        before = self._before(config_id, step)
        if before is not None:
            explore(session.task, self._fresh(config_id, before), self._fresh(config_id))

    def _before(self, config_id: int, step: int) -> Mapping[str, Any] | None:
        """Return the hyperparameters that a state had until this visit, where it was copied."""
        version = self._roster.at(config_id, step)
        return version.before if version.step == step else None

    def _fresh(self, config_id: int, values: Mapping[str, Any] | None = None) -> Task:
        """Return a Task of which only the shapes and the optimizer's settings are looked at."""
        lean = self._roster.probe(config_id).ordinary is None
        with torch.device("meta") if lean else nullcontext():
            return self._build(config_id, lean=lean, values=values)

    def make_room(self) -> int:
        """Take memory on the device for the largest states; return for how many.

        Raises:
            StateError: not even one fits.
        """
        return self.staging.prepare(self._roster.largest)

    def name(self, config_id: int) -> str:
        """Return a config's name."""
        return self._roster.now(config_id).name

    def nbytes(self, config_id: int, step: int = 0) -> int:
        """Return the bytes of a config's arena for a visit; 0 where they are not known yet."""
        probe = self._roster.at(config_id, step).probe
        return 0 if probe is None else probe.layout.nbytes

    def metrics(self, config_id: int) -> tuple[str, ...]:
        """Return the names of a config's metrics."""
        return self._roster.probe(config_id).metrics

    def ordinary(self, config_id: int) -> str | None:
        """Return why a config must be built with its initial weights at every visit, or None."""
        return self._roster.probe(config_id).ordinary

    def compiles(self, config_id: int) -> bool:
        """Return whether a config's models are compiled."""
        return self._roster.probe(config_id).compiles

    def allocate(self, nbytes: int) -> Arena:
        """Return memory for an arena, from where a device can copy in the background."""
        memory = self.device.memory
        return allocate(nbytes) if memory is None else memory.pinned(nbytes).numpy()

    def start(self, config_id: int, arena: Arena) -> Session:
        """Build a config with its initial weights, in `arena`.

        Raises:
            ExperimentError: the user's `build` raised or returned the wrong thing.
        """
        layout = self._roster.probe(config_id).layout
        home = self.staging.reserve(arena, layout)
        self.staging.ready(arena)
        task = bind_new(self._build(config_id), layout, home, self.device)
        return self._session(task, layout, arena, home, [])

    def ahead(self, config_id: int, step: int, arena: Arena, held: Held | None = None) -> None:
        """Begin to bring a state to the device: its visit is next."""
        probe = self._roster.at(config_id, step).probe
        if probe is not None:
            self.staging.ahead(arena, probe.layout, held)

    def draft(self, config_id: int, arena: Arena) -> Draft:
        """Build a config around a state that is on its way to `arena`.

        Raises:
            ExperimentError: the user's `build` raised or returned the wrong thing.
            StateError: what it built has another layout.
        """
        layout = self._roster.probe(config_id).layout
        return self._draft(config_id, self.staging.reserve(arena, layout))

    def resume(
        self,
        config_id: int,
        arena: Arena,
        rest: bytes,
        draft: Draft | None = None,
        held: Held | None = None,
    ) -> Session:
        """Bind a config to a state that is here, with the draft made for it if there is one.

        Args:
            config_id: the config.
            arena: its bytes, unless `held` still has newer ones.
            rest: what belongs to them.
            draft: what `draft` returned for this arena.
            held: what `release` returned with `rest`, where that was on this rank.

        Raises:
            ExperimentError: the user's `build` raised or returned the wrong thing.
            StateError: the state is not this config's.
        """
        layout = self._roster.probe(config_id).layout
        home = self.staging.fetch(arena, layout, held)
        if draft is None or draft.home.device.data_ptr() != home.device.data_ptr():
            draft = self._draft(config_id, home)
        self.staging.ready(arena)
        task, progress = draft.finish(rest)
        return self._session(task, layout, arena, home, progress)

    def forget(self, arena: Arena) -> None:
        """Let go of what was made ready for a state that will not be trained."""
        self.staging.forget(arena)

    @property
    def waited_s(self) -> float:
        """Seconds that visits have waited for states to get to the device."""
        return self.staging.waited_s

    def digest(self, config_id: int, arena: Arena, rest: bytes, held: Held | None = None) -> str:
        """Return the state's `state_sha256`."""
        if held is not None:
            held.wait()
        return state_sha256(self._roster.probe(config_id).layout, arena, rest)

    def state_copy(
        self,
        config_id: int,
        arena: Arena,
        rest: bytes,
        held: Held | None = None,
        cursor: Cursor | None = None,
    ) -> StateCopy:
        """Return a copy of a whole state, for another thread to write.

        The arguments are as for `resume`; `cursor` is the session's, if its visit has been stopped.
        """
        if held is not None:
            held.wait()
        layout, name = self._roster.probe(config_id).layout, self.name(config_id)
        size = layout.nbytes
        return StateCopy(layout, arena[:size], rest, name=name, config_id=config_id, cursor=cursor)

    def load(
        self, config_id: int, manifest: Path, arena: Arena, whose: int | None = None
    ) -> tuple[bytes, Cursor | None, Any]:
        """Read a state into its arena; return its rest, its place in a visit, and its facts.

        Args:
            config_id: the config that goes on with it.
            manifest: of the state.
            arena: takes its bytes.
            whose: the config whose state it is, where that is another.

        Raises:
            StateError: the state is damaged or another config's; the message names the file.
            RunFolderError: it is one of another model, or of a newer version.
        """
        layout = self._roster.probe(config_id).layout
        found = read_state(manifest, layout, arena[: layout.nbytes])
        if found.config_id != (config_id if whose is None else whose):
            raise StateError(f"state '{manifest}' is one of config {found.config}")
        return found.rest, found.cursor, found.facts

    def probe(self, config_id: int, rows: Rows, shard_rows: Sequence[int] = ()) -> Probe:
        """Train two batches on the side to learn a config's layout and whether lean builds work.

        The second batch is trained twice from the same state, once around an ordinary build and
        once around one on the meta device, and both are evaluated on it. Only if every byte
        and every metric agree are visits built lean.

        Args:
            config_id: the config.
            rows: a shard, from which the batch is taken.
            shard_rows: rows of all shards, to try the shortest last batch that there will be.

        Raises:
            ExperimentError: `build` or a batch failed; the message names the config.
        """
        name = self.name(config_id)
        task = self._build(config_id)
        try:
            batch = self._first_batch(task, rows)
            first_step(task, batch, self._step)
            layout = layout_of(task, self.device)
            home = scratch_home(self.device, layout)
            rest = settle(task, layout, home, device=self.device)
            start, metrics, compiles = bytes_of(home, layout), tuple(task.metrics), task.compile
            self._try_short(name, task, batch, shard_rows)
            del task
            ordinary = self._rehearse(config_id, layout, start, rest, batch, lean=False)
        except MophpcError as error:
            named = str(error).startswith(f"config {name}: ")
            raise ExperimentError(str(error) if named else f"config {name}: {error}") from (
                error.__cause__ or error
            )
        except (Exception, SystemExit) as error:  # whatever the user's code does
            raise ExperimentError(
                f"config {name}: training on the first batch raised {said(error)}"
            ) from error
        reason = None
        try:
            lean = self._rehearse(config_id, layout, start, rest, batch, lean=True)
            if lean.rest != ordinary.rest or not np.array_equal(lean.arena, ordinary.arena):
                reason = "a build on the meta device trains differently"
            elif ordinary.failure is not None:
                reason = (
                    f"{ordinary.failure} on a batch; if it does so on all validation rows, the run "
                    f"ends after an epoch"
                )
            elif lean.failure is not None:
                reason = f"evaluating a build on the meta device fails: {lean.failure}"
            elif repr(lean.metrics) != repr(ordinary.metrics):
                reason = "a build on the meta device is evaluated differently"
        except (Exception, SystemExit) as error:  # any failure means: build it the ordinary way
            # Without the config's name: many configs may fail alike, which is said once.
            cause = error.__cause__ if isinstance(error, ExperimentError) else error
            reason = f"building on the meta device fails: {said(cause or error)}"
        return Probe(layout, reason, metrics, compiles is not False)

    def prime(self, config_id: int, rows: Rows, valid: Rows, shard_rows: Sequence[int]) -> None:
        """Compile what a config's visits will run, where a probe elsewhere has not done it here.

        Args:
            config_id: the config.
            rows: a shard, from which a batch is taken.
            valid: the validation rows.
            shard_rows: rows of all shards, whose last batches have sizes of their own.

        Raises:
            ExperimentError: the user's code failed; the message names the config.
        """
        try:
            self._prime(self._roster.probe(config_id), config_id, rows, valid, shard_rows)
        except MophpcError:
            raise  # a signal, a damaged store, or named already
        except (Exception, SystemExit) as error:  # whatever the user's code does
            name = self.name(config_id)
            raise ExperimentError(f"config {name}: compiling it raised {said(error)}") from error

    def _prime(
        self,
        probe: Probe,
        config_id: int,
        rows: Rows,
        valid: Rows,
        shard_rows: Sequence[int],
    ) -> None:
        task = bind_new(
            self._build(config_id),
            probe.layout,
            scratch_home(self.device, probe.layout),
            self.device,
        )
        self._make_ready(task)
        batch = self._first_batch(task, rows)
        sizes = {min(task.batch_size, len(batch[task.targets]))}
        sizes |= {rows % task.batch_size for rows in shard_rows} - {0}
        for size in sorted(sizes, reverse=True):
            self._step(task, {field: part[:size] for field, part in batch.items()})
            self._between()
        size = task.eval_batch_size or task.batch_size
        some = min(valid.rows, size + valid.rows % size)
        found = next(batches(valid, np.arange(some), some, self.device))
        with suppress(Exception):  # a metric may well want all rows
            evaluate(task, InMemory(found), device=self.device)

    def _try_short(self, name: str, task: Task, batch: Batch, shard_rows: Sequence[int]) -> None:
        """Train the shortest last batch: BatchNorm, for one, cannot be trained on a single row."""
        size = min((rows % task.batch_size or task.batch_size for rows in shard_rows), default=0)
        if not 0 < size < len(batch[task.targets]):
            return
        try:
            self._step(task, {field: rows[:size] for field, rows in batch.items()})
        except (Exception, SystemExit) as error:
            raise ExperimentError(
                f"config {name}: the last batch of a shard has {size} of {task.batch_size} rows, "
                f"and training on so few raised {said(error)}; choose another batch_size"
            ) from error

    def _rehearse(
        self, config_id: int, layout: Layout, start: Arena, rest: bytes, batch: Batch, *, lean: bool
    ) -> Rehearsal:
        home = scratch_home(self.device, layout, start)
        task, _ = bind(lambda: self._build(config_id, lean=lean), layout, home, rest, lean=lean)
        self._make_ready(task)
        self._step(task, batch)
        rest = settle(task, layout, home, device=self.device)
        arena = bytes_of(home, layout)
        try:
            # Metrics and transforms may hold tensors of their own, which a lean build empties.
            found = evaluate(task, InMemory(batch), device=self.device)
            return Rehearsal(arena, rest, found)
        except (Exception, SystemExit) as error:
            metric = metric_of(error)
            if not lean and isinstance(error, ExperimentError):
                raise  # one that returns no number will not return one later
            if not lean and metric is None:
                raise ExperimentError(f"evaluating a batch raised {said(error)}") from error
            # A metric may well want more than a batch.
            where = "" if metric is None else f"metric '{metric}' raised "
            return Rehearsal(arena, rest, {}, where + said(error))

    def _first_batch(self, task: Task, rows: Rows) -> Batch:
        order = np.arange(min(task.batch_size, rows.rows))
        return next(batches(rows, order, task.batch_size, self.device))

    def _step(self, task: Task, batch: Batch) -> None:
        seed_all(self._seed)
        task.model.train()
        batch = dict(batch)
        train_step(task, task.batch_transform(batch) if task.batch_transform else batch)

    def _build(
        self, config_id: int, *, lean: bool = False, values: Mapping[str, Any] | None = None
    ) -> Task:
        """Return a config with its initial weights, on the device, or on the meta device."""
        version = self._roster.now(config_id)
        name, values = version.name, version.values if values is None else values
        seed_all(self._seed)
        where = self.device.where
        # On a GPU all that `build` makes is there, tensors in closures too.
        on_device = nullcontext() if lean or where.type == "cpu" else where
        try:
            with on_device:
                task = self._build_config(dict(values))
        except (Exception, SystemExit) as error:
            raise ExperimentError(f"config {name}: build raised {said(error)}") from error
        task = check_task(task, name, self._fields)
        task.place(where, moves=not lean)
        return task

    def _draft(self, config_id: int, home: Home) -> Draft:
        probe = self._roster.probe(config_id)
        lean = probe.ordinary is None
        return Draft(lambda: self._build(config_id, lean=lean), probe.layout, home, lean=lean)

    def _make_ready(self, task: Task) -> None:
        """Do what is left to do when a Task's tensors are where they are trained."""
        compile_models(task)
        if self.device.where.type == "cuda":
            flatten_rnns(task)

    def _session(
        self, task: Task, layout: Layout, arena: Arena, home: Home, progress: list[float]
    ) -> Session:
        self._make_ready(task)
        return Session(
            task,
            layout,
            arena,
            seed=self._seed,
            progress=progress,
            between=self._between,
            device=self.device,
            home=home,
            staging=self.staging,
        )


def set_threads(threads: int) -> None:
    """Set how many threads torch uses in this process; part of what makes results equal."""
    torch.set_num_threads(threads)
