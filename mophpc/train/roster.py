"""The configs that a trainer knows: their hyperparameters and states, which may change on the way.

A config that gets a copy of another's state has other hyperparameters from a visit on, and perhaps
another layout; both are versions of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mophpc.errors import StateError
from mophpc.train.probe import Probe


@dataclass(frozen=True, slots=True)
class Version:
    """A config as it is from a visit on."""

    step: int
    """The first visit."""
    name: str
    values: Mapping[str, Any]
    probe: Probe | None = None
    before: Mapping[str, Any] | None = None
    """Hyperparameters that the state was trained with until then, where it is a copy."""


class Roster:
    """Versions of configs, by config_id, and which of them is being trained."""

    def __init__(self, configs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._versions = [[Version(0, name, values)] for name, values in configs]
        self._now = [0] * len(configs)

    def adopt(self, probes: Sequence[Probe | None]) -> None:
        """Take over what the probes of all configs told; None of those that were not probed."""
        for versions, probe in zip(self._versions, probes, strict=True):
            versions[:] = [replace(version, probe=probe) for version in versions]

    def learn(self, news: Sequence[Mapping[str, Any]]) -> None:
        """Take over what is said of configs that are new, or have other hyperparameters.

        Args:
            news: each `config_id`, and what is said of it: `name` and `values`; `step`, from which
                visit on; `like`, the config whose state it gets a copy of before that visit, and
                `before`, the hyperparameters of that one; `probe`, how its state is laid out.
        """
        for item in news:
            # Of copies that are made together, each is of a state as it was before.
            probe = self.at(item["like"], item["step"] - 1).probe if "like" in item else None
            config_id: int = item["config_id"]
            while config_id >= len(self._versions):
                self._versions.append([])
                self._now.append(0)
            versions = self._versions[config_id]
            if "values" in item:
                step = item.get("step", 0)
                before = item.get("before")
                versions.append(Version(step, item["name"], item["values"], probe, before))
            if "probe" in item:
                self.lay_out(config_id, Probe.from_json(item["probe"]))

    def lay_out(self, config_id: int, probe: Probe) -> None:
        """Say how a config's state is laid out."""
        versions = self._versions[config_id]
        versions[-1] = replace(versions[-1], probe=probe)

    def turn_to(self, config_id: int, step: int) -> None:
        """The config makes this visit next."""
        self._now[config_id] = self._place(config_id, step)

    def at(self, config_id: int, step: int) -> Version:
        """Return a config as it is for a visit."""
        return self._versions[config_id][self._place(config_id, step)]

    def now(self, config_id: int) -> Version:
        """Return a config as it is for the visit that `turn_to` named."""
        return self._versions[config_id][self._now[config_id]]

    def probe(self, config_id: int) -> Probe:
        """Return how a config's state is laid out.

        Raises:
            StateError: that is not known yet.
        """
        version = self.now(config_id)
        if version.probe is None:
            raise StateError(f"config {version.name} has not been laid out")
        return version.probe

    @property
    def largest(self) -> int:
        """Bytes of the largest state that is known."""
        found = (v.probe.layout.nbytes for own in self._versions for v in own if v.probe)
        return max(found, default=0)

    def _place(self, config_id: int, step: int) -> int:
        versions = self._versions[config_id]
        return max((i for i, v in enumerate(versions) if v.step <= step), default=0)
