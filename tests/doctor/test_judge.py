"""Facts that were made up, one trap each, and what is said of them."""

from __future__ import annotations

import re

import pytest

from mophpc.doctor.findings import Finding, Report, listed
from mophpc.doctor.judge import LOOKS, judge

WIRE = {
    "latency_s": 1e-4,
    "bytes_per_s": 5e9,
    "memcpy_bytes_per_s": 6e9,
    "hidden": 0.99,
    "hidden_alone": 0.2,
}
SOUND = {
    "rank": 0,
    "host": "node1",
    "python": "3.12.1",
    "cores": 8,
    "launcher": {"name": "Open MPI", "ranks": 2},
    "mpi": "Open MPI 5.0.11",
    "thread_level": "multiple",
    "free_disk_bytes": 10**11,
    "shm_bytes": 8 << 30,
    "environment": {},
    "gpus": ["H200"] * 2,
    "gpu_aware": "yes",
    "wire": WIRE,
}


def ranks(count: int = 2, **changes: object) -> list[dict]:
    """Return sound ranks of which the last one differs."""
    return [SOUND | {"rank": n} | (changes if n == count - 1 else {}) for n in range(count)]


def bad(facts: list[dict]) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.level != "ok"]


def test_of_sound_ranks_nothing_bad_is_said():
    assert bad(ranks()) == []
    topics = {finding.topic for finding in judge(ranks())}
    assert {"MPI", "threads", "versions", "host", "GPU", "GPU and MPI", "disk", "hops"} <= topics


@pytest.mark.parametrize(
    ("changes", "level", "topic", "found"),
    [
        ({"torch": "2.6"}, "problem", "versions", "torch differs: None on rank 0; 2.6 on rank 1"),
        ({"mpi": "MPICH 5"}, "problem", "versions", "mpi differs"),
        ({"cores": 1, "host": "n2"}, None, "", ""),
        ({"gpus": []}, "problem", "GPU", "rank 1: no GPU, where others have one"),
        ({"writable": False}, "warning", "disk", "rank 1: nothing can be written in the current"),
        ({"start_method": "fork"}, "note", "trap", "forked here, .* may corrupt or hang"),
        ({"start_method": "spawn"}, None, "", ""),
        ({"gpu_aware": "no: status -11"}, "note", "GPU and MPI", "rank 1: .* no: status -11"),
        ({"free_disk_bytes": 10**6}, "warning", "disk", "0.0 GB free"),
        ({"shm_bytes": 64 << 20}, "warning", "/dev/shm", "rank 1: 64 MB of shared memory or less"),
        (
            {"environment": {"PYTORCH_ALLOC_CONF": "a:1,expandable_segments:True"}},
            "warning",
            "trap",
            "PYTORCH_ALLOC_CONF has expandable_segments:True",
        ),
        (
            {"environment": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}},
            None,
            "",
            "",
        ),
        ({"environment": {"SLURM_GPUS_PER_TASK": "1"}}, "warning", "trap", "breaks CUDA IPC"),
        ({"environment": {"SLURM_GPU_BIND": "none"}}, None, "", ""),
        ({"environment": {"SLURM_TRES_PER_TASK": "cpu:4"}}, None, "", ""),
        (
            {"environment": {"SLURM_TRES_PER_TASK": "cpu:4,gres:gpu:1"}},
            "warning",
            "trap",
            "SLURM_TRES_PER_TASK",
        ),
        ({"wire": WIRE | {"bytes_per_s": 1e8}}, "note", "hops", "0.10 GB/s on the slowest rank"),
        ({"wire": WIRE | {"hidden": 0.5}}, "note", "overlap", "50% of a transfer is hidden"),
        ({"failed": {"cores": "OSError: no"}}, "warning", "probe", "rank 1: 'cores' could not"),
    ],
)
def test_each_trap_is_found_and_no_other(changes, level, topic, found):
    findings = bad(ranks(**changes))
    if level is None:
        assert findings == []
        return
    assert [(finding.level, finding.topic) for finding in findings] == [(level, topic)]
    assert re.search(found, findings[0].found)
    assert findings[0].advice


def test_more_ranks_than_cores_take_turns():
    (finding,) = bad([SOUND | {"cores": 2, "gpus": ["H200"] * 3}] * 3)
    assert finding.level == "warning"
    assert "2 cores for a rank, fewer than it has ranks" in finding.found


def test_threads_that_may_not_call_and_no_launcher():
    alone = [SOUND | {"launcher": None, "thread_level": "serialized", "wire": None}]
    assert [finding.topic for finding in bad(alone)] == ["threads", "launcher"]


def test_no_mpi_is_a_problem():
    report = Report([], judge([{key: v for key, v in SOUND.items() if key != "mpi"}]))
    assert report.has_problem


def test_facts_that_are_missing_break_nothing():
    findings = judge([{}])
    assert [finding for finding in findings if "failed" in finding.found] == []
    assert Report([{}], findings).text()


def test_a_look_that_fails_is_a_finding():
    findings = judge([SOUND | {"environment": 7}])
    assert [f.found[:13] for f in findings if f.topic == "doctor"] == ["traps failed:"]
    assert len(findings) >= len(LOOKS) - 2


def test_the_page_has_the_worst_last():
    findings = [
        Finding("problem", "a", "bad", "mend it"),
        Finding("ok", "long topic", "fine"),
    ]
    report = Report([], findings)
    assert report.text().splitlines() == [
        "ok       long topic  fine",
        "problem  a           bad",
        "                     -> mend it",
    ]
    assert report.record()["findings"][0]["advice"] == "mend it"


def test_many_numbers_are_cut():
    assert listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"


def test_ranks_that_share_a_gpu_are_said_with_their_binding():
    crowd = [facts | {"bound_gpu": n % 2, "local_rank": n} for n, facts in enumerate(ranks(4))]
    (found,) = bad(crowd)
    assert found.level == "note"
    assert "2 x H200 for 4 ranks: several ranks share one (by rank: 0, 1, 0, 1)" in found.found


def test_ranks_that_see_their_own_gpu_only_share_none():
    alone = [
        facts
        | {"gpus": ["H200"], "bound_gpu": 0, "local_rank": n}
        | {"environment": {"CUDA_VISIBLE_DEVICES": str(n)}}
        for n, facts in enumerate(ranks(4))
    ]
    assert bad(alone) == []
    for facts in alone:
        facts["environment"] = {"CUDA_VISIBLE_DEVICES": "0"}
    assert "several ranks share one" in bad(alone)[0].found


def test_the_page_has_a_row_per_rank_and_gaps_where_a_probe_failed():
    facts = ranks(3, wire=None, bound_gpu=1)
    lines = Report(facts, judge(facts)).text().splitlines()
    table = lines[lines.index("") + 1 :]
    assert " ".join(table[0].split()) == ("rank host cores GPU hop us hop GB/s copy GB/s hidden")
    assert table[1].split() == ["0", "node1", "8", "100", "5.00", "6.00", "99%"]
    assert table[3].split() == ["2", "node1", "8", "1:", "H200"]
    many = ranks(70)
    assert Report(many, judge(many)).text().endswith("and 6 more ranks; --json has them")
    one = [SOUND]
    assert "" not in Report(one, judge(one)).text().splitlines()


def test_of_an_mpi_that_does_not_match_nothing_more_is_said():
    alone = SOUND | {"mismatch": True, "mpi": None, "thread_level": None}
    assert not {"MPI", "threads"} & {finding.topic for finding in judge([alone])}
