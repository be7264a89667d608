"""A run that was cut off, looked at on disk: where it goes on from.

Of each config the newest whole state counts. What was promised from there on is made again in the
same order of shards, wherever these are now; so every route stays what the journal says, and with
it every state, result and decision.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mophpc.errors import RunFolderError, StateError
from mophpc.run.folder import RunFolder, read_settings
from mophpc.run.recovery.differences import differences
from mophpc.run.recovery.journal import Told, read_journal
from mophpc.schedule.plan import Fork
from mophpc.schedule.resume import Standing
from mophpc.search.space import Config
from mophpc.state_folder import (
    batches_in,
    check_state,
    copy_state,
    list_states,
    read_manifest,
    remove_after,
)

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
    forks: list[Fork] = field(default_factory=list)
    """Copies that are made again, since no state from after them is kept."""

    _batches: dict[int, int] = field(default_factory=dict)
    """By config_id, of the visit `steps` that its newest state has made already, if it has any."""
    _copied: set[tuple[int, int]] = field(default_factory=set)
    """(config, step) of states that are copies of others'."""

    def take_states(self, states: Sequence[Sequence[Any]]) -> None:
        """Take over which states are sound.

        Args:
            states: config, step, batches and facts of each; of each config's the sound one comes
                first, and those before it tell what rank 0 has not heard of.
        """
        if not self.steps:
            self.steps = [0] * len(self.told.configs)
        seen: set[int] = set()
        for config_id, step, batches, found in states:
            if config_id not in seen:
                seen.add(config_id)
                self._stand(config_id, step, batches)
            facts = found if isinstance(found, dict) else {}
            if facts.get("copied"):
                self._copied.add((config_id, step))
            self._hear(config_id, step, facts.get("metrics"))
        for config_id, final in self.finals.items():
            self._stand(config_id, final["steps"])
        for config_id in range(len(self.steps)):
            has_none = config_id not in self.finals and self.steps[config_id] == 0
            if has_none or not self._knows_all(config_id):
                self._begin_anew(config_id)

    def _stand(self, config_id: int, step: int, batches: int = 0) -> None:
        self.steps[config_id] = step
        self._batches[config_id] = batches

    def _begin_anew(self, config_id: int) -> None:
        """Let a config go on from its initial weights, or from the copy that it began with."""
        self.finals.pop(config_id, None)
        self._stand(config_id, min(self.told.visits[config_id], default=0))

    def hear_final(self, config_id: int, final: Record) -> None:
        """Take over how a config has ended."""
        self.finals[config_id] = final
        self._hear(config_id, final["steps"], final.get("metrics"))

    def _hear(self, config_id: int, steps: int, metrics: Metrics | None) -> None:
        """Take over the metrics after so many visits, of which rank 0 may not have heard."""
        if isinstance(metrics, dict) and steps and steps % self.num_shards == 0:
            self.metrics.setdefault((config_id, steps // self.num_shards - 1), metrics)

    def _knows_all(self, config_id: int) -> bool:
        """Whether the metrics are known of all epochs that a config has made itself.

        Else it begins anew: it gives them again.
        """
        visits, step = self.told.visits[config_id], self.steps[config_id]
        lasts = (s for s in visits if s < step and s % self.num_shards == self.num_shards - 1)
        return all((config_id, last // self.num_shards) in self.metrics for last in lasts)

    def find_copies(self, folder: RunFolder) -> None:
        """Find out how copies that were decided on are made again, where no state has them.

        Their source passes there again, if need be from an earlier state or from its beginning.

        Raises:
            OSError: the disk is full.
        """
        changes = self.told.changes
        for news in changes:
            if self._lacks(news) and self._is_beyond(news):
                self._copy(folder, news)
        while True:
            lacking = [news for news in changes if self._lacks(news)]
            beyond = [news for news in lacking if self._is_beyond(news)]
            if not beyond:
                break
            self._go_back(folder, beyond[0]["like"], beyond[0]["step"])
        self.forks = [Fork(news["config_id"], news["step"], news["like"]) for news in lacking]

    def _lacks(self, news: Record) -> bool:
        """Whether a config's newest state is from before a copy."""
        config_id, step = news["config_id"], news["step"]
        at = (self.steps[config_id], self._batches.get(config_id, 0))
        is_after = at > (step, 0) or (at == (step, 0) and (config_id, step) in self._copied)
        return not is_after and config_id not in self.finals

    def _is_beyond(self, news: Record) -> bool:
        """Whether the source of a copy will not pass there again."""
        source = news["like"]
        at = (self.steps[source], self._batches.get(source, 0))
        return at > (news["step"], 0) or source in self.finals

    def _copy(self, folder: RunFolder, news: Record) -> None:
        """Make a copy of the file of a state, if it is there."""
        config, step = self._config(news["config_id"]), news["step"]
        for path in self._kept(folder, news["like"], step, step):
            states = folder.states(config)
            copy_state(path, states, config.name, config.config_id, {"copied": True})
            self._copied.add((config.config_id, step))
            self._stand(config.config_id, step)

    def _go_back(self, folder: RunFolder, config_id: int, step: int) -> None:
        """Let a config go on from a state that it had at a step or before."""
        kept = self._kept(folder, config_id, 1, step)
        self._begin_anew(config_id)
        if kept:
            self._stand(config_id, read_manifest(kept[0])["step"])

    def _kept(self, folder: RunFolder, config_id: int, least: int, most: int) -> list[Path]:
        """Return the manifest of the newest sound state at a step in these bounds, or nothing."""
        states = reversed(list_states(folder.states(self._config(config_id))))
        found = [path for at, path in states if least <= at <= most and not batches_in(path)]
        return next(([path] for path in found if _is_sound(path)), [])

    def _config(self, config_id: int) -> Config:
        name, values = self.told.configs[config_id]
        return Config(config_id, values, name)

    def fail(self, config_ids: Sequence[int]) -> None:
        """Take over which configs, of those that came on the way, cannot be built."""
        for config_id in config_ids:
            facts = {"status": "failed", "steps": 0, "state_sha256": ""}
            self.finals[config_id] = {"kind": "final", "config": config_id} | facts
            self._stand(config_id, 0)

    def tidy(self, folder: RunFolder) -> None:
        """Remove the states from which nothing goes on any more."""
        for config_id, step in enumerate(self.steps):
            states = folder.states(self._config(config_id))
            if config_id in self.finals:
                shutil.rmtree(states, ignore_errors=True)
            else:  # what is damaged would be taken for newer than what is to come
                remove_after(states, step, self._batches.get(config_id, 0))

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
        found = Standing(step=step, promised=tuple(promised), done=done)
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


def has_begun(folder: RunFolder, settings: Mapping[str, Any]) -> bool:
    """Return whether a run that was cut off had told its ranks anything; else it begins anew.

    Args:
        folder: of the run.
        settings: the experiment as it would be written now.

    Raises:
        RunFolderError: it is the run of another experiment, or its journal is damaged.
    """
    check_settings(folder, settings)
    # All these are written after the journal's first line.
    if folder.plan.exists() or (folder.metrics.exists() and folder.metrics.stat().st_size):
        return True
    return folder.journal.exists() and read_journal(folder.journal).num_ranks > 0


def check_settings(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    """Return if a run is one of this experiment.

    Args:
        folder: of the run.
        settings: the experiment as it would be written now.

    Raises:
        RunFolderError: it is the run of another.
    """
    found = differences(read_settings(folder), settings)
    if found:
        raise RunFolderError(
            f"'{folder.path}' holds the run of another experiment: {'; '.join(found)}; choose "
            f"another run folder, or give the experiment that the run began with"
        )


def read_run(folder: RunFolder, settings: Mapping[str, Any], num_shards: int) -> Resumption:
    """Return what is known of a run, its states aside.

    Args:
        folder: of the run.
        settings: the experiment as it would be written now.
        num_shards: of the store.

    Raises:
        RunFolderError: it is the run of another experiment, or damaged.
    """
    check_settings(folder, settings)
    told = read_journal(folder.journal)
    if told.num_ranks < 1 or not told.configs:
        raise RunFolderError(
            f"'{folder.journal}' is damaged: it does not say how the run began; choose another run "
            f"folder"
        )
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
            resumption.hear_final(config_id, final)
    return resumption


def read_metrics(path: Path) -> list[Record]:
    """Return the lines of a run's metrics; half a line at the end is none.

    Raises:
        RunFolderError: another line is damaged.
    """
    try:
        whole = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    lines: list[Record] = []
    for number, raw in enumerate(whole, 1):
        try:
            line = json.loads(raw)
            if not all(isinstance(line[key], int) for key in ("config_id", "epoch")):
                raise ValueError("a line is of no config and epoch")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunFolderError(
                f"line {number} of '{path}' is damaged; remove the lines from there on: what they "
                f"said is found out again"
            ) from error
        lines.append(line)
    return lines


def read_final(folder: RunFolder, config: Config, journalled: Record | None) -> Record | None:
    """Return how a config has ended; None where it has not, or its weights were not written."""
    if journalled is not None and (journalled["status"] == "failed" or not journalled["steps"]):
        return journalled
    try:
        manifest = json.loads(folder.manifest(config).read_text())
        facts = {key: manifest[key] for key in ("status", "steps", "state_sha256")}
        facts["metrics"] = manifest.get("metrics")
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
    """Return [config, step, batches, facts] of states, and sentences about what is damaged.

    Of each config the newest that is sound comes first; those before it are not looked at further.

    Args:
        folder: of the run.
        configs: by config_id.
        mine: the configs to look at: ranks share the work.
        told: by config_id, the last step that is known to have been promised: a state cannot be
            ready for a later one.
    """
    found: list[list[Any]] = []
    sentences: list[str] = []
    for config_id in mine:
        name = configs[config_id].name
        own, damaged = _sound_states_of(folder.states(configs[config_id]), name, told[config_id])
        found += [[config_id, *state] for state in own]
        instead = "the state before it is used" if own else f"{name} has none before it: it begins"
        sentences += [f"{text}; {instead}" for text in damaged]
    return found, sentences


def _sound_states_of(states: Path, config: str, told: int) -> tuple[list[list[Any]], list[str]]:
    found: list[list[Any]] = []
    damaged: list[str] = []
    for step, path in reversed(list_states(states)):
        if step > told:
            damaged.append(f"'{path}' is of a visit that the run's journal does not know")
            continue
        try:
            if not found:
                check_state(path)
            manifest = read_manifest(path)
            if manifest["config"] != config:
                raise StateError(f"'{path}' is a state of config {manifest['config']}")
            facts = manifest["facts"]
        except (StateError, RunFolderError, OSError) as error:
            if not found:
                damaged.append(str(error))
            continue
        found.append([step, batches_in(path), facts])
    return found, damaged
