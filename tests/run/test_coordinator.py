"""Rank 0 as the keeper of the journal."""

from __future__ import annotations

import json

import pytest
import tiny
from run_testing import configs_of

from mophpc.experiment import Experiment, Objective
from mophpc.files import read_lines
from mophpc.run.folder import RunFolder
from mophpc.run.outcome import write_results
from mophpc.run.rank0.coordinator import Coordinator
from mophpc.run.rank0.ledger import Ledger
from mophpc.schedule import from_json, make_plan, routes

PLAN = make_plan("round-robin", num_configs=3, num_shards=2, num_ranks=2, num_epochs=2)


class Seen:
    """A view that keeps what it is shown."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.visits: list[int] = []
        self.best: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    warn = note

    def begin(self, plan, configs) -> None: ...

    def visited(self, elapsed_s: float, visits: int) -> None:
        self.visits.append(visits)

    def evaluated(self, text: str, best: str) -> None:
        self.notes.append(text)
        self.best.append(best)

    def end(self) -> None: ...


@pytest.fixture
def make(tmp_path):
    made = []

    def make(objective: Objective | None = None) -> tuple[Coordinator, Seen, RunFolder]:
        folder, seen = RunFolder(tmp_path), Seen()
        made.append(
            Coordinator(
                PLAN,
                Ledger(list(configs_of(PLAN)), folder, lambda: 0.0),
                objective or Objective(),
                folder,
                seen,
            ),
        )
        return made[-1], seen, folder

    yield make
    for coordinator in made:
        coordinator.close()


def epoch_of(config_id: int, epoch: int, **metrics: float):
    return {"kind": "epoch", "config": config_id, "epoch": epoch, "rank": 1, "metrics": metrics}


def visit_of(visit, diverged: bool = False):
    return {
        "kind": "visit",
        "config": visit.config_id,
        "step": visit.step,
        "epoch": visit.epoch,
        "shard": visit.shard,
        "rank": visit.rank,
        "rows": 5,
        "start": 10.0 * visit.config_id + visit.step,
        "end": 10.0 * visit.config_id + visit.step + 0.5,
        "loss": 1.0,
        "diverged": diverged,
    }


def final_of(config_id: int, status: str):
    return {"kind": "final", "config": config_id, "status": status, "state_sha256": "x"}


@pytest.mark.parametrize(
    ("mode", "values", "best", "at"),
    [
        ("max", [[0.1, 0.5], [0.7, 0.2], [0.3, 0.3]], 1, 0),
        ("min", [[0.1, 0.5], [0.7, 0.05], [0.3, 0.3]], 1, 1),
        ("max", [[0.5], [0.5], [0.5]], 0, 0),
        ("max", [[float("nan"), 0.1], [float("nan")], [0.2]], 2, 0),
        ("min", [[float("nan")], [0.3], [0.2, float("nan")]], 2, 0),
        ("max", [[float("nan")], [], []], None, None),
        ("max", [[-1.0], [-2.0], [float("inf")]], 2, 0),
    ],
)
def test_the_best_config_is_the_one_with_the_best_epoch(make, mode, values, best, at):
    coordinator, seen, _ = make(Objective(metric="m", mode=mode))
    for config_id, own in enumerate(values):
        for epoch, value in enumerate(own):
            coordinator.handle(epoch_of(config_id, epoch, m=value))
    assert coordinator.best() == best
    if best is None:
        assert set(seen.best) == {""}
    else:
        assert coordinator.histories[best].best_epoch == at
        assert seen.best[-1].startswith(f"c00{best} m ")


def test_losses_are_to_be_small(make):
    coordinator, *_ = make()
    coordinator.handle(epoch_of(0, 0, valid_loss=2.0))
    coordinator.handle(epoch_of(1, 0, valid_loss=1.0))
    assert coordinator.best() == 1


def test_a_config_that_diverged_is_not_the_best(make):
    coordinator, *_ = make(Objective(metric="m", mode="max"))
    for config_id, value in enumerate([0.2, 0.9, 0.1]):
        coordinator.handle(epoch_of(config_id, 0, m=value))
    coordinator.handle(final_of(0, "done"))
    assert coordinator.best() == 1
    coordinator.handle(final_of(1, "diverged"))
    assert coordinator.best() == 0


def test_every_epoch_is_a_line_of_the_journal_at_once(make):
    coordinator, seen, folder = make()
    coordinator.handle(epoch_of(1, 0, train_loss=0.5, valid_loss=0.25, seconds=3.0))
    coordinator.handle(epoch_of(1, 1, train_loss=float("nan"), valid_loss=0.2, seconds=3.0))
    lines = read_lines(folder.metrics)  # not closed yet
    assert lines[0] == {
        "config_id": 1,
        "config": "c001",
        "epoch": 0,
        "rank": 1,
        "train_loss": 0.5,
        "valid_loss": 0.25,
        "seconds": 3.0,
    }
    assert lines[1]["train_loss"] is None
    assert seen.notes[0] == "c001 epoch 0: train_loss 0.5000  valid_loss 0.2500"


def test_routes_and_times_follow_the_visits_in_any_order_of_arrival(make):
    coordinator, seen, folder = make()
    first = routes(PLAN)[1]
    for visit in reversed(first[:3]):
        coordinator.handle(visit_of(visit))
    expected = [{"epoch": v.epoch, "shard": v.shard, "rank": v.rank} for v in first[:3]]
    assert coordinator.route(1) == expected
    assert coordinator.route(0) == []
    assert seen.visits == [1, 2, 3]
    coordinator.write_plan()
    record = json.loads(folder.plan.read_text())
    assert from_json(record) == PLAN
    assert record["configs"] == ["c000", "c001", "c002"]
    for rank, own in enumerate(PLAN.visits_by_rank):
        for place, visit in enumerate(own):
            made = visit.config_id == 1 and visit.step < 3
            start = record["real_start_s"][rank][place]
            assert start == (10.0 + visit.step if made else None)
            end = record["real_end_s"][rank][place]
            assert end == (10.5 + visit.step if made else None)


def test_visits_that_a_diverged_config_will_not_make_count_as_made(make):
    coordinator, seen, _ = make()
    first = routes(PLAN)[2]
    coordinator.handle(visit_of(first[0]))
    coordinator.handle(visit_of(first[1], diverged=True))
    assert seen.visits == [1, 4]
    where = f"epoch 0, shard {first[1].shard}"
    assert seen.notes == [f"c002 diverged (loss not finite) in {where}; the others go on"]


def test_all_is_done_when_every_rank_has_said_so(make):
    coordinator, *_ = make()
    for rank in range(PLAN.num_ranks):
        assert not coordinator.all_done
        coordinator.handle({"kind": "rank", "rank": rank, "last": True, "most_arenas": 3})
    assert coordinator.all_done
    assert coordinator.ranks[1]["most_arenas"] == 3


def test_epochs_heard_of_out_of_order_are_put_in_order(make):
    coordinator, _, folder = make(Objective(metric="accuracy", mode="max"))
    for epoch, accuracy in ((1, 0.5), (0, 0.5)):  # ended on two ranks; the first one's came late
        coordinator.handle(epoch_of(0, epoch, valid_loss=float(epoch), accuracy=accuracy))
    coordinator.handle(final_of(0, "done"))
    history = coordinator.histories[0]
    assert history.last == {"valid_loss": 1.0, "accuracy": 0.5}
    assert (history.best, history.best_epoch) == (0.5, 0)
    experiment = Experiment(
        data="rows.zarr",
        build=tiny.build,
        epochs=2,
        objective=coordinator.objective,
        space={"lr": [0.1]},
    )
    row = write_results(coordinator, experiment, folder)["configs"][0]
    assert row["final"] == {"valid_loss": 1.0, "accuracy": 0.5}
    assert (row["epochs"], row["best_epoch"]) == (2, 0)
