"""People who ask while a run goes on, and a director whose ranks are a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import tiny

import mophpc
from mophpc.dimensions import Value
from mophpc.files import read_lines
from mophpc.report.results import Results
from mophpc.requests import Answer, Request, Wish, read_answer, send
from mophpc.run.folder import RunFolder
from mophpc.run.rank0.director import Director
from mophpc.run.rank0.ledger import Ledger
from mophpc.run.rank0.wishes import grant
from mophpc.schedule import make_plan
from mophpc.schedule.costs import Costs
from mophpc.schedule.pool import Pool
from mophpc.search.space import name_configs
from mophpc.status_file import read_status

SPACE = {"lr": mophpc.loguniform(1e-3, 1e-1), "width": [4, 6], "pause_s": [0.004]}
VALUES = {"lr": 0.02, "width": 5, "pause_s": 0.004}


def slow(config):
    """Visits that take long enough for people, with all of `tiny.build` in them."""
    task = tiny.build(config)
    noise = task.batch_transform

    def transform(batch):
        time.sleep(config["pause_s"])
        return noise(batch)

    task.batch_transform = transform
    return task


class People:
    """Ask, in a thread of their own, when a run has got somewhere."""

    def __init__(self, folder: Path, plans: list[tuple[Callable[[dict], bool], Wish]]) -> None:
        self._folder = folder
        self._plans = list(plans)
        self._over = threading.Event()
        self.asked: list[tuple[Wish, Request]] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> People:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.is_set() and self._plans:
            epochs: dict[int, int] = {}
            for line in _lines(self._folder / "metrics.jsonl"):
                epochs[line["config_id"]] = line["epoch"] + 1
            if read_status(self._folder / "status.json") is not None:
                when, wish = self._plans[0]
                if when(epochs):
                    self._plans.pop(0)
                    self.asked.append((wish, send(self._folder / "requests", wish)))
            time.sleep(0.002)

    def answers(self) -> list[Answer]:
        found = [read_answer(self._folder / "requests", request) for _, request in self.asked]
        assert None not in found
        return found


def _lines(path: Path) -> list[dict]:
    """Return the whole lines of a journal that is being written."""
    try:
        return read_lines(path)
    except (OSError, ValueError):
        return []


def epochs(config_id: int, count: int) -> Callable[[dict], bool]:
    return lambda made: made.get(config_id, 0) >= count


def at_once(_: dict) -> bool:
    return True


def run(out: Path, store: Path, ranks: int, **settings) -> Results:
    replay = settings.pop("replay", None)
    given = {"build": slow, "epochs": 5, "seed": 5, "space": SPACE} | settings
    experiment = mophpc.Experiment(data=store, **given)
    return mophpc.run_experiment(
        experiment, out, transport="local", ranks=ranks, progress="off", replay=replay
    )


SEARCHES = {
    "plain": {"configs": 4},
    "population": {"method": "population", "configs": 4, "interval": 1, "explore": ["lr"]},
    "halving": {"method": "halving", "configs": 6, "reduction": 2},
    "asha": {"method": "asha", "configs": 6, "reduction": 2},
    "whims": {"method": tiny.Whims, "options": {"seed": 3}, "in_flight": 4},
}


def searching(name: str) -> mophpc.Search:
    return mophpc.Search(**SEARCHES[name])


class Desk:
    """A director whose ranks are this test."""

    def __init__(self, folder: Path, num_configs: int = 2, epochs: int = 4) -> None:
        folder.mkdir()
        self.experiment = mophpc.Experiment(
            build=tiny.build,
            data="nowhere.zarr",
            epochs=epochs,
            space={"lr": [0.01, 0.02, 0.03], "width": [4]},
        )
        rows = [{"lr": 0.01 * (n + 1), "width": 4} for n in range(num_configs)]
        configs = list(name_configs(self.experiment, rows, True))
        plan = make_plan(
            "round-robin", num_configs=num_configs, num_shards=2, num_ranks=2, num_epochs=epochs
        )
        self.pool = Pool(plan, Costs.of(1.0, num_configs, 2))
        self.told: list[str] = []
        self.clock = SimpleNamespace(s=0.0)
        self.reported: list[dict] = []
        self.director = Director(
            self.pool,
            Ledger(configs, RunFolder(folder), lambda: self.clock.s),
            epochs=epochs,
            num_shards=2,
            objective=self.experiment.objective,
            tell=self._tell,
            report=self.reported.append,
            now=lambda: self.clock.s,
        )
        for config_id in range(num_configs):
            self.pool.set_goal(config_id, epochs)
        self._folder = folder
        self._queues: list[list] = [[], []]
        self._steps: dict[int, int] = {}

    def _tell(self, orders) -> None:
        for rank, own in enumerate(orders):
            self._queues[rank] += [stop.visit for stop in own.stops]
            for copy in own.copies:
                self._steps[copy.config_id] = copy.step

    def ask(self, wish: Wish) -> tuple[bool, str]:
        return grant(wish, self.director, self.experiment, self._folder)

    def make_one(self) -> bool:
        """Make a visit that can be made."""
        for rank, queue in enumerate(self._queues):
            if queue and self._steps.get(queue[0].config_id, 0) == queue[0].step:
                visit = queue.pop(0)
                self._steps[visit.config_id] = visit.step + 1
                if not self.pool.members[visit.config_id].is_laid_out:
                    self.director.observe(
                        {"kind": "layout", "config": visit.config_id, "probe": {}}
                    )
                begin_s, self.clock.s = self.clock.s, self.clock.s + 1.0
                facts = {"config": visit.config_id, "step": visit.step, "epoch": visit.epoch}
                if (visit.step + 1) % 2 == 0:
                    self.director.observe({"kind": "epoch", **facts, "metrics": {}})
                facts |= {"shard": visit.shard, "rank": rank, "diverged": False, "eval_s": 0.0}
                times = {"start": begin_s, "end": self.clock.s}
                self.director.observe({"kind": "visit", **facts, **times})
                return True
        return False

    def make_what_is_told(self) -> None:
        """Let ranks run out of visits, before anybody has looked for what follows."""
        while self.make_one():
            pass

    def to_the_end(self) -> None:
        for _ in range(1000):
            self.clock.s += 1.0
            self.director.poll()
            if not self.make_one() and self.pool.is_over:
                return
        raise AssertionError("the run does not end")

    def epochs_of(self, config_id: int) -> int:
        return self.director.epochs_of(config_id)


CLONE: dict[str, Value] = {"lr": 0.03}
