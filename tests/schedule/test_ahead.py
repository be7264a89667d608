"""List scheduling up to a moment: who is chosen, and when it ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mophpc.schedule.ahead import CRITICAL, Market

pytestmark = pytest.mark.timeout(60)

NEVER = float("inf")


def market(num_configs: int, num_ranks: int, **given) -> Market:
    """Return a market of stays of a second, in which nothing is made; with changes."""
    epochs = given.pop("epochs", 1)
    values = {
        "free_s": [0.0] * num_ranks,
        "stay_s": np.ones((num_configs, num_ranks)),
        "hop_s": np.zeros(num_configs),
        "eval_s": np.zeros(num_configs),
        "end_s": np.zeros(num_configs),
        "at": np.full(num_configs, -1),
        "todo": np.ones((num_configs, num_ranks), np.bool_),
        "stays": np.full(num_configs, epochs * num_ranks),
        "then_s": np.zeros(num_configs),
    }
    return Market(**(values | given))


def test_who_has_most_to_do_goes_first():
    stay_s = np.array([[1.0], [3.0], [2.0]])
    order, starts = market(3, 1, stay_s=stay_s).order(NEVER)
    assert order == [(1, 0), (2, 0), (0, 0)]
    assert starts == [0.0, 3.0, 5.0]


def test_what_may_follow_counts_as_well():
    order, _ = market(2, 1, then_s=np.array([0.0, 3.0])).order(NEVER)
    assert order == [(1, 0), (0, 0)]


def test_later_epochs_and_evaluations_count():
    order, _ = market(2, 1, stays=np.array([1, 2])).order(0.5)
    assert order == [(1, 0)]
    order, _ = market(2, 1, eval_s=np.array([0.0, 0.5])).order(0.5)
    assert order == [(1, 0)]


def test_nothing_starts_after_the_moment_but_one_stay():
    order, starts = market(3, 1).order(1.0)
    assert starts == [0.0, 1.0]
    order, starts = market(3, 1, free_s=[7.0]).order(1.0)
    assert (len(order), starts) == (1, [7.0])


def test_a_config_begins_an_epoch_where_it_ended_the_last_one():
    order, starts = market(1, 2, epochs=2).order(NEVER)
    assert [rank for _, rank in order] in ([0, 1, 1, 0], [1, 0, 0, 1])
    assert starts == [0.0, 1.0, 2.0, 3.0]
    order, _ = market(1, 2, at=np.array([1])).order(NEVER)
    assert [rank for _, rank in order] == [1, 0]


def test_a_hop_takes_its_time_but_not_at_the_turn_of_an_epoch():
    _, starts = market(1, 2, epochs=2, hop_s=np.array([0.5])).order(NEVER)
    assert starts == [0.0, 1.5, 2.5, 4.0]


def test_a_rank_that_waits_takes_what_comes_first():
    """Config 1 comes to rank 1 while that waits for config 0, which is there later."""
    found = market(
        2,
        2,
        at=np.array([0, 0]),
        todo=np.array([[False, True], [False, True]]),
        stays=np.array([1, 1]),
        end_s=np.array([5.0, 2.0]),
    )
    order, starts = found.order(NEVER)
    assert order == [(1, 1), (0, 1)]
    assert starts == [2.0, 5.0]


def held(**given) -> list[tuple[int, int]]:
    """Return the order where config 1, with most to do, comes to rank 0 half a second later."""
    values = {
        "stay_s": np.ones((2, 2)),
        "free_s": [0.0, NEVER],
        "end_s": np.array([0.0, 0.5]),
        "at": np.array([1, 1]),
        "todo": np.array([[True, False], [True, False]]),
        "stays": np.array([1, 1]),
        "then_s": np.array([0.0, 9.0]),
    }
    return market(2, 2, **(values | given)).order(NEVER)[0]


def test_a_rank_waits_for_a_critical_config():
    assert held() == [(1, 0), (0, 0)]


def test_what_ends_before_a_critical_config_comes_goes_first():
    assert held(stay_s=np.array([[0.5, 1.0], [1.0, 1.0]])) == [(0, 0), (1, 0)]


def test_no_rank_waits_for_a_config_that_is_not_critical():
    assert held(then_s=np.array([9.0, 9.0])) == [(0, 0), (1, 0)]


def test_no_rank_waits_for_a_config_that_another_one_takes():
    todo = np.array([[True, False, False], [True, True, False]])
    values = {"todo": todo, "at": np.array([2, 2]), "stay_s": np.ones((2, 3))}
    assert held(free_s=[0.0, 0.25, NEVER], **values) == [(0, 0), (1, 1)]
    assert held(free_s=[0.0, 0.75, NEVER], **values) == [(1, 0), (0, 0)]


def test_no_rank_waits_while_configs_are_more_than_ranks():
    found = market(
        3,
        2,
        end_s=np.array([0.0, 0.5, 9.0]),
        at=np.array([1, 1, 1]),
        todo=np.array([[True, False]] * 3),
        stays=np.ones(3, np.int64),
        then_s=np.array([0.0, 9.0, 0.0]),
    )
    assert found.order(NEVER)[0][0] == (0, 0)


def test_no_config_may_be_planned():
    found = market(2, 2, stays=np.zeros(2, np.int64))
    assert found.order(NEVER) == ([], [])


def test_the_bound():
    assert market(4, 2).bound_s == 4.0
    assert market(2, 2, free_s=[1.0, 3.0], eval_s=np.ones(2)).bound_s == 5.0


SECONDS = (0.0, 0.0, 1.0, 1.0, 2.0, 2.0**-20, 2.0**20, 0.125, 0.5)
"""Their sums are exact."""


@st.composite
def markets(draw: st.DrawFn) -> dict[str, object]:
    """Draw what a market may be given, with many ties."""
    configs, ranks = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    seconds = np.array(SECONDS if draw(st.booleans()) else SECONDS[:5])
    todo = np.ones((configs, ranks), np.bool_)
    at = np.full(configs, -1)
    stays = np.zeros(configs, np.int64)
    for config in range(configs):
        made = int(rng.integers(0, ranks))
        where = rng.permutation(ranks)[:made]
        todo[config, where] = False
        at[config] = where[-1] if made else rng.integers(-1, ranks)
        stays[config] = int(rng.integers(0, 4)) * ranks + ranks - made
        if rng.random() < 0.2:
            stays[config] = rng.integers(0, 2)  # a first stay alone, or none
    return {
        "free_s": rng.choice(seconds, ranks).tolist(),
        "stay_s": rng.choice(seconds, (configs, ranks)),
        "hop_s": rng.choice(seconds, configs),
        "eval_s": rng.choice(seconds, configs),
        "end_s": rng.choice(seconds, configs),
        "at": at,
        "todo": todo,
        "stays": stays,
        "then_s": rng.integers(0, 3, configs).astype(np.float64),
    }


def copied(given: dict[str, object]) -> Market:
    own = {k: v.copy() if isinstance(v, np.ndarray) else list(v) for k, v in given.items()}
    return Market(**own)


class Replay:
    """The same stays once more, each looked at."""

    def __init__(self, given: dict[str, object]) -> None:
        own = {k: np.array(v) for k, v in given.items()}
        self.stay_s, self.hop_s, self.eval_s = own["stay_s"], own["hop_s"], own["eval_s"]
        self.at, self.todo, self.stays = own["at"], own["todo"], own["stays"]
        self.free_s, self.then_s = own["free_s"].astype(float), own["then_s"]
        self.ready_s = own["end_s"] + np.where(self.todo.all(axis=1), 0.0, self.hop_s)

    def may(self, config: int, rank: int) -> bool:
        begins = self.todo[config].all() and self.at[config] >= 0
        here = self.at[config] == rank if begins else self.todo[config, rank]
        return bool(self.stays[config] > 0 and here)

    def work_s(self, config: int) -> float:
        """Return the seconds that a config has to do, with what may follow."""
        todo = self.todo[config]
        epoch_s = self.stay_s[config].sum() + self.eval_s[config]
        later = max(0.0, (self.stays[config] - todo.sum()) / len(todo)) * epoch_s
        known = (todo * self.stay_s[config]).sum() + self.eval_s[config]
        return float(known + later + self.then_s[config])

    def ready_at(self, rank: int, start: float) -> list[int]:
        """Return the configs that a rank may take at a moment."""
        ids = range(len(self.at))
        return [c for c in ids if self.may(c, rank) and self.ready_s[c] <= start]

    def may_hold(self, rank: int, start: float) -> bool:
        """Whether a rank may wait for a critical config that comes later."""
        if np.count_nonzero(self.stays > 0) > len(self.free_s):
            return False
        least_s = min(map(self.work_s, self.ready_at(rank, start)))
        return any(
            self.may(c, rank) and self.ready_s[c] > start and self.work_s(c) > CRITICAL * least_s
            for c in range(len(self.at))
        )

    def take(self, config: int, rank: int, start: float) -> None:
        end = start + self.stay_s[config, rank]
        self.todo[config, rank] = False
        self.at[config] = rank
        self.stays[config] -= 1
        if self.todo[config].any():
            self.ready_s[config] = end + self.hop_s[config]
        else:
            end += self.eval_s[config]
            self.todo[config] = True
            self.ready_s[config] = end
        self.free_s[rank] = end


@settings(deadline=None, max_examples=300)
@given(markets(), st.sampled_from((0.0, 0.5, 2.0, 1e7, NEVER)))
def test_no_rank_idles_while_it_may_take_a_config_but_for_a_critical_one(given, until_s):
    order, starts = copied(given).order(until_s)
    replay = Replay(given)
    free_s = list(replay.free_s)
    assert starts == sorted(starts)
    assert all(start <= until_s for start in starts[1:])
    may_start = any(replay.may(c, r) for c in range(len(replay.at)) for r in range(len(free_s)))
    assert bool(order) == may_start
    for (config, rank), start in zip(order, starts, strict=True):
        ready = replay.ready_at(rank, start)
        assert config in ready
        assert start >= replay.free_s[rank]
        slack_s = 1e-9 * (1.0 + max(map(replay.work_s, ready)))
        is_first = replay.work_s(config) >= max(map(replay.work_s, ready)) - slack_s
        earliest_s = min(max(replay.ready_s[c], replay.free_s[rank]) for c in ready)
        if not is_first or start != earliest_s:
            assert replay.may_hold(rank, earliest_s), "a rank has idled"
        replay.take(config, rank, start)
    if until_s == NEVER:  # then all is made
        assert not any(replay.may(c, r) for c in range(len(replay.at)) for r in range(len(free_s)))
        assert not replay.stays.any()
    else:
        idle = [
            (c, r)
            for r in range(len(free_s))
            for c in range(len(replay.at))
            if replay.may(c, r) and max(replay.free_s[r], replay.ready_s[c]) <= until_s
        ]
        assert all(replay.may_hold(r, max(replay.free_s[r], replay.ready_s[c])) for c, r in idle), (
            "a stay that starts until the moment is left out"
        )
