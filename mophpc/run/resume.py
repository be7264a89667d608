"""A run that was cut off, looked at on disk: where it goes on from.

Of each config the newest whole state counts. What was promised from there on is made again in the
same order of shards, wherever these are now; so every route stays what the journal says, and with
it every state, result and decision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mophpc.errors import RunFolderError, StateError
from mophpc.files import read_lines
from mophpc.run.differences import differences
from mophpc.run.folder import RunFolder, read_settings
from mophpc.run.journal import Told, read_journal
from mophpc.schedule.resume import Standing
from mophpc.search.space import Config
from mophpc.state_folder import check_state, list_states, read_manifest

Record = dict[str, Any]
Metrics = dict[str, float]


@dataclass(slots=True)
class Resumption:
    """What is known of a run that goes on, on rank 0."""

    told: Told
    num_shards: int
    metrics: dict[tuple[int, int], Metrics] = field(default_factory=dict)
    """By (config, epoch)."""
    written: set[tuple[int, int]] = field(default_factory=set)
    """Those of which the file has a line."""
    finals: dict[int, Record] = field(default_factory=dict)
    """Of configs that have ended, and whose weights are there."""
    steps: list[int] = field(default_factory=list)
    """By config_id: the visit that its newest state is ready for; 0: initial weights."""
    sources: dict[int, int] = field(default_factory=dict)
    """By config_id: the config of whose state it gets a copy that it has not got yet."""

    _copied: set[tuple[int, int]] = field(default_factory=set)
    """(config, step) of states that are copies of others'."""

    def take_states(self, states: Sequence[Sequence[Any]]) -> None:
        """Take over which states are sound.

        Args:
            states: config, step and facts of each.
        """
        if not self.steps:
            self.steps = [0] * len(self.told.configs)
        for config_id, step, found in states:
            self.steps[config_id] = step
            facts = found if isinstance(found, dict) else {}
            if facts.get("copied"):
                self._copied.add((config_id, step))
            metrics = facts.get("metrics")
            if metrics and step % self.num_shards == 0:  # rank 0 may not have heard of them
                self.metrics.setdefault((config_id, step // self.num_shards - 1), metrics)
        for config_id, final in self.finals.items():
            self.steps[config_id] = final["steps"]

    def find_copies(self, folder: RunFolder) -> None:
        """Find the states of which copies were decided on, and not made before the run was cut off.

        Raises:
            RunFolderError: one is not there any more.
        """
        last = {news["config_id"]: news for news in self.told.changes}
        for config_id, news in last.items():
            source, step = news["like"], news["step"]
            newest = self.steps[config_id]
            is_there = newest > step or (config_id, step) in self._copied
            if is_there or config_id in self.finals:
                continue
            name, values = self.told.configs[source]
            made = list_states(folder.states(Config(source, values, name)))
            if not any(_is_sound(path) for at, path in made if at == step):
                raise RunFolderError(
                    f"'{folder.path}' cannot go on: {self.told.configs[config_id][0]} was to get a "
                    f"copy of the state of {name} after {step // self.num_shards} epochs, and "
                    f"there is no sound file of that state; begin a new run"
                )
            self.sources[config_id], self.steps[config_id] = source, step

    def standings(self) -> list[Standing]:
        """Return where every config stands."""
        return [self._standing(config_id) for config_id in range(len(self.told.configs))]

    def _standing(self, config_id: int) -> Standing:
        step = self.steps[config_id]
        visits = self.told.visits[config_id]
        begin = step - step % self.num_shards
        done = tuple(visits[s].shard for s in range(begin, step))
        if config_id in self.finals:
            return Standing(step=step, done=done, end=step, is_over=True)
        promised: list[int] = []
        while (visit := visits.get(step + len(promised))) is not None:
            promised.append(visit.shard)
        source = self.sources.get(config_id)
        found = Standing(step=step, promised=tuple(promised), done=done, source=source)
        goal = self.told.goals.get(config_id)
        return found if goal is None else replace(found, end=goal.end, is_over=goal.is_over)

    def route(self, config_id: int) -> list[dict[str, int]]:
        """Return the visits that a config's newest state has made itself, in order."""
        visits = self.told.visits[config_id]
        made = (visits[s] for s in sorted(visits) if s < self.steps[config_id])
        return [{"epoch": v.epoch, "shard": v.shard, "rank": v.rank} for v in made]

    @property
    def unbuilt(self) -> list[int]:
        """Configs that could not be built."""
        return [c for c, final in self.finals.items() if final["status"] == "failed"]

    @property
    def copies(self) -> list[int]:
        """Configs that began with a copy of another's state."""
        return [c for c, visits in enumerate(self.told.visits) if visits and min(visits) > 0]


def read_run(folder: RunFolder, settings: Mapping[str, Any], num_shards: int) -> Resumption:
    """Return what is known of a run, its states aside.

    Args:
        folder: of the run.
        settings: the experiment as it would be written now.
        num_shards: of the store.

    Raises:
        RunFolderError: it is the run of another experiment, or damaged.
    """
    found = differences(read_settings(folder), settings)
    if found:
        raise RunFolderError(
            f"'{folder.path}' holds the run of another experiment: {'; '.join(found)}; choose "
            f"another run folder, or give the experiment that the run began with"
        )
    told = read_journal(folder.journal)
    for config_id, visits in enumerate(told.visits):
        for step, visit in visits.items():
            inside = visit.config_id == config_id and 0 <= visit.shard < num_shards
            if not inside or step // num_shards != visit.epoch:
                raise RunFolderError(
                    f"'{folder.journal}' has a visit {visit} that cannot be; choose another run "
                    f"folder"
                )
    resumption = Resumption(told, num_shards)
    for line in read_metrics(folder.metrics):
        known = {k: v for k, v in line.items() if k not in ("config_id", "config", "epoch", "rank")}
        resumption.metrics[line["config_id"], line["epoch"]] = {
            key: math.nan if value is None else value for key, value in known.items()
        }
    resumption.written = set(resumption.metrics)
    for config_id, (name, values) in enumerate(told.configs):
        final = read_final(folder, Config(config_id, values, name), told.finals.get(config_id))
        if final is not None:
            resumption.finals[config_id] = final
    return resumption


def read_metrics(path: Path) -> list[Record]:
    """Return the lines of a run's metrics; half a line at the end is none.

    Raises:
        RunFolderError: another line is damaged.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        return []
    except ValueError:
        try:
            whole = path.read_text().rsplit("\n", 1)[0]
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise RunFolderError(f"'{path}' is damaged; choose another run folder") from error
    if not all(
        isinstance(line, dict)
        and isinstance(line.get("config_id"), int)
        and isinstance(line.get("epoch"), int)
        for line in lines
    ):
        raise RunFolderError(f"'{path}' is damaged; choose another run folder")
    return lines


def read_final(folder: RunFolder, config: Config, journalled: Record | None) -> Record | None:
    """Return how a config has ended; None where it has not, or its weights were not written."""
    if journalled is not None and (journalled["status"] == "failed" or not journalled["steps"]):
        return journalled
    try:
        manifest = json.loads(folder.manifest(config).read_text())
        facts = {key: manifest[key] for key in ("status", "steps", "state_sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not folder.weights(config).is_file():
        return None
    return {"kind": "final", "config": config.config_id} | facts


def _is_sound(path: Path) -> bool:
    try:
        check_state(path)
    except (StateError, RunFolderError, OSError):
        return False
    return True


def sound_states(
    folder: RunFolder, configs: Sequence[Config], mine: Sequence[int], told: Sequence[int]
) -> tuple[list[list[Any]], list[str]]:
    """Return [config, step, facts] of the newest state that is sound, and what is damaged.

    Args:
        folder: of the run.
        configs: by config_id.
        mine: the configs to look at: ranks share the work.
        told: by config_id, the last step that is known to have been promised: a state cannot be
            ready for a later one.
    """
    found: list[list[Any]] = []
    damaged: list[str] = []
    for config_id in mine:
        for step, path in reversed(list_states(folder.states(configs[config_id]))):
            if step > told[config_id]:
                damaged.append(f"'{path}' is of a visit that the run's journal does not know")
                continue
            try:
                check_state(path)
                facts = read_manifest(path)["facts"]
            except (StateError, RunFolderError, OSError) as error:
                damaged.append(str(error))
                continue
            found.append([config_id, step, facts])
            break
    return found, damaged
