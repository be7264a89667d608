"""The run folder: where every file of a run lies."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from mophpc.errors import RunFolderError
from mophpc.files import write_json
from mophpc.run.inside import check_inside
from mophpc.search.space import Config

_OURS = ("experiment.toml", "events", "logs", "places", "checkpoints", "run.lock")
"""What a run makes before its first visit. A mistake that ends it there leaves the folders behind,
and the next run may use them; the first file decides which run has them."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's files; see the README for what each holds."""

    path: Path

    @property
    def experiment(self) -> Path:
        """The resolved experiment; a folder that has it holds a run."""
        return self.path / "experiment.toml"

    @property
    def plan(self) -> Path:
        """The schedule as planned and as run."""
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        """One line per config and epoch."""
        return self.path / "metrics.jsonl"

    @property
    def decisions(self) -> Path:
        """One line per decision on a config, where a method or people decide."""
        return self.path / "decisions.jsonl"

    @property
    def results(self) -> Path:
        """One row per config."""
        return self.path / "results.json"

    @property
    def table(self) -> Path:
        """The same as CSV."""
        return self.path / "results.csv"

    @property
    def costs(self) -> Path:
        """What visits, evaluations and hops cost, for `--costs` of another run."""
        return self.path / "costs.json"

    @property
    def status(self) -> Path:
        """How far the run is."""
        return self.path / "status.json"

    @property
    def journal(self) -> Path:
        """What was decided and told to the ranks: a run that was cut off goes on from it."""
        return self.path / "journal.jsonl"

    @property
    def lock(self) -> Path:
        """Locked by rank 0 while the run goes on."""
        return self.path / "run.lock"

    @property
    def requests(self) -> Path:
        """What people ask of the run, and the answers."""
        return self.path / "requests"

    def events(self, rank: int) -> Path:
        """Timed records of a rank."""
        return self.path / "events" / f"rank-{rank:04d}.jsonl"

    def log(self, rank: int) -> Path:
        """What a rank has to say."""
        return self.path / "logs" / f"rank-{rank:04d}.log"

    def states(self, config: Config) -> Path:
        """Whole states of a config, to go on from."""
        return self.path / "states" / config.name

    def checkpoint(self, config: Config) -> Path:
        """Weights of a config."""
        return self.path / "checkpoints" / config.name

    def weights(self, config: Config) -> Path:
        """Weights of a config that has ended."""
        return self.checkpoint(config) / "model.safetensors"

    def last_weights(self, config: Config, epoch: int) -> Path:
        """Weights of a config after an epoch, of which nobody knows yet whether it is the last.

        Two ranks never write the same file, since one may be late.
        """
        return self.checkpoint(config) / f"last-{epoch:04d}.safetensors"

    def epoch_weights(self, config: Config, epoch: int) -> Path:
        """Weights of a config after an epoch that is one of its best."""
        return self.checkpoint(config) / f"epoch-{epoch:04d}.safetensors"

    def kept_epochs(self, config: Config) -> list[int]:
        """Return the epochs whose weights are there."""
        return self._numbers(config, "epoch-")

    def last_epochs(self, config: Config) -> list[int]:
        """Return the epochs after which `last_weights` were written that are there."""
        return self._numbers(config, "last-")

    def _numbers(self, config: Config, prefix: str) -> list[int]:
        found = self.checkpoint(config).glob(f"{prefix}*.safetensors")
        numbers = (path.stem.removeprefix(prefix) for path in found)
        return sorted(int(number) for number in numbers if number.isdecimal())

    def manifest(self, config: Config) -> Path:
        """What a config's checkpoint holds."""
        return self.checkpoint(config) / "manifest.json"

    def claim(self, settings: dict[str, Any]) -> None:
        """Make the folder for a new run and write the resolved experiment into it.

        Of two runs that claim a folder at the same time, one gets it.

        Raises:
            RunFolderError: it holds a run, or something else, or cannot be made.
        """
        try:
            if self.experiment.exists():
                raise FileExistsError
            if self.path.is_dir():
                foreign = sorted(p.name for p in self.path.iterdir() if p.name not in _OURS)
                if self.journal.name in foreign:
                    raise RunFolderError(
                        f"'{self.path}' holds a run without its experiment.toml; restore that, or "
                        f"choose another run folder"
                    )
                if foreign:
                    raise RunFolderError(
                        f"'{self.path}' is not empty (it has {foreign[0]}); choose another run "
                        f"folder"
                    )
            check_inside(self.path)
            self.make()
            with self.experiment.open("x") as file:
                file.write(tomli_w.dumps(settings))
        except FileExistsError:
            raise RunFolderError(
                f"'{self.path}' already holds a run; go on with it by --resume, choose another run "
                f"folder, or remove it"
            ) from None
        except (OSError, NotADirectoryError) as error:
            raise RunFolderError(
                f"run folder '{self.path}' cannot be made: {error.strerror}"
            ) from error

    def make(self) -> None:
        """Make the folders; every rank does, since they may not share a disk.

        Raises:
            RunFolderError: one of them leads elsewhere.
            OSError: one cannot be made.
        """
        check_inside(self.path, deep=False)
        for name in ("events", "logs", "checkpoints"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def unclaim(self) -> None:
        """Leave the folder to another run: this one ended before its first visit.

        A run that has a journal keeps it, to go on: only this part of it ended so early.
        """
        if not self.journal.exists():
            self.experiment.unlink(missing_ok=True)

    def write_plan(self, record: dict[str, Any]) -> None:
        """Write the schedule, one line per rank's list."""
        write_json(self.plan, record)

    def write_costs(self, record: dict[str, Any]) -> None:
        """Write what the run has learned of its costs."""
        write_json(self.costs, record)

    def write_manifest(self, config: Config, facts: dict[str, Any]) -> None:
        """Write what a config's checkpoint holds."""
        folder = self.checkpoint(config)
        folder.mkdir(parents=True, exist_ok=True)
        hyperparameters = {"hyperparameters": dict(config.values)}
        write_json(self.manifest(config), {"config": config.name} | hyperparameters | facts)


def open_run(path: Path) -> RunFolder:
    """Return the run in a folder.

    Raises:
        RunFolderError: there is none, or it did not get far enough to have results.
    """
    folder = RunFolder(path)
    if not folder.experiment.is_file():
        raise RunFolderError(f"'{path}' holds no run; give the folder that 'mophpc run' made")
    return folder


def read_settings(folder: RunFolder) -> dict[str, Any]:
    """Return what a run's `experiment.toml` says.

    Raises:
        RunFolderError: it is damaged, or cannot be read.
    """
    try:
        return tomllib.loads(folder.experiment.read_text())
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"'{folder.experiment}' cannot be read ({why}); choose another run folder"
        ) from error
