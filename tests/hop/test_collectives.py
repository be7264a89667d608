"""What ranks agree on, and errors that reach all of them."""

from __future__ import annotations

import random
import time

import pytest
from hop_testing import ExpectedError, all_well, in_threads

from mophpc import errors
from mophpc.errors import (
    ExperimentError,
    HopError,
    InterruptError,
    LaunchError,
    MophpcError,
    Place,
    PlanError,
    RunError,
    StoreError,
)
from mophpc.hop.collectives import Group, describe, restore
from mophpc.hop.local import LocalTransport, LocalWorld, PeerError
from mophpc.schedule import DeadlockError, make_plan, to_json


class Contract:
    def test_everyone_gets_what_the_root_shares(self, run):
        def body(group):
            value = {"a": [1, 2.5, None, "ü"]} if group.rank == 0 else "ignored"
            assert group.share(value) == {"a": [1, 2.5, None, "ü"]}
            assert group.share(None) is None
            text = "x" * 300_000
            assert group.share(text if group.rank == 0 else None) == text

        run(body)

    def test_the_root_gathers_from_all_by_rank(self, run):
        def body(group):
            found = group.gather({"rank": group.rank, "pad": "y" * 1000 * group.rank})
            expected = [{"rank": r, "pad": "y" * 1000 * r} for r in range(group.size)]
            assert found == (expected if group.rank == 0 else [])

        run(body)

    def test_without_an_error_all_agree_and_go_on(self, run):
        def body(group):
            group.agree()
            assert group.attempt(lambda: group.rank * 2) == group.rank * 2
            group.barrier()

        run(body)

    @pytest.mark.parametrize("failing", [(0,), (1,), (0, 1), (-1,)])
    def test_an_error_of_any_rank_is_raised_on_all(self, run, failing):
        def body(group):
            own = StoreError(f"shard of rank {group.rank} is damaged")
            ranks = sorted(r % group.size for r in failing if r < group.size)
            if not ranks:
                return
            with pytest.raises(StoreError) as caught:
                group.agree(own if group.rank in ranks else None)
            assert str(caught.value) == f"shard of rank {ranks[0]} is damaged"
            assert (caught.value is own) == (group.rank == ranks[0])
            group.agree()  # the ranks are still in step

        run(body)

    def test_a_failed_attempt_is_raised_on_all_with_its_class(self, run):
        def body(group):
            def fail():
                if group.rank == group.size - 1:
                    raise LaunchError("no")
                return 1

            with pytest.raises(LaunchError, match=r"^no$"):
                group.attempt(fail)
            assert group.share(5) == 5

        run(body)

    def test_a_foreign_error_keeps_its_words_and_is_the_cause_where_it_was_raised(self, run):
        def body(group):
            def fail():
                if group.rank == group.size - 1:
                    raise KeyError("width")

            with pytest.raises(MophpcError) as caught:
                group.attempt(fail)
            assert str(caught.value) == "KeyError: 'width'"
            assert caught.value.agreed
            assert isinstance(caught.value.__cause__, KeyError) == (group.rank == group.size - 1)
            group.barrier()

        run(body)

    def test_only_the_root_plans_and_all_get_the_plan(self, run):
        planned = []

        def body(group):
            def plan():
                planned.append(group.rank)
                sizes = {"num_configs": 3, "num_shards": 8, "num_ranks": group.size}
                return to_json(make_plan("round-robin", num_epochs=2, **sizes))

            found = group.from_root(plan)
            assert found["num_ranks"] == group.size
            group.barrier()
            assert set(planned) <= {0}

        run(body)

    def test_the_root_s_error_in_planning_is_raised_on_all(self, run):
        def body(group):
            def plan():
                sizes = {"num_configs": 3, "num_shards": 2, "num_ranks": 5}
                return to_json(make_plan("round-robin", num_epochs=2, **sizes))

            with pytest.raises(LaunchError) as caught:
                group.from_root(plan)
            assert str(caught.value).startswith("5 ranks but the store has 2 shards; start at")
            assert group.share(1) == 1

        run(body)

    def test_no_rank_passes_a_barrier_before_all_have_come(self, run):
        def body(group):
            time.sleep(0.05 * ((group.rank * 2) % 3))
            came_s = time.time()
            group.barrier()
            passed_s = time.time()
            came = group.share(group.gather(came_s))
            assert passed_s >= max(came) - 1e-3

        run(body)

    def test_ranks_stay_in_step_whatever_their_timing(self, run):
        def body(group):
            rng = random.Random(group.rank)
            for turn in range(15):
                time.sleep(rng.random() * 0.002)
                assert group.share([turn] if group.rank == 0 else None) == [turn]
                if rng.random() < 0.5:
                    time.sleep(0.001)
                gathered = group.gather([turn, group.rank])
                assert gathered == [[turn, r] for r in range(group.size) if group.rank == 0]

        run(body)


class TestLocal(Contract):
    @pytest.fixture(params=range(1, 8))
    def run(self, request):
        return lambda body: all_well(in_threads(request.param, lambda t: body(Group(t))))


@pytest.mark.mpi(min_size=2)
class TestMpi(Contract):
    @pytest.fixture
    def run(self, comm):
        from mophpc.hop.mpi import MpiTransport

        group = Group(MpiTransport(comm))
        return lambda body: body(group)


def test_waiting_for_the_others_ends_when_the_check_raises():
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) > 5:
            raise InterruptError("interrupted by SIGINT")

    group = Group(LocalTransport(LocalWorld(2), 1), check)
    with pytest.raises(InterruptError):
        group.share()


def test_a_rank_that_waits_for_one_that_failed_is_told():
    def body(transport):
        if transport.rank == 1:
            raise ValueError("gone")
        Group(transport).barrier()

    outcomes = in_threads(3, body)
    assert [type(outcome) for outcome in outcomes] == [PeerError, ValueError, PeerError]


def test_an_expected_error_alone_does_not_end_the_others():
    def body(transport):
        if transport.rank == 1:
            raise ExpectedError
        return "ended"

    assert in_threads(2, body)[0] == "ended"


class OwnStoreError(StoreError):
    """A room's own kind."""


KINDS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type)
    and issubclass(value, MophpcError)
    and not issubclass(value, RunError)  # they have a place
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_of_ours_comes_back_as_it_was(kind):
    error = restore(describe(kind("what was given, what is allowed")))
    assert type(error) is kind
    assert str(error) == "what was given, what is allowed"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OwnStoreError("x"), StoreError, "x"),
        (DeadlockError("x"), PlanError, "x"),
        (PeerError("x"), HopError, "x"),
        (ZeroDivisionError("x"), MophpcError, "ZeroDivisionError: x"),
        (RunError(Place(1, 2, "h"), "x"), MophpcError, "rank 1 of 2 on h: x"),
    ],
)
def test_other_errors_come_back_as_their_nearest_ancestor(error, kind, message):
    found = restore(describe(error))
    assert type(found) is kind
    assert str(found) == message


def test_an_experiment_error_is_still_a_value_error_after_the_journey():
    assert isinstance(restore(describe(ExperimentError("x"))), ValueError)
