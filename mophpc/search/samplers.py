"""Configs from one of Optuna's samplers, which learn from scores what to try.

The only file that knows Optuna. Nothing is kept in a storage of Optuna's but in memory, and nothing
that it logs or warns of is shown.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mophpc.dimensions import Choice, Dimension, Integer, LogUniform, Value, in_order
from mophpc.errors import ExperimentError
from mophpc.search.draw import Constraint, Key, Row, draw_endlessly, every_combination, key_of
from mophpc.search_settings import MOST_CONFIGS, OPTUNA, combinations_of

if TYPE_CHECKING:
    import optuna

MOST_TRIES = 20
"""Sets in a row that the constraint refuses, or that were there before, until one is drawn."""

FIRST_TRIES = 10
"""Sets that most samplers draw at random before they learn."""

MOST_REHEARSED = 100
"""Of these, at most, are tried before a run."""

_NEEDS = {"CmaEsSampler": ("cmaes",), "GPSampler": ("torch", "scipy")}
"""What Optuna itself imports only when it has results to learn from, in the middle of a run."""

_REFUSED = {
    "BaseSampler": "it is abstract",
    "BaseGASampler": "it is abstract",
    "GridSampler": 'say search.method = "grid"',
    "BruteForceSampler": 'say search.method = "grid"',
    "PartialFixedSampler": "give the others a choice of one value",
}
_OURS = {"constant_liar": True}
"""So that those which are asked for at once differ."""


class OptunaSource:
    """Asks an Optuna sampler for hyperparameters, and tells it their scores."""

    learns = True

    def __init__(
        self,
        name: str,
        space: Mapping[str, Dimension],
        seed: int,
        constraint: Constraint | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the sampler.

        Args:
            name: short, or of its class.
            space: to sample from.
            seed: of the sampler.
            constraint: says which sets are allowed.
            options: keyword arguments of the sampler.

        Raises:
            ExperimentError: Optuna or a package that the sampler needs is not installed, or there
                is no such sampler, or it does not take the options, or fails with them.
        """
        self._name = name
        self._options = dict(options or {})
        self._space = space
        self._order = in_order(space)
        self._constraint = constraint
        combinations = combinations_of(space)
        is_small = combinations is not None and combinations <= MOST_CONFIGS
        self._others = (
            every_combination(space, constraint)
            if is_small
            else draw_endlessly(space, seed, constraint)
        )
        """For when the sampler finds nothing new."""
        self._study = self._make(seed)
        self._trials: list[optuna.Trial] = []
        """By number: what Optuna knows a set as."""
        self._numbers: dict[Key, int] = {}
        self._scores: dict[int, float] = {}
        self._worst = -math.inf
        self._diverged: list[int] = []
        """Those that Optuna has not been told of, for want of a finite score to tell."""
        if self._options:
            self._rehearse(seed)

    def more(self, count: int) -> list[Row]:
        """Return up to so many sets that differ from all before."""
        rows: list[Row] = []
        with _quiet(self._name, self._options):
            while len(rows) < count:
                row = self._one()
                if row is None:
                    break
                rows.append(row)
        return rows

    def learn(self, number: int, score: float) -> None:
        """Take a score; one that is infinite counts as the worst that is finite."""
        with _quiet(self._name, self._options):
            if not math.isfinite(score):
                self._diverged.append(number)
            else:
                self._scores[number] = score
                self._worst = max(self._worst, score)
                self._study.tell(self._trials[number], score)
            if math.isfinite(self._worst):
                for other in self._diverged:
                    self._scores[other] = self._worst
                    self._study.tell(self._trials[other], self._worst)
                self._diverged = []

    def _make(self, seed: int) -> optuna.Study:
        return _make_study(self._name, seed, self._options)

    def _rehearse(self, seed: int) -> None:
        """Let a twin of the sampler learn from made-up scores.

        Optuna looks at many options only when it uses them, which would be in the middle of a run.

        Raises:
            ExperimentError: it fails.
        """
        said = self._options.get("n_startup_trials", self._options.get("population_size"))
        first = min(said, MOST_REHEARSED) if isinstance(said, int) else FIRST_TRIES
        study = self._make(seed)
        with _quiet(self._name, self._options):
            for number in range(first + 2):
                trial = study.ask()
                self._suggest(trial)
                study.tell(trial, float(number % 3))

    def _one(self) -> Row | None:
        for _ in range(MOST_TRIES):
            trial = self._study.ask()
            row = self._suggest(trial)
            if self._constraint is not None and not self._constraint(dict(row)):
                self._tell_none(trial, "PRUNED")
            elif key_of(row) in self._numbers:
                known = self._scores.get(self._numbers[key_of(row)])
                if known is None:
                    self._tell_none(trial, "FAIL")
                else:
                    self._study.tell(trial, known)
            else:
                return self._take(trial, row)
        unseen = self._unseen()
        if unseen is None:
            return None
        params = {name: _encode(self._space[name], value) for name, value in unseen.items()}
        self._study.enqueue_trial(params)
        trial = self._study.ask()
        return self._take(trial, self._suggest(trial))

    def _take(self, trial: optuna.Trial, row: Row) -> Row:
        self._numbers[key_of(row)] = len(self._trials)
        self._trials.append(trial)
        return row

    def _tell_none(self, trial: optuna.Trial, state: str) -> None:
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState[state])

    def _unseen(self) -> Row | None:
        """Return a set that is new, whatever the sampler thinks of it."""
        return next((row for row in self._others if key_of(row) not in self._numbers), None)

    def _suggest(self, trial: optuna.Trial) -> Row:
        row: Row = {}
        for name in self._order:
            if self._space[name].exists(row):
                row[name] = _suggest_one(trial, name, self._space[name])
        return {name: row[name] for name in self._space if name in row}


def _suggest_one(trial: optuna.Trial, name: str, own: Dimension) -> Value:
    if isinstance(own, Choice):
        # By place: for Optuna 1, 1.0 and True are the same.
        return own.choice[trial.suggest_categorical(name, range(len(own.choice)))]
    if isinstance(own, Integer):
        low, high = own.integer
        high = low + (high - low) // own.step * own.step
        return trial.suggest_int(name, low, high, step=own.step, log=own.log)
    if isinstance(own, LogUniform):
        return trial.suggest_float(name, *own.loguniform, log=True)
    if own.step is None:
        return trial.suggest_float(name, *own.uniform)
    grid = own.grid or []
    return grid[trial.suggest_int(name, 0, len(grid) - 1)]


def _encode(own: Dimension, value: Value) -> Value:
    """Return what Optuna suggests where we take a value."""
    if isinstance(own, Choice):
        return next(i for i, v in enumerate(own.choice) if type(v) is type(value) and v == value)
    if isinstance(own, Integer | LogUniform) or own.step is None:
        return value
    return (own.grid or []).index(value)


def _make_study(name: str, seed: int, options: dict[str, Any]) -> optuna.Study:
    try:
        import optuna
    except ImportError as error:
        raise ExperimentError(
            f"'{name}' is one of Optuna's samplers, and Optuna is not installed; say "
            f'pip install "mophpc[optuna]", or search.method = "random"'
        ) from error
    made = _class_of(name)
    known = inspect.signature(made.__init__).parameters
    ours = {key: value for key, value in _OURS.items() if key in known}
    with _quiet(name, options):
        for package in _NEEDS.get(made.__name__, ()):
            importlib.import_module(package)
        try:
            sampler = made(**{"seed": seed} | ours | options)
        except (TypeError, ValueError) as error:
            allowed = ", ".join(key for key in known if key not in ("self", "seed"))
            raise ExperimentError(
                f"search.options do not fit Optuna's {made.__name__}: {error}; it takes {allowed}"
            ) from error
        return optuna.create_study(sampler=sampler, direction="minimize")


def _class_of(name: str) -> Any:
    """Return the class of a sampler.

    Raises:
        ExperimentError: there is none, or it is none that we can ask.
    """
    from optuna import samplers

    allowed = [
        key
        for key, item in vars(samplers).items()
        if inspect.isclass(item) and issubclass(item, samplers.BaseSampler) and key not in _REFUSED
    ]
    wanted = OPTUNA.get(name, name)
    if wanted in allowed:
        return getattr(samplers, wanted)
    why = f"cannot be used here ({_REFUSED[wanted]})" if wanted in _REFUSED else "is unknown"
    raise ExperimentError(
        f"Optuna's sampler '{name}' {why}; allowed: {', '.join(OPTUNA)}, "
        f"{', '.join(sorted(allowed))}"
    )


@contextmanager
def _quiet(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Let Optuna neither log nor warn, and say in one sentence what it fails of.

    Raises:
        ExperimentError: a package that the sampler needs is not installed, or the sampler fails.
    """
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        missing = error.name or "a package"
        raise ExperimentError(
            f"Optuna's sampler '{name}' needs {missing}, which is not installed; say pip install "
            f"{missing}, or take another sampler"
        ) from error
    except ExperimentError:  # of a user's constraint
        raise
    except Exception as error:  # whatever a sampler does with options that it does not check
        why = " ".join(str(error).split())
        advice = f"check search.options ({options})" if options else "take another one"
        raise ExperimentError(
            f"Optuna's sampler '{name}', of search.method or search.sampler, raised "
            f"{type(error).__name__}: {why}; {advice}"
        ) from error
    finally:
        optuna.logging.set_verbosity(before)
