"""What ranks are told, part by part."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import cases

from mophpc.schedule import Plan, Stop, Visit, make_plan, stops
from mophpc.schedule.orders import Link, Orders, Promises, whole
from mophpc.schedule.plan import Hop, untimed


def in_order(plan: Plan) -> list[Visit]:
    """Return the visits in an order in which they can be made."""
    lists = [list(own) for own in plan.visits_by_rank]
    step = [0] * plan.num_configs
    order: list[Visit] = []
    while any(lists):
        before = len(order)
        for own in lists:
            while own and own[0].step == step[own[0].config_id]:
                step[own[0].config_id] += 1
                order.append(own.pop(0))
        assert len(order) > before
    return order


def closed(parts: list[list[Orders]], rank: int) -> tuple[Stop, ...]:
    """Return all stops of a rank, those that were open closed by the links that it was told."""
    told: list[Stop] = []
    for part in parts:
        for link in part[rank].links:  # before the stops of the same part
            place = next(
                n
                for n, stop in enumerate(told)
                if (stop.visit.config_id, stop.visit.step + 1) == (link.config_id, link.step)
            )
            stop = told[place]
            assert stop.is_open
            assert stop.send is None
            hop = Hop(link.config_id, link.step, rank, link.dest) if link.dest != rank else None
            told[place] = replace(stop, send=hop, is_open=False)
        told += part[rank].stops
    return tuple(told)


def check_parts(parts: list[list[Orders]], plan: Plan) -> None:
    """Check that all parts together tell each rank the whole plan."""
    for rank in range(plan.num_ranks):
        assert closed(parts, rank) == stops(plan, rank)
        arenas = [part[rank].max_arenas for part in parts]
        assert arenas == sorted(arenas)
        assert [part[rank].is_last for part in parts] == [False] * (len(parts) - 1) + [True]


def test_by_hand():
    promises = Promises(num_configs=2, num_ranks=2, num_steps=2)
    a0, a1 = Visit(0, 0, 0, 0, 0), Visit(0, 0, 1, 1, 1)
    b0, b1 = Visit(1, 0, 1, 1, 0), Visit(1, 0, 0, 0, 1)
    first = promises.extend([a0, b0, b1], 3, is_last=False)
    hop = Hop(1, 1, 1, 0)
    assert first == [
        Orders((Stop(a0, None, None, False, True), Stop(b1, hop, None, True)), (), 3, False),
        Orders((Stop(b0, None, hop, False),), (), 3, False),
    ]
    assert [promises.step_of(0), promises.step_of(1)] == [1, 2]
    assert promises.visits == [[a0, b1], [b0]]
    second = promises.extend([a1], 4, is_last=True)
    assert second == [
        Orders((), (Link(0, 1, 1),), 4, True),
        Orders((Stop(a1, Hop(0, 1, 0, 1), None, True),), (), 4, True),
    ]


def test_a_link_may_lead_to_the_same_rank():
    promises = Promises(num_configs=1, num_ranks=1, num_steps=2)
    (first,) = promises.extend([Visit(0, 0, 0, 0, 0)], 3, is_last=False)
    assert first.stops[0].is_open
    (second,) = promises.extend([Visit(0, 1, 0, 0, 1)], 3, is_last=True)
    assert second.links == (Link(0, 1, 0),)
    assert second.stops == (Stop(Visit(0, 1, 0, 0, 1), None, None, True),)


def test_an_empty_part():
    promises = Promises(num_configs=1, num_ranks=2, num_steps=2)
    assert promises.extend([], 3, is_last=False) == [Orders((), (), 3, False)] * 2
    assert promises.step_of(0) == 0


@settings(deadline=None, max_examples=50)
@given(cases(kinds=("equal", "skewed")), st.data())
def test_parts_together_are_the_whole_plan(case, data):
    plan = case.plan(data.draw(st.sampled_from(("balanced", "random", "round-robin"))))
    visits = in_order(plan)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(visits)), max_size=6)))
    promises = Promises(plan.num_configs, plan.num_ranks, plan.num_steps)
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, len(visits)], strict=True):
        is_last = len(parts) == len(cuts)
        parts.append(promises.extend(visits[begin:end], plan.max_arenas, is_last=is_last))
        for config_id in range(plan.num_configs):
            made = [v.step for v in visits[:end] if v.config_id == config_id]
            assert promises.step_of(config_id) == max(made, default=-1) + 1
    check_parts(parts, plan)
    assert tuple(map(tuple, promises.visits)) == plan.visits_by_rank
    # As JSON they are the same but for times, which ranks do not need.
    sent = [
        [Orders.from_json(json.loads(json.dumps(one.to_json()))) for one in part] for part in parts
    ]
    check_parts(sent, untimed(plan))


@settings(deadline=None, max_examples=30)
@given(cases(kinds=("equal",)))
def test_a_plan_that_is_not_renewed_is_one_part(case):
    plan = case.plan("round-robin")
    check_parts([[whole(plan, rank) for rank in range(plan.num_ranks)]], plan)


def test_json_holds_every_kind_of_stop():
    visit = Visit(3, 1, 2, 1, 7)
    for stop in (
        Stop(visit, None, None, False),
        Stop(visit, None, None, True),
        Stop(visit, None, None, False, True),
        Stop(visit, Hop(3, 7, 0, 1), None, False),
        Stop(visit, Hop(3, 7, 0, 1), Hop(3, 8, 1, 0), False),
        Stop(visit, Hop(3, 7, 2, 1), None, False, True),
    ):
        orders = Orders((stop,), (Link(0, 3, 1),), 5, False)
        assert Orders.from_json(json.loads(json.dumps(orders.to_json()))) == orders


def test_json_is_plain_and_short():
    plan = make_plan("round-robin", num_configs=2, num_shards=2, num_ranks=2, num_epochs=1)
    assert whole(plan, 0).to_json() == {
        "stops": [["c0e0s0r0n0", -1, 1], ["c1e0s0r0n1", 1, -2]],
        "links": [],
        "max_arenas": 3,
        "is_last": True,
    }


def test_numbers_of_numpy_do_not_get_in():
    """A plan's numbers are Python's, as JSON refuses others."""
    plan = make_plan("balanced", num_configs=5, num_shards=4, num_ranks=2, num_epochs=2)
    assert all(type(v.step) is int for v in plan.visits())
    json.dumps([whole(plan, rank).to_json() for rank in range(2)])
