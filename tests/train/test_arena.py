"""Tensors that alias one run of bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from mophpc.errors import StateError
from mophpc.train.arena import ALIGNMENT, Layout, allocate, extent, lay_out, views


def settled(tensors):
    """Return the views of an arena that holds the tensors."""
    layout = lay_out(tensors)
    arena = allocate(layout.nbytes)
    arena[:] = 0xEE
    found = views(layout, arena)
    for name, tensor in tensors.items():
        found[name].copy_(tensor)
    return layout, arena, found


KINDS = {
    "vector": torch.arange(5.0),
    "number": torch.tensor(3),
    "flag": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
    "half": torch.arange(7, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "every_other": torch.arange(10.0)[::2],
    "complex": torch.randn(3, dtype=torch.complex64),
    "double": torch.randn(2, 2, dtype=torch.float64),
}


def test_every_tensor_has_its_own_aligned_place_and_keeps_its_strides():
    layout, arena, found = settled(KINDS)
    assert arena.ctypes.data % ALIGNMENT == 0
    assert layout.nbytes == len(arena)
    assert layout.nbytes % ALIGNMENT == 0
    end = 0
    for slot in layout.slots:
        tensor = KINDS[slot.name]
        assert slot.offset % ALIGNMENT == 0
        assert slot.offset >= end
        end = slot.offset + extent(slot.shape, slot.stride) * tensor.element_size()
        assert slot.fits(found[slot.name])
        assert found[slot.name].stride() == tensor.stride()
        assert torch.equal(found[slot.name], tensor)
    assert end <= layout.nbytes < end + ALIGNMENT


def test_an_arena_copied_elsewhere_holds_the_same_tensors():
    layout, arena, _ = settled(KINDS)
    there = arena.copy()
    arena[:] = 0
    for name, tensor in views(layout, there).items():
        assert torch.equal(tensor, KINDS[name])


def test_a_layout_travels_as_json():
    layout, *_ = settled(KINDS)
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_a_slot_fits_no_other_dtype_shape_or_stride():
    slot = lay_out({"w": torch.zeros(2, 3)}).slots[0]
    assert slot.fits(torch.ones(2, 3))
    for other in (torch.zeros(3, 2), torch.zeros(3, 2).t(), torch.zeros(2, 3).double()):
        assert not slot.fits(other)


@pytest.mark.parametrize("tie", [lambda w: w, lambda w: w.t(), lambda w: w[1:], lambda w: w[:, 1]])
def test_tied_tensors_share_their_bytes(tie):
    weight = torch.arange(12.0).view(3, 4)
    layout, _, found = settled({"w": weight, "other": torch.zeros(2), "tied": tie(weight)})
    found["w"].mul_(3)
    assert torch.equal(found["tied"], tie(weight * 3))
    found["tied"].zero_()
    tie(weight).zero_()
    assert torch.equal(found["w"] / 3, weight)
    assert layout.nbytes == 2 * ALIGNMENT


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20), st.integers(1, 3)), min_size=1))
def test_whatever_shares_bytes_before_shares_them_after(cuts):
    base = torch.arange(100.0)
    tensors = {f"t{i}": base[a : a + n * s : s] for i, (a, n, s) in enumerate(cuts)}
    _, _, found = settled(tensors)
    for number, name in enumerate(tensors):
        tensors[name].fill_(-number)
        found[name].fill_(-number)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)


def test_neighbours_in_one_storage_do_not_share():
    base = torch.arange(8.0)
    layout, *_ = settled({"a": base[:4], "b": base[4:]})
    assert [slot.offset for slot in layout.slots] == [0, ALIGNMENT]


def test_an_update_in_place_does_not_break_the_backward_of_another():
    tensors = {"weight": torch.randn(4, 4), "mean": torch.zeros(4), "var": torch.ones(4)}
    tensors["seen"] = torch.tensor(0)
    _, _, found = settled(tensors)
    weight = found["weight"].requires_grad_()
    x = torch.randn(6, 4, requires_grad=True)
    out = functional.batch_norm(x @ weight, found["mean"], found["var"], training=True)
    found["seen"].add_(1)  # as BatchNorm counts its batches, with the weight saved for backward
    out.square().sum().backward()
    assert x.grad is not None
    assert weight.grad is not None


def test_absent_tensors_are_left_out():
    layout, arena, _ = settled({"a": torch.ones(2), "b": torch.ones(2)})
    assert set(views(layout, arena, frozenset({"a"}))) == {"b"}


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"]
)
def test_a_tensor_without_dense_bytes_is_refused_by_name(tensor):
    with pytest.raises(StateError, match=r"tensor 'model\.w' is sparse, quantized or without data"):
        lay_out({"model.w": tensor})


def test_a_state_of_nothing_still_has_an_arena():
    layout = lay_out({})
    assert layout.nbytes == ALIGNMENT
    assert views(layout, np.zeros(ALIGNMENT, np.uint8)) == {}
