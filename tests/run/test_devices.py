"""Runs on devices with memory of their own, here with the stand-in for a GPU."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import pytest
import torch
from test_local_run import EQUAL, make_store, run

import mophpc
from mophpc import verify
from mophpc.errors import LaunchError
from mophpc.experiment import Device
from mophpc.files import read_lines
from mophpc.hop.collectives import Group
from mophpc.hop.local import LocalTransport, LocalWorld
from mophpc.run import devices, walking
from mophpc.run.devices import Bound, _crowding, agree_on_devices, bind_device, local_rank_of
from mophpc.train.device import CPU, Twin
from mophpc.train.device import Device as Found

HOST = socket.gethostname()


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path, 4)


class Notes:
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def gpu(identity: str, kind: str = "cuda", memory: Any = None) -> Found:
    return Found(kind, torch.device("cpu"), "Some GPU", memory or Twin(), identity)


def on_ranks(size: int, act: Any) -> list[Any]:
    """Return what `act(group, transport)` returns or raises on each rank."""
    world, found = LocalWorld(size), [None] * size

    def body(rank: int) -> None:
        transport = LocalTransport(world, rank)
        try:
            found[rank] = act(Group(transport), transport)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_states_are_the_same_on_a_device_with_memory_of_its_own(tmp_path, store):
    cpu = run(tmp_path / "cpu", store, 2, **EQUAL)
    for name, more in (
        ("staged", {}),
        ("two_buffers", {"buffers": 2}),
        ("rows_apart", {"memory_bytes": 0}),
        ("direct", {"direct": True}),
    ):
        device = Device(use="twin", **more)
        hop = mophpc.experiment.Hop(checksum=False)
        out = tmp_path / name
        results = run(out, store, 2, device=device, hop=hop, **EQUAL)
        assert results.configs == cpu.configs, name
        assert all(v.equal for v in verify.verify(out))
        visits = [e for e in read_lines(out / "events/rank-0000.jsonl") if e["kind"] == "visit"]
        assert all(visit["copy_s"] >= 0 for visit in visits)
    assert (tmp_path / "direct/results.csv").read_bytes() == (
        tmp_path / "cpu/results.csv"
    ).read_bytes()


def test_a_config_that_diverges_is_found_when_losses_are_looked_at(tmp_path, store):
    """Its state is that of sequential training which looks as often."""
    space = {"lr": [0.01, 1e30], "width": [4, 6]}
    results = run(tmp_path / "run", store, 2, device=Device(use="twin"), space=space, **EQUAL)
    assert [row.status for row in results.configs] == ["done", "done", "diverged", "diverged"]
    assert all(v.equal for v in verify.verify(tmp_path / "run"))


def test_the_kind_that_was_found_is_written_down(tmp_path, store):
    run(tmp_path / "run", store, 1, device=Device(use="twin"))
    again = mophpc.experiment.load_experiment(tmp_path / "run/experiment.toml")
    assert again.device.use == "twin"
    run(tmp_path / "auto", store, 1)
    again = mophpc.experiment.load_experiment(tmp_path / "auto/experiment.toml")
    assert again.device.use in ("cpu", "cuda")


def test_a_rank_without_a_gpu_ends_the_run_on_all_ranks(tmp_path, store):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(LaunchError, match="this rank sees no GPU"):
        run(tmp_path / "run", store, 2, device=Device(use="cuda"))
    assert not (tmp_path / "run").exists()


def test_ranks_that_share_a_gpu_are_named_and_share_its_memory():
    ids = ["a", "b", "a", "b"]
    views = [Notes() for _ in ids]

    def act(group: Group, _: Any) -> Bound:
        return agree_on_devices(group, lambda: gpu(ids[group.rank]), views[group.rank])

    bound = on_ranks(4, act)
    assert [b.sharing for b in bound] == [2] * 4
    assert views[0].said == [
        "training on Some GPU: 2 for 4 ranks",
        "note: ranks that share a GPU, and take turns on it: ranks 0, 2; ranks 1, 3",
    ]
    assert not any(view.said for view in views[1:])
    memory = Twin(capacity_bytes=1000)
    assert Bound(gpu("a", memory=memory), 2).placing(None)._left == 250
    assert Bound(gpu("a", memory=memory), 2).placing(70)._left == 70


def test_ranks_on_devices_of_different_kinds_are_named():
    chosen = [gpu("a"), CPU, gpu("b")]

    def act(group: Group, _: Any) -> Bound:
        return agree_on_devices(group, lambda: chosen[group.rank], Notes())

    found = on_ranks(3, act)
    for error in found:
        assert isinstance(error, LaunchError)
        assert "cuda on ranks 0, 2 and cpu on rank 1" in str(error)


def test_the_cpu_is_nothing_to_speak_of():
    view = Notes()
    found = on_ranks(2, lambda group, _: agree_on_devices(group, lambda: CPU, view))
    assert [b.device for b in found] == [CPU, CPU]
    assert view.said == []


@pytest.mark.parametrize(
    ("answers", "memory", "expected", "said"),
    [
        (["yes", "yes"], Twin, True, "states are sent from device memory, as tried"),
        (["yes", "no: it crashed"], Twin, False, "as on rank 1, it crashed"),
        (["yes", "yes"], None, False, "training is on the CPU"),
    ],
)
def test_states_are_sent_directly_only_where_that_was_tried(answers, memory, expected, said):
    views = [Notes(), Notes()]

    def act(group: Group, transport: LocalTransport) -> bool:
        transport.takes_devices = True
        bound = Bound(gpu("a", memory=memory()) if memory else CPU)
        return bound.sends_directly(
            transport, group, views[group.rank], probe=lambda index: answers[group.rank]
        )

    assert on_ranks(2, act) == [expected, expected]
    assert said in views[0].said[0]


def test_wrong_bytes_are_found_before_a_state_is_sent(monkeypatch):
    real = devices.pattern

    def wrong(memory: Any, nbytes: int) -> Any:
        source, expected = real(memory, nbytes)
        source[100] += 1
        return source, expected

    monkeypatch.setattr(devices, "pattern", wrong)
    view = Notes()

    def act(group: Group, transport: LocalTransport) -> bool:
        transport.takes_devices = True
        return Bound(gpu("a")).sends_directly(transport, group, view, probe=lambda index: "yes")

    assert on_ranks(2, act) == [False, False]
    assert "other bytes arrived" in view.said[0]


def test_the_number_on_the_host_comes_from_the_launcher_before_mpi_is_there():
    def never() -> int:
        raise AssertionError("MPI was started")

    for variable in ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"):
        assert local_rank_of({variable: "3"}, never) == 3
    assert local_rank_of({}, never) == 0
    assert local_rank_of({"PMI_SIZE": "1"}, never) == 0
    assert local_rank_of({"PMI_SIZE": "8"}, lambda: 5) == 5


def test_ranks_know_how_many_of_their_host_share_a_core():
    """Launchers may bind each rank to cores of its own, or leave all to all."""
    ranks = [("a", "3"), ("a", "3"), ("a", "3"), ("b", "1"), ("b", "2"), ("c", "f0")]
    assert _crowding(ranks) == [1.5, 1.5, 1.5, 1.0, 1.0, 0.25]


def test_the_cores_of_this_host_are_counted_once_for_all_ranks():
    found = on_ranks(3, lambda group, _: agree_on_devices(group, lambda: CPU, Notes()))
    cores = len(os.sched_getaffinity(0))
    assert [bound.crowding for bound in found] == [3 / cores] * 3


def test_a_run_tells_who_looks_after_messages_how_many_ranks_share_a_core(
    tmp_path, store, monkeypatch
):
    found = []

    class Told(walking.Progress):
        def __init__(self, *args: Any, crowding: float, **options: Any) -> None:
            found.append(crowding)
            super().__init__(*args, crowding=crowding, **options)

    monkeypatch.setattr(walking, "Progress", Told)
    run(tmp_path / "run", store, 2, **EQUAL)
    assert found == [2 / len(os.sched_getaffinity(0))] * 2


def test_a_failure_to_choose_is_told_when_all_ranks_listen():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    chosen = bind_device(Device(use="cuda"), 0)
    with pytest.raises(LaunchError):
        chosen()
    assert bind_device(Device(use="cpu"), 0)() is CPU


def test_threads_of_one_process_do_not_send_from_a_gpu():
    view = Notes()

    def act(group: Group, transport: LocalTransport) -> bool:
        return Bound(gpu("a")).sends_directly(transport, group, view, probe=lambda index: "yes")

    assert on_ranks(2, act) == [False, False]
    assert "its ranks are threads of one process" in view.said[0]


def test_the_self_test_has_the_users_settings_and_nothing_of_the_launcher():
    from mophpc.hop.aware import _is_kept

    kept = {"OMPI_MCA_pml", "OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_opal_cuda_support"}
    lost = {"OMPI_MCA_ess", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "pml"}
    assert {name for name in kept | lost if _is_kept(name)} == kept
