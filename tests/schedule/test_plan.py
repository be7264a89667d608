from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mophpc.errors import LaunchError, PlanError
from mophpc.schedule import (
    POLICIES,
    Hop,
    Plan,
    Visit,
    assign_shards,
    digest,
    from_json,
    hops,
    make_plan,
    routes,
    stops,
    to_json,
)
from mophpc.schedule.costs import Costs


def small() -> Plan:
    return make_plan("round-robin", num_configs=5, num_shards=4, num_ranks=3, num_epochs=2)


@pytest.mark.parametrize(
    ("num_shards", "num_ranks", "owners"),
    [
        (4, 4, (0, 1, 2, 3)),
        (5, 2, (0, 0, 0, 1, 1)),
        (7, 3, (0, 0, 0, 1, 1, 2, 2)),
        (3, 1, (0, 0, 0)),
    ],
)
def test_shards_go_to_ranks_in_blocks(num_shards, num_ranks, owners):
    assert assign_shards(num_shards, num_ranks) == owners


def test_more_ranks_than_shards_says_what_to_do():
    with pytest.raises(LaunchError) as caught:
        assign_shards(2, 4)
    assert str(caught.value) == (
        "4 ranks but the store has 2 shards; start at most 2 ranks, "
        "or prepare the store again with --shards 4"
    )
    with pytest.raises(LaunchError, match="has 1 shard; start at most 1 rank, "):
        assign_shards(1, 4)


@given(*[st.integers(0, 10**6)] * 5)
def test_a_visit_is_one_token(config_id, epoch, shard, rank, step):
    visit = Visit(config_id, epoch, shard, rank, step)
    assert Visit.parse(str(visit)) == visit
    assert str(visit).isalnum()


@pytest.mark.parametrize("token", ["", "c1e0s2", "c1e0s2r0n1 ", "c-1e0s2r0n1", "c1e0s2r0n\u0661"])
def test_a_bad_token_is_quoted(token):
    with pytest.raises(PlanError, match=r"is not a visit; one looks like c3e0s2r1n5"):
        Visit.parse(token)


def test_routes_follow_the_steps():
    plan = small()
    found = routes(plan)
    assert len(found) == plan.num_configs
    for config_id, route in enumerate(found):
        assert [visit.step for visit in route] == list(range(plan.num_steps))
        assert {visit.config_id for visit in route} == {config_id}
        assert plan.route(config_id) == route


def test_hops_join_visits_on_different_ranks():
    plan = small()
    expected = {
        (two.config_id, two.step, one.rank, two.rank)
        for route in routes(plan)
        for one, two in pairwise(route)
        if one.rank != two.rank
    }
    found = hops(plan)
    assert len(found) == len(expected)
    assert {(hop.config_id, hop.step, hop.source, hop.dest) for hop in found} == expected


def test_the_tag_of_a_hop_is_its_config_and_hops_come_as_they_are_sent():
    plan = small()
    assert all(hop.tag == hop.config_id for hop in hops(plan))
    for source in range(plan.num_ranks):
        places = {(v.config_id, v.step + 1): n for n, v in enumerate(plan.visits_by_rank[source])}
        order = [places[hop.config_id, hop.step] for hop in hops(plan) if hop.source == source]
        assert order == sorted(order)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_hops_with_equal_tags_are_sent_and_received_in_the_same_order(policy):
    """Two ranks tell the hops of a config from one to the other by their order alone."""
    plan = make_plan(policy, num_configs=3, num_shards=4, num_ranks=3, num_epochs=5)
    steps_sent: dict[tuple[int, int, int], list[int]] = {}
    steps_received: dict[tuple[int, int, int], list[int]] = {}
    for rank in range(plan.num_ranks):
        for stop in stops(plan, rank):
            for hop, found in ((stop.send, steps_sent), (stop.receive, steps_received)):
                if hop is not None:
                    found.setdefault((hop.source, hop.dest, hop.tag), []).append(hop.step)
    assert steps_sent == steps_received
    assert all(steps == sorted(set(steps)) for steps in steps_sent.values())
    assert max(map(len, steps_sent.values())) > 1


def test_stops_hold_the_hops_of_a_rank():
    plan = small()
    every = [stop for rank in range(plan.num_ranks) for stop in stops(plan, rank)]
    assert tuple(stop.visit for stop in every) == tuple(plan.visits())
    assert tuple(stop.send for stop in every if stop.send is not None) == hops(plan)
    received = [stop.receive for stop in every if stop.receive is not None]
    key = repr
    assert sorted(received, key=key) == sorted(hops(plan), key=key)
    for stop in every:
        visit = stop.visit
        assert stop.creates == (visit.step == 0)
        assert stop.is_last == (visit.step == plan.num_steps - 1)
        assert not stop.is_open  # a plan is whole
        assert stop.takes_arena == (stop.creates or stop.receive is not None)
        if stop.receive is not None:
            assert (stop.receive.dest, stop.receive.step) == (visit.rank, visit.step)
        if stop.send is not None:
            assert (stop.send.source, stop.send.step) == (visit.rank, visit.step + 1)


def test_what_cannot_be_linked_is_a_plan_error():
    plan = small()
    first = plan.visits_by_rank[0]
    short = replace(plan, visits_by_rank=(first[1:], *plan.visits_by_rank[1:]))
    with pytest.raises(PlanError, match="config 0 has no visit with step 0"):
        hops(short)
    twice = replace(plan, visits_by_rank=((*first, first[0]), *plan.visits_by_rank[1:]))
    with pytest.raises(PlanError, match="the plan has 41 visits; 40 are due"):
        routes(twice)


def test_digest_is_the_same_under_every_hash_seed():
    code = (
        "from mophpc.schedule import POLICIES, digest, make_plan\n"
        "from mophpc.schedule.costs import Costs\n"
        "costs = Costs.of([[9 + c * c % 7] for c in range(5)], 5, 4, hop_s=0.5, eval_s=1)\n"
        "sizes = dict(num_configs=5, num_shards=4, num_ranks=3, num_epochs=2, costs=costs)\n"
        "print([digest(make_plan(policy, **sizes)) for policy in sorted(POLICIES)])"
    )
    found = []
    for seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        found.append(done.stdout)
    costs = Costs.of([[9 + c * c % 7] for c in range(5)], 5, 4, hop_s=0.5, eval_s=1)
    sizes = {"num_configs": 5, "num_shards": 4, "num_ranks": 3, "num_epochs": 2}
    here = [digest(make_plan(policy, **sizes, costs=costs)) for policy in sorted(POLICIES)]
    assert found == [f"{here}\n"] * 3
    assert len(set(here)) == len(POLICIES)


def test_digest_of_a_known_plan_stays():
    """Plans in old run folders are recognised by it: change PLAN_FORMAT when this changes."""
    plan = make_plan("round-robin", num_configs=2, num_shards=2, num_ranks=2, num_epochs=1)
    assert plan.visits_by_rank == (
        (Visit(0, 0, 0, 0, 0, 0.0, 1.0), Visit(1, 0, 0, 0, 1, 1.0, 2.0)),
        (Visit(1, 0, 1, 1, 0, 0.0, 1.0), Visit(0, 0, 1, 1, 1, 1.0, 2.0)),
    )
    assert digest(plan) == "1b91472e4ea9bb1a5f871268be93d41696ce9b08a940ad3269912f1279528581"


@settings(deadline=None)
@given(st.data())
def test_digest_sees_every_change_of_a_visit(data):
    plan = small()
    rank = data.draw(st.integers(0, plan.num_ranks - 1))
    own = list(plan.visits_by_rank[rank])
    place = data.draw(st.integers(0, len(own) - 1))
    name = data.draw(st.sampled_from(["config_id", "epoch", "shard", "rank", "step"]))
    own[place] = replace(own[place], **{name: getattr(own[place], name) + 1})
    lists = list(plan.visits_by_rank)
    lists[rank] = tuple(own)
    assert digest(replace(plan, visits_by_rank=tuple(lists))) != digest(plan)


def test_digest_sees_order_owners_and_arenas_but_not_labels():
    plan = small()
    first, second, *rest = plan.visits_by_rank[0]
    swapped = replace(plan, visits_by_rank=((second, first, *rest), *plan.visits_by_rank[1:]))
    timed = replace(first, predicted_start_s=1.0, predicted_end_s=2.0)
    changed = [
        swapped,
        replace(plan, owners=(0, 1, 1, 2)),
        replace(plan, max_arenas=plan.max_arenas + 1),
        replace(plan, num_configs=6),
        replace(plan, num_epochs=3),
    ]
    assert len({digest(one) for one in [plan, *changed]}) == len(changed) + 1
    lists = ((timed, second, *rest), *plan.visits_by_rank[1:])
    assert digest(replace(plan, visits_by_rank=lists, policy="other")) == digest(plan)


@settings(deadline=None)
@given(
    num_configs=st.integers(1, 9),
    num_ranks=st.integers(1, 5),
    more_shards=st.integers(0, 3),
    num_epochs=st.integers(1, 3),
    scale_s=st.floats(0.0, 1e6),
)
def test_json_round_trip(num_configs, num_ranks, more_shards, num_epochs, scale_s):
    plan = make_plan(
        "round-robin",
        num_configs=num_configs,
        num_shards=num_ranks + more_shards,
        num_ranks=num_ranks,
        num_epochs=num_epochs,
    )
    timed = tuple(
        tuple(
            replace(visit, predicted_start_s=n * scale_s / 3, predicted_end_s=(n + 1) * scale_s / 3)
            for n, visit in enumerate(visits)
        )
        for visits in plan.visits_by_rank
    )
    plan = replace(plan, visits_by_rank=timed)
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan


def without(name):
    return lambda record: record.pop(name)


def put(name, value):
    return lambda record: record.update({name: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        *[
            (without(name), f"the plan has no field '{name}'")
            for name in ("format", "policy", "digest", "num_configs", "num_ranks", "num_shards")
        ],
        *[
            (without(name), f"the plan has no field '{name}'")
            for name in ("num_epochs", "max_arenas", "owners", "visits_by_rank")
        ],
        (without("predicted_end_s"), "the plan has no field 'predicted_end_s'"),
        (put("format", 2), "format is 2; this mophpc reads 1"),
        (put("num_ranks", "3"), "num_ranks holds '3'; expected int"),
        (put("num_ranks", True), "num_ranks holds True; expected int"),
        (put("num_ranks", 2), "owners puts shard 3 on rank 2 of 2 ranks"),
        (put("num_shards", 5), "owners names 4 shards; there are 5"),
        (put("num_epochs", 0), "num_epochs is 0; it must be 1 or more"),
        (put("owners", [0, 0, 1, 1.5]), "owners holds 1.5; expected int"),
        (put("policy", None), "policy holds None; expected str"),
        (put("visits_by_rank", [[], 7, []]), "visits_by_rank holds 7; expected list"),
        (put("visits_by_rank", [[], [3], []]), r"visits_by_rank\[1\] holds 3; expected str"),
        (put("predicted_start_s", [[], [], []]), "predicted_start_s does not have one number per"),
        (put("predicted_end_s", [["x"], [], []]), r"predicted_end_s\[0\] holds 'x'; expected fl"),
        (put("max_arenas", 99), "digest is not that of the visits"),
    ],
)
def test_a_bad_file_names_the_field(spoil, message):
    record = to_json(small())
    spoil(record)
    with pytest.raises(PlanError, match=message):
        from_json(record)


def test_a_file_that_is_no_plan():
    with pytest.raises(PlanError, match="a plan is a JSON object, not list"):
        from_json([])
    record = to_json(small())
    for name in ("visits_by_rank", "predicted_start_s", "predicted_end_s"):
        record[name] = record[name][:2]
    with pytest.raises(PlanError, match="visits_by_rank has 2 lists for 3 ranks"):
        from_json(record)


def test_hop_is_plain_data():
    assert Hop(1, 2, 0, 3) == Hop(config_id=1, step=2, source=0, dest=3)
    assert Hop(1, 2, 0, 3).tag == 1
