"""Which device a process trains on, and that a GPU does what its stand-in does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from routes import TRAIN, hopped, kept, make_trainer

from mophpc.errors import LaunchError
from mophpc.train.batches import InMemory, Placing, batches
from mophpc.train.device import CPU, Device, Twin, choose_device, pattern

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def four_gpus(monkeypatch):
    """Let torch see four GPUs, of which nothing is asked but their number and their names."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda where: chosen.append(where.index))
    monkeypatch.setattr(torch.cuda, "Stream", lambda where: SimpleNamespace(device=where))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda where: SimpleNamespace(name="Some GPU", uuid=f"GPU-{where.index}"),
    )
    return chosen


@pytest.mark.parametrize(
    ("indices", "local_rank", "expected"),
    [([], 0, 0), ([], 3, 3), ([], 5, 1), ([2], 7, 2), ([0, 0, 1, 1], 2, 1), ([3, 1], 2, 3)],
)
def test_a_rank_takes_the_gpu_of_its_number_on_the_host(four_gpus, indices, local_rank, expected):
    for use in ("auto", "cuda"):
        device = choose_device(use, indices, local_rank)
        assert (device.kind, device.where) == ("cuda", torch.device("cuda", expected))
        assert (device.name, device.identity) == ("Some GPU", f"GPU-{expected}")
    assert four_gpus == [expected] * 2, "made current before MPI starts"


def test_a_gpu_that_is_not_there_is_named(four_gpus):
    with pytest.raises(LaunchError, match=r"names GPU 4, but this rank sees 4; allowed: 0 to 3"):
        choose_device("cuda", [0, 4], 1)


def test_the_cpu_is_taken_where_it_is_asked_for(four_gpus):
    assert choose_device("cpu", [], 0) is CPU
    assert four_gpus == []


def test_without_a_gpu_the_cpu_is_taken_or_the_lack_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", [], 0) is CPU
    with pytest.raises(LaunchError, match=r"device.use is 'cuda'.*sees no GPU.*--gpus-per-node"):
        choose_device("cuda", [], 0)


class OnDisk:
    """Rows that come in blocks, as those of a shard that does not fit into memory."""

    in_memory = False

    def __init__(self, fields: dict[str, torch.Tensor], block_rows: int) -> None:
        self._fields = fields
        self._block_rows = block_rows
        self.rows = len(fields["x"])
        self.nbytes = sum(field.nbytes for field in fields.values())

    def blocks(self, order, batch_size):
        step = self._block_rows // batch_size * batch_size
        for start in range(0, len(order), step):
            chosen = order[start : start + step]
            arrays = {name: field.numpy()[chosen] for name, field in self._fields.items()}
            yield arrays, np.arange(len(chosen))


class Loaded(OnDisk):
    in_memory = True

    def blocks(self, order, batch_size):
        yield {name: field.numpy() for name, field in self._fields.items()}, order


@pytest.mark.parametrize("delay_s", [0.0, 0.01])
@pytest.mark.parametrize("kind", [OnDisk, Loaded])
def test_batches_that_are_copied_to_a_device_are_the_same(kind, delay_s):
    rows = kind(TRAIN[0], 8)
    device = Device("twin", torch.device("cpu"), "stand-in", Twin(delay_s))
    order = np.random.default_rng(0).permutation(rows.rows)
    expected = list(batches(rows, order, 4))
    found = list(batches(rows, order, 4, device))
    assert [len(batch["x"]) for batch in found] == [4, 4, 4, 1]
    for own, other in zip(found, expected, strict=True):
        assert all(torch.equal(own[name], other[name]) for name in ("x", "y"))


def test_rows_go_to_the_device_while_they_fit():
    device = Device("twin", torch.device("cpu"), "stand-in", Twin())
    rows = Loaded(TRAIN[0], 8)
    placing = Placing(device, 2 * rows.nbytes)
    assert isinstance(placing.place(rows), InMemory)
    assert isinstance(placing.place(rows), InMemory)
    assert placing.place(rows) is rows
    on_disk = OnDisk(TRAIN[0], 8)
    assert Placing(device, 10 * rows.nbytes).place(on_disk) is on_disk
    assert Placing(CPU, 10 * rows.nbytes).place(rows) is rows


def test_a_pattern_has_no_two_equal_chunks():
    source, expected = pattern(Twin(0.01), 4096)
    assert np.array_equal(source.numpy(), expected)
    assert len({chunk.tobytes() for chunk in expected.reshape(-1, 8)}) == 512


@needs_gpu
@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "adagrad"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_every_visit_ends_in_the_same_bytes_with_and_without_hops(optimizer, precision):
    device = choose_device("cuda", [], 0)
    config = {"lr": 0.02, "optimizer": optimizer, "precision": precision}
    trainer, other = (make_trainer(config, device=device) for _ in range(2))
    for stay, hop in zip(kept(trainer), hopped(other), strict=True):
        assert stay[0] == hop[0]
        assert {p.device.type for p in hop[2].task.model.parameters()} == {"cuda"}


@needs_gpu
def test_copies_to_and_from_a_gpu_go_on_beside_its_work():
    memory = choose_device("cuda", [], 0).memory
    host = memory.pinned(1 << 20)
    host[:] = torch.arange(1 << 20, dtype=torch.int64).to(torch.uint8)
    there, copy = memory.copy_in(host)
    copy.wait()
    assert copy.test()
    there += 1
    back = memory.pinned(1 << 20)
    memory.copy_out(there, back).wait()
    assert torch.equal(back, host + 1)
