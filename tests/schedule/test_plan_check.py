"""Every error of the checker, provoked by spoiling a good plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mophpc.errors import PlanError
from mophpc.schedule import (
    TAG_SPAN,
    CompletenessError,
    DeadlockError,
    ExclusivityError,
    IsolationError,
    MatchingError,
    OrderError,
    OwnerError,
    Plan,
    Visit,
    check_plan,
    make_plan,
    predict,
)


def good(num_configs: int = 4, num_epochs: int = 2) -> Plan:
    return make_plan(
        "round-robin", num_configs=num_configs, num_shards=3, num_ranks=2, num_epochs=num_epochs
    )


def change(plan: Plan, visit: Visit, **fields: object) -> Plan:
    """Change one visit where it stands."""
    return replace(
        plan,
        visits_by_rank=tuple(
            tuple(replace(v, **fields) if v == visit else v for v in visits)
            for visits in plan.visits_by_rank
        ),
    )


def listed(plan: Plan, rank: int, *visits: Visit) -> Plan:
    """Give a rank another list."""
    lists = list(plan.visits_by_rank)
    lists[rank] = visits
    return replace(plan, visits_by_rank=tuple(lists))


def test_a_good_plan_passes_with_and_without_times():
    check_plan(good())
    check_plan(predict(good(), 0.1, hop_s=0.3, eval_s=0.05).plan)


def test_every_error_is_a_plan_error():
    errors = (CompletenessError, OwnerError, IsolationError, ExclusivityError, OrderError)
    for error in (*errors, MatchingError, DeadlockError):
        assert issubclass(error, PlanError)


@pytest.mark.parametrize("field", ["config_id", "epoch", "shard"])
@pytest.mark.parametrize("value", [-1, 9])
def test_outside_of_the_plan(field, value):
    plan = good()
    with pytest.raises(CompletenessError, match="the plan has 4 configs, 2 epochs and 3 shards"):
        check_plan(change(plan, plan.route(2)[1], **{field: value}))


def test_a_visit_is_missing():
    plan = good()
    with pytest.raises(CompletenessError, match="config 0 visits shard 0 0 times in epoch 0"):
        check_plan(listed(plan, 0, *plan.visits_by_rank[0][1:]))


def test_a_visit_is_there_twice():
    plan = good()
    visits = plan.visits_by_rank[1]
    with pytest.raises(CompletenessError, match="visits shard 2 2 times in epoch 0; once is due"):
        check_plan(listed(plan, 1, *visits, visits[0]))


def test_a_shard_of_another_rank():
    plan = good()
    one, *rest = plan.visits_by_rank[0]
    moved = listed(listed(plan, 0, *rest), 1, *plan.visits_by_rank[1], one)
    message = "config 0, epoch 0, shard 0 on rank 0: .* list of rank 1, the shard belongs to rank 0"
    with pytest.raises(OwnerError, match=message):
        check_plan(moved)
    with pytest.raises(OwnerError, match="on rank 1: the visit is in the list of rank 0"):
        check_plan(change(plan, one, rank=1))


def test_a_step_is_made_twice():
    plan = good()
    visit = plan.route(3)[2]
    with pytest.raises(IsolationError, match="are both step 1 of the config"):
        check_plan(change(plan, visit, step=1))


def test_steps_have_a_gap():
    plan = good()
    with pytest.raises(OrderError, match=r"config 3, epoch 1, .* is step 7; step 5 is missing"):
        check_plan(change(plan, plan.route(3)[5], step=7))


def test_epochs_out_of_order():
    plan = good()
    two, three = plan.route(1)[2], plan.route(1)[3]
    swapped = change(change(plan, two, epoch=1), three, epoch=0)
    with pytest.raises(OrderError, match="which is in epoch"):
        check_plan(swapped)


def test_a_list_that_goes_back():
    plan = good()
    first, second, *rest = plan.visits_by_rank[0]
    assert first.config_id == second.config_id
    with pytest.raises(OrderError, match=r"config 0, .*\(step 1\) comes before step 0"):
        check_plan(listed(plan, 0, second, first, *rest))


def test_predicted_times_that_overlap():
    plan = predict(good(), 1.0).plan
    visit = plan.visits_by_rank[0][1]
    with pytest.raises(ExclusivityError, match="is predicted to start while config 0, epoch 0, sh"):
        check_plan(change(plan, visit, predicted_start_s=visit.predicted_start_s - 0.5))
    with pytest.raises(ExclusivityError, match="is predicted to end before it starts"):
        check_plan(change(plan, visit, predicted_end_s=visit.predicted_start_s - 0.5))
    with pytest.raises(ExclusivityError, match="is predicted to end before it starts"):
        check_plan(change(plan, visit, predicted_end_s=float("nan")))


def test_predicted_times_with_a_config_in_two_places():
    plan = predict(good(num_configs=1, num_epochs=1), 1.0).plan
    last = plan.visits_by_rank[1][0]
    with pytest.raises(IsolationError, match="on rank 1 is predicted to start while config 0"):
        check_plan(change(plan, last, predicted_start_s=1.5))


def test_a_tag_belongs_to_one_config():
    plan = good(num_configs=16, num_epochs=6)
    check_plan(plan, tag_span=16)
    with pytest.raises(MatchingError) as caught:
        check_plan(plan, tag_span=15)
    assert str(caught.value) == (
        "configs 0 and 15 have the same tag, and their hops may be in flight together: "
        "a plan holds at most 15 configs"
    )


def test_more_configs_than_tags():
    """By the default too; a config needs just one visit here."""
    plan = Plan(
        num_configs=TAG_SPAN + 1,
        num_ranks=1,
        num_shards=1,
        num_epochs=1,
        owners=(0,),
        visits_by_rank=(tuple(Visit(c, 0, 0, 0, 0) for c in range(TAG_SPAN + 1)),),
        policy="by hand",
        max_arenas=TAG_SPAN,
    )
    with pytest.raises(MatchingError, match=f"a plan holds at most {TAG_SPAN} configs"):
        check_plan(plan)
    check_plan(plan, tag_span=TAG_SPAN + 1)


def test_ranks_that_wait_for_each_other():
    plan = Plan(
        num_configs=2,
        num_ranks=2,
        num_shards=2,
        num_epochs=1,
        owners=(0, 1),
        visits_by_rank=(
            (Visit(1, 0, 0, 0, 1), Visit(0, 0, 0, 0, 0)),
            (Visit(0, 0, 1, 1, 1), Visit(1, 0, 1, 1, 0)),
        ),
        policy="by hand",
        max_arenas=9,
    )
    with pytest.raises(DeadlockError) as caught:
        check_plan(plan)
    assert str(caught.value) == (
        "the plan cannot end with 9 arenas per rank (no number of arenas is enough): "
        "config 1, epoch 0, shard 0 on rank 0 cannot start: its state never leaves rank 1; "
        "config 0, epoch 0, shard 1 on rank 1 cannot start: its state never leaves rank 0"
    )


def test_too_few_arenas():
    plan = good(num_configs=16)
    check_plan(plan)
    with pytest.raises(DeadlockError, match=r"with 1 arenas per rank \(10 arenas are enough\): "):
        check_plan(replace(plan, max_arenas=1))


def test_a_long_list_of_ranks_is_cut():
    plan = make_plan("round-robin", num_configs=32, num_shards=8, num_ranks=8, num_epochs=1)
    with pytest.raises(DeadlockError, match=r"; and 4 more ranks$"):
        check_plan(replace(plan, max_arenas=1))
