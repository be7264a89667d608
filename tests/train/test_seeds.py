"""The rules for order and randomness that anyone can follow without mophpc."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mophpc.train.batches import InMemory, batches
from mophpc.train.seeds import EVALUATION, VISIT, sample_order, seed_all, seed_generators

seeds = st.integers(0, 2**32 - 1)
small = st.integers(0, 5)


@given(seeds, small, small, st.integers(0, 50))
def test_the_order_of_a_visit_is_the_documented_one(seed, epoch, shard, rows):
    generator = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([seed, epoch, shard])),
    )
    expected = generator.permutation(rows)
    assert sample_order(seed, epoch, shard, rows).tolist() == expected.tolist()


def test_the_order_never_changes_with_a_version():
    assert sample_order(7, 1, 2, 8).tolist() == [3, 1, 2, 5, 6, 7, 0, 4]
    seed_generators(7, 1, 2, VISIT)
    assert torch.initial_seed() == 1578438007328945642


@given(seeds, small, small, st.sampled_from([VISIT, EVALUATION]))
def test_the_generators_are_seeded_as_documented(seed, epoch, shard, purpose):
    seed_generators(seed, epoch, shard, purpose)
    drawn = torch.rand(3), np.random.rand(3), random.random()
    words = np.random.SeedSequence([seed, epoch, shard, purpose]).generate_state(1, np.uint64)
    number = int(words[0]) & (2**63 - 1)
    assert torch.initial_seed() == number
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)
    assert torch.equal(drawn[0], torch.rand(3))
    assert (drawn[1] == np.random.rand(3)).all()
    assert drawn[2] == random.random()


def test_seeding_formats_no_tracebacks(monkeypatch):
    def fail(*_):
        raise AssertionError("slow")

    monkeypatch.setattr("traceback.format_stack", fail)
    seed_all(1)


def test_visits_and_evaluations_draw_differently():
    assert (VISIT, EVALUATION) == (1, 2)


class InBlocks:
    """Rows that come in blocks of whole batches, as a streamed shard gives them."""

    rows = 11

    def blocks(self, order, batch_size):
        for start in range(0, len(order), 2 * batch_size):
            part = order[start : start + 2 * batch_size]
            yield {"x": part[::-1].copy()}, np.arange(len(part))[::-1].copy()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 20])
@pytest.mark.parametrize("rows", [InMemory({"x": torch.arange(11)}), InBlocks()])
def test_batches_follow_the_order_and_the_last_is_short(rows, batch_size):
    order = sample_order(1, 0, 0, 11)
    found = [batch["x"].tolist() for batch in batches(rows, order, batch_size)]
    assert [n for batch in found for n in batch] == order.tolist()
    sizes = [len(batch) for batch in found]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= batch_size
