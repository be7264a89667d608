"""Runs that are asked to stop at any moment: all states go to disk, and nothing is made twice."""

from __future__ import annotations

import importlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cutting import check, experiment, resume, state_files
from test_local_run import make_store

import mophpc
from mophpc.errors import InterruptError, LostError, Place, UnreachableError
from mophpc.experiment import Device, Experiment
from mophpc.files import read_lines
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.hop.records import take_arrived
from mophpc.outputs import Checkpoints
from mophpc.report.live import LiveView
from mophpc.run.faults import halt as halting
from mophpc.run.faults.halt import Halt, Muster
from mophpc.run.faults.stopping import StopFlag
from mophpc.run.folder import RunFolder
from mophpc.run.local import run_local
from mophpc.state_folder import batches_in

pytestmark = pytest.mark.timeout(120)

SOON_S = 20.0
"""A stop that waits for something which never comes takes 60 s."""
POINTS = {
    "batch": "mophpc.train.session:train_step",
    "evaluation": "mophpc.train.session:Session.evaluate",
    "state": "mophpc.train.state_file:StateCopy.write",
    "hop": "mophpc.run.rank.carrier:Outgoing.__init__",
    "arrival": "mophpc.hop.parcel:Incoming.parcel",
    "orders": "mophpc.run.rank.carrier:Carrier.tell",
    "promise": "mophpc.run.recovery.journal:Journal.promise",
    "end of a config": "mophpc.run.folder:RunFolder.write_manifest",
    "end of a list": "mophpc.run.faults.places:Sign.over",
}
SEARCHES = {
    "hyperband": {"method": "hyperband", "reduction": 2},
    "population": {"method": "population", "configs": 4, "interval": 1, "explore": ["lr"]},
    "median": {"method": "random", "configs": 6, "median": 1},
}
DRAWN = {"lr": mophpc.loguniform(1e-3, 1e-1), "width": [4, 6]}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store"), 4)


def owner_of(point: str) -> tuple[Any, str]:
    module, _, path = POINTS[point].partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name


def stopped_run(
    patch: pytest.MonkeyPatch, out: Path, given: Experiment, ranks: int, point: str, call: int
) -> bool:
    """Run, and ask it to stop at a call; return whether it did, after it has written all."""
    stop, asked_s = StopFlag(), 0.0
    owner, name = owner_of(point)
    real: Callable[..., Any] = getattr(owner, name)
    count = 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal count, asked_s
        count += 1
        if count == call:
            asked_s = time.monotonic()
            stop._note(signal.SIGTERM, None)
        return real(*given, **named)

    with patch.context() as context:
        context.setattr(owner, name, counted)
        try:
            run_local(given, RunFolder(out), ranks, LiveView("off"), stop)
        except InterruptError as error:
            caught = error
        else:
            return False
    assert time.monotonic() - asked_s < SOON_S
    assert caught.exit_status == 75
    assert str(caught).startswith("interrupted by SIGTERM")
    return True


def made(out: Path) -> Counter[tuple[int, int]]:
    """Return how often each whole visit, (config, step), was made."""
    return Counter(
        (event["config"], event["step"])
        for path in (out / "events").iterdir()
        for event in read_lines(path)
        if event["kind"] == "visit"
    )


def all_is_written(out: Path) -> None:
    """Check that the newest state of each config that is to go on is on disk."""
    over = {line["config"] for line in read_lines(out / "journal.jsonl") if line["kind"] == "final"}
    newest: dict[int, int] = {}
    for config_id, step in made(out):
        newest[config_id] = max(newest.get(config_id, 0), step + 1)
    there: dict[int, int] = {}
    for path in state_files(out):
        step = json.loads(path.read_text())["step"]
        config_id = int(path.parent.name[1:4])
        there[config_id] = max(there.get(config_id, 0), step)
    for config_id, step in newest.items():
        assert config_id in over or there[config_id] == step, (config_id, step, there)


@pytest.mark.parametrize("seed", range(14))
def test_a_run_stopped_anywhere_loses_nothing(tmp_path, store, monkeypatch, seed):
    rng = random.Random(seed)
    settings = [{}, {"schedule": mophpc.Schedule(renew=False)}][seed % 2]
    out, given, point = tmp_path / "run", experiment(store, **settings), [*POINTS][seed % 9]
    most = {"batch": 220, "end of a list": 3, "end of a config": 4, "orders": 12, "promise": 8}
    call = rng.randint(75 if point == "batch" else 1, most.get(point, 10))
    is_stopped = stopped_run(monkeypatch, out, given, rng.randint(1, 4), point, call)
    if is_stopped and (out / "journal.jsonl").exists():
        all_is_written(out)
    results = resume(out, store, rng.randint(1, 4), **settings)
    check(out, results)
    assert [row.status for row in results.configs] == ["done"] * 4
    again = {visit: count for visit, count in made(out).items() if count > 1}
    assert not again


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_rank_that_has_ended_its_list_still_answers(tmp_path, store, monkeypatch, ranks):
    """It has said its last word about visits, and not about whether all may end."""
    out, given = tmp_path / "run", experiment(store, space={"lr": [0.01], "width": [4]}, epochs=1)
    assert stopped_run(monkeypatch, out, given, ranks, "end of a list", 1)
    all_is_written(out)
    results = resume(out, store, ranks, space={"lr": [0.01], "width": [4]}, epochs=1)
    assert [row.status for row in results.configs] == ["done"]
    assert max(made(out).values()) == 1


def test_a_stop_after_the_last_visit_stops_all_or_nobody(tmp_path, store, monkeypatch):
    given = experiment(store)
    is_stopped = stopped_run(monkeypatch, tmp_path / "run", given, 4, "end of a list", 4)
    assert is_stopped != (tmp_path / "run/results.json").exists()
    check(tmp_path / "run", resume(tmp_path / "run", store, 2))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("seed", range(3))
def test_a_search_that_was_stopped_decides_as_it_would(tmp_path, store, monkeypatch, search, seed):
    rng = random.Random(f"{search} {seed}")
    settings = {"search": SEARCHES[search], "space": DRAWN, "epochs": 4}
    out = tmp_path / "run"
    point = rng.choice(["batch", "evaluation", "orders", "promise", "hop", "end of a config"])
    call = rng.randint(90, 250) if point == "batch" else rng.randint(2, 12)
    ranks = rng.randint(2, 4)
    if stopped_run(monkeypatch, out, experiment(store, **settings), ranks, point, call):
        all_is_written(out)
    results = resume(out, store, rng.randint(1, 4), **settings)
    check(out, results, epochs=4)


def test_states_on_a_device_are_written_too(tmp_path, store, monkeypatch):
    settings = {"device": Device(use="twin")}
    out, given = tmp_path / "run", experiment(store, **settings)
    assert stopped_run(monkeypatch, out, given, 3, "batch", 150)
    all_is_written(out)
    check(out, resume(out, store, 2, **settings))
    assert max(made(out).values()) == 1


def test_a_visit_goes_on_in_its_middle(tmp_path, store, monkeypatch):
    out, given = tmp_path / "run", experiment(store)
    assert stopped_run(monkeypatch, out, given, 1, "batch", 90)
    assert any(batches_in(path) for path in state_files(out))
    check(out, resume(out, store, 1))


def test_nothing_is_written_where_states_are_off(tmp_path, store, monkeypatch):
    settings = {"checkpoints": Checkpoints(states="off")}
    out, given = tmp_path / "run", experiment(store, **settings)
    assert stopped_run(monkeypatch, out, given, 3, "batch", 150)
    assert state_files(out) == []
    check(out, resume(out, store, 2, **settings))


# The protocol, message by message.


class Known:
    """A rank 0 of some ranks, and what the others are told."""

    def __init__(self, size: int, patch: pytest.MonkeyPatch, limit_s: float = 60.0) -> None:
        patch.setattr(halting, "SAID_S", -1.0)
        world = LocalWorld(size)
        self.reported: list[list[dict[str, Any]]] = [[] for _ in range(size)]
        self.stops = [StopFlag() for _ in range(size)]
        self.halts = [
            Halt(LocalTransport(world, rank), self.stops[rank], limit_s, self.reported[rank].append)
            for rank in range(size)
        ]
        self.said: list[str] = []
        self.newest: list[tuple[int, int]] = []
        self.muster = Muster(LocalTransport(world, 0), self.halts[0], self.said.append)

    def turn(self) -> None:
        for _ in range(3):
            self.muster.poll(lambda: self.newest)
            for halt in self.halts[1:]:
                take_arrived(halt.receivers)

    def pause(self, rank: int, *states: tuple[int, int, bool]) -> None:
        self.muster.take({"kind": "written", "states": [list(state) for state in states]})
        self.muster.take({"kind": "paused", "rank": rank})


def test_all_stop_and_end_when_the_newest_of_each_is_on_disk(monkeypatch):
    known = Known(3, monkeypatch)
    known.stops[2].is_orderly = True
    known.stops[2]._note(signal.SIGUSR1, None)
    for _ in range(2):
        known.halts[2].notice()
    assert known.reported[2] == [{"kind": "signal", "rank": 2, "signal": "SIGUSR1"}]
    assert not any(halt.is_asked for halt in known.halts)
    for _ in range(2):  # the signal came on two ranks
        known.muster.begin(2, "SIGUSR1")
    known.turn()
    assert all(halt.is_asked for halt in known.halts)
    assert str(known.halts[1].error()) == "interrupted by SIGUSR1 on rank 2"
    assert known.said == ["SIGUSR1 on rank 2: the states of all configs are being written"]
    known.newest = [(0, 4), (1, 2), (2, 3)]
    known.pause(0, (0, 4, True))
    known.pause(1, (1, 2, False), (2, 1, True))  # full disk: what cannot be written is not awaited
    known.turn()
    assert not any(halt.is_over for halt in known.halts)
    known.pause(2)
    known.turn()
    assert [halt.wanted for halt in known.halts] == [[(2, 3)]] * 3
    assert not any(halt.is_over for halt in known.halts)
    known.muster.take({"kind": "written", "states": [[2, 3, True]]})
    known.turn()
    assert all(halt.is_over for halt in known.halts)
    assert [halt.wanted for halt in known.halts] == [[(2, 3)]] * 3  # asked for once
    assert known.muster.has_told_all


def test_who_has_ended_well_is_not_stopped(monkeypatch):
    known = Known(2, monkeypatch)
    known.muster.end()
    known.muster.begin(1, "SIGTERM")
    known.turn()
    assert all(halt.is_over and not halt.is_asked for halt in known.halts)
    known.stops[1].is_orderly = True
    known.stops[1]._note(signal.SIGTERM, None)
    known.halts[1].notice()
    assert known.reported[1] == []  # nobody would take it


def test_no_rank_waits_longer_than_it_may(monkeypatch):
    known, now_s = Known(2, monkeypatch, limit_s=60.0), time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    known.muster.begin(0, "SIGINT")
    known.turn()
    assert not any(halt.is_late for halt in known.halts)
    now_s += 59.9
    assert not any(halt.is_late for halt in known.halts)
    now_s += 0.2
    assert all(halt.is_late for halt in known.halts)


@pytest.mark.parametrize("survives", [True, False])
def test_a_loss_stops_those_who_go_on_and_ends_the_others(survives):
    stop = StopFlag()
    halt = Halt(LocalTransport(LocalWorld(2), 1), stop, 60.0, lambda _: None, survives=survives)
    stop.is_orderly = True
    loss = LostError(Place(0, 2, "here"), "it is lost")
    stop.end(loss)
    if not survives:
        with pytest.raises(LostError):
            halt.notice()
        with pytest.raises(UnreachableError):
            halt.lose(UnreachableError("MPI: no way"))
        return
    halt.notice()
    assert halt.is_asked
    halt.lose(UnreachableError("MPI: no way"))  # what follows from it says less
    assert halt.error() is loss
    stop.go_on()
    stop.check()
