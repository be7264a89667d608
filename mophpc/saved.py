"""A run on disk, for whoever goes on with what it found: data frames, models, an export.

Nothing of the run folder is executed when it is read: results are JSON and weights safetensors. A
model needs the user's `build`, which is imported when a model is asked for, and not before.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mophpc.errors import RunFolderError, UserError
from mophpc.experiment import Experiment, load_experiment
from mophpc.files import plain, read_lines, write_json, write_whole
from mophpc.loading import load_callable
from mophpc.report.results import ConfigResult, Results, read_results
from mophpc.requests import find_config
from mophpc.weights_file import check_weights

if TYPE_CHECKING:
    import pandas
    from torch import nn

BEST, LAST = "best", "last"
"""Which weights of a config: those of its best epoch by the objective, or its newest."""

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
"""What an export holds, besides the file of `build`."""


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run that has ended."""

    path: Path
    results: Results
    experiment: Experiment

    @property
    def best(self) -> ConfigResult:
        """The row of the best config by the objective.

        Raises:
            RunFolderError: no config has ended well.
        """
        if self.results.best is None:
            raise RunFolderError(f"no config of the run '{self.path}' ended well; there is no best")
        return self.config(self.results.best)

    def config(self, given: int | str) -> ConfigResult:
        """Return the row of a config, by its id, its name or the name's beginning, as in `c003`.

        Raises:
            RunFolderError: there is none.
        """
        rows = self.results.configs
        return rows[find_config(str(given), [row.config for row in rows], self.path)]

    def frame(self) -> pandas.DataFrame:
        """Return a row per config: hyperparameters, final metrics, best value, status.

        Raises:
            UserError: pandas is not installed.
        """
        rows = [
            {"config_id": row.config_id, "config": row.config, "status": row.status}
            | {"epochs": row.epochs}
            | row.hyperparameters
            | {f"final_{name}": value for name, value in row.final.items()}
            | {f"best_{self.results.metric}": row.best, "best_epoch": row.best_epoch}
            for row in self.results.configs
        ]
        return _pandas().DataFrame(rows)

    def history(self) -> pandas.DataFrame:
        """Return a row per config and epoch, in order of both: losses, metrics, seconds, rank.

        Raises:
            UserError: pandas is not installed.
        """
        found = _pandas().DataFrame(self._lines())
        if len(found):
            found = found.sort_values(["config_id", "epoch"], ignore_index=True)
        return found

    def model(self, config: int | str | None = None, which: str = BEST) -> nn.Module:
        """Return a config's model with its weights, on the CPU and in evaluation mode.

        Args:
            config: as for `config`; None: the best.
            which: `best`, the weights of its best epoch, or, where they were not kept, its last;
                or `last`.

        Raises:
            RunFolderError: there is no such config, or its weights are missing or others.
            ExperimentError: `build` cannot be imported or called.
        """
        row = self.best if config is None else self.config(config)
        weights, _ = self._weights(row, which)
        return _load(self.experiment.load_build(), row.hyperparameters, weights)

    def export(self, out: Path | str, config: int | str | None = None, which: str = BEST) -> Path:
        """Write a config's weights and what is needed to build its model into a new folder.

        Args:
            out: the folder to make.
            config: as for `config`; None: the best.
            which: as for `model`.

        Raises:
            RunFolderError: there is no such config, the folder is not empty, or the weights are
                damaged.
        """
        row = self.best if config is None else self.config(config)
        (weights, epoch), out = self._weights(row, which), Path(out)
        check_weights(weights)
        metrics = row.final if epoch is None else self._metrics(row, epoch)
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise RunFolderError(f"'{out}' is there and not empty; give a folder to be made")
        out.mkdir(parents=True, exist_ok=True)
        where, _, name = self.experiment.build.rpartition(":")
        build = self.experiment.build
        if where.endswith(".py"):
            build = f"{Path(where).name}:{name}"
            if Path(where).is_file():
                write_whole(out / Path(where).name, Path(where).read_bytes())
        scratch = out / f".{WEIGHTS}"
        shutil.copyfile(weights, scratch)
        scratch.replace(out / WEIGHTS)
        described = {
            "build": build,
            "hyperparameters": row.hyperparameters,
            "config": row.config,
            "epochs": row.epochs if epoch is None else epoch + 1,
            "metrics": metrics,
            f"best_{self.results.metric}": row.best,
            "run": str(self.path.resolve()),
        }
        if epoch is None:  # that of the whole state, which is the last
            described["state_sha256"] = row.state_sha256
        write_json(out / DESCRIPTION, plain(described))
        return out

    def _lines(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        try:
            lines = read_lines(path)
        except OSError as error:
            raise RunFolderError(f"'{path}' cannot be read: {error.strerror}") from error
        for line in lines:
            if not all(type(line.get(key)) is int for key in ("config_id", "epoch")):
                raise RunFolderError(f"'{path}' is damaged: a line is of no config and epoch")
        return lines

    def _metrics(self, row: ConfigResult, epoch: int) -> dict[str, Any]:
        """Return a config's metrics after an epoch, as the journal has them."""
        for line in self._lines():
            if (line.get("config_id"), line.get("epoch")) == (row.config_id, epoch):
                no_metrics = ("config_id", "config", "epoch", "rank", "seconds")
                return {name: value for name, value in line.items() if name not in no_metrics}
        return {}

    def _weights(self, row: ConfigResult, which: str) -> tuple[Path, int | None]:
        """Return a file of weights, and its epoch; None: they are the last."""
        if which not in (BEST, LAST):
            raise UserError(f"which is '{which}'; allowed: {BEST}, {LAST}")
        name = row.config
        if Path(name).name != name or name == "..":  # a folder that somebody else made
            raise RunFolderError(
                f"the run '{self.path}' has a config called '{name}', no file name"
            )
        if which == BEST and isinstance(row.best_epoch, int):
            kept = self.path / "checkpoints" / name / f"epoch-{row.best_epoch:04d}.safetensors"
            if kept.is_file():
                return kept, row.best_epoch
        weights = self.path / "checkpoints" / name / WEIGHTS
        if not weights.is_file():
            raise RunFolderError(f"the weights of {name} are missing: there is no '{weights}'")
        return weights, None


def load_run(path: Path | str) -> SavedRun:
    """Read a run folder; nothing in it is executed.

    Raises:
        RunFolderError: there is no run, or it did not end, or its files are damaged.
    """
    path = _folder(path)
    if not (path / "experiment.toml").is_file():
        raise RunFolderError(f"'{path}' holds no run; give the folder that 'mophpc run' made")
    if not (path / "results.json").is_file():
        raise RunFolderError(f"the run in '{path}' did not end; it has no results")
    experiment = load_experiment(path / "experiment.toml")
    results = read_results(path)
    return SavedRun(path, results, experiment)


def load_model(folder: Path | str) -> nn.Module:
    """Return the model of an export, on the CPU and in evaluation mode.

    Raises:
        RunFolderError: the folder holds no export, or its weights are others.
        ExperimentError: `build` cannot be imported or called.
    """
    folder = _folder(folder)
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        reference, values = described["build"], described["hyperparameters"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"'{folder}' holds no export; give the folder that 'mophpc export' made"
        ) from error
    return _load(load_callable(reference, folder), values, folder / WEIGHTS)


def _folder(given: Path | str) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise RunFolderError(f"the folder is {given!r}; allowed: a path")
    return Path(given)


def _load(build: Any, values: dict[str, Any], weights: Path) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from mophpc.train.task import check_task

    check_weights(weights)
    task = build(dict(values))
    task = check_task(task, str(values), (task.inputs, task.targets))
    try:
        task.model.load_state_dict(load_file(weights))
    except (RuntimeError, OSError, SafetensorError) as error:
        text = str(error).splitlines()[0]
        raise RunFolderError(
            f"the weights in '{weights}' are not those of the model that build makes now: {text}"
        ) from error
    model: nn.Module = task.model.eval()
    return model


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise UserError(
            "data frames need pandas; install it with pip install 'mophpc[frames]'"
        ) from None
    return pandas
