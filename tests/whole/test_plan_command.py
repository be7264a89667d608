"""`mophpc plan` and `mophpc simulate`: of experiments, and of any sizes and costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from whole_testing import command, complaint

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]

MIXED = {
    "format": 1,
    "configs": {
        "small": {"visit_s": 1, "eval_s": 0.5, "state_nbytes": 1000},
        "middle": {"visit_s": [2, 3], "state_nbytes": 1000},
        "large": {"visit_s": 6.0, "state_nbytes": 3000},
    },
    "link": {"latency_s": 0.25, "bandwidth_bytes_per_s": 4000},
}


@pytest.fixture
def write_costs(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a costs file."""

    def write(costs: Any = MIXED) -> Path:
        path = tmp_path / "costs.json"
        path.write_text(json.dumps(costs))
        return path

    return write


def record(capsys: Capture, *words: object) -> dict[str, Any]:
    """Run a command that prints JSON."""
    status, out, err = command(capsys, *words, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_plan_of_an_experiment(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    toml, picture = write_experiment(), tmp_path / "plan.svg"
    status, out, _ = command(capsys, "plan", toml, "--ranks", 4, "--gantt", picture)
    assert status == 0
    for expected in (
        "4 configs, 4 shards, 4 ranks, 2 epochs: 32 visits; costs: equal",
        "policy balanced",
        "rank 3 (shard 3)",
        "3 = c003-width=8,lr=0.05",
        "makespan  8 visits (lower bound 8, ratio 1.000)",
        "moved",
        "costs are taken as equal here; a pilot measures them when a run begins",
    ):
        assert expected in out
    assert picture.read_text().startswith("<svg")
    found = record(capsys, "plan", toml, "--ranks", 2, "--epochs", 3, "--policy", "round-robin")
    assert (found["num_ranks"], found["num_epochs"]) == (2, 3)
    assert found["policy"] == "round-robin"
    assert min(found["state_nbytes"]) > 0


def test_costs_of_an_experiment(capsys: Capture, write_experiment: Write, tmp_path: Path) -> None:
    values = [(width, lr) for width in (4, 8) for lr in (0.01, 0.05)]
    names = [f"c00{i}-width={width},lr={lr}" for i, (width, lr) in enumerate(values)]
    costs = {"configs": {name: {"seconds_per_row": 0.5} for name in names}}
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    toml = write_experiment()
    toml.write_text(toml.read_text() + "[schedule]\ncosts = 'costs.json'\n")
    for words in (["plan", toml], ["plan", toml, "--costs", tmp_path / "costs.json"]):
        found = record(capsys, *words, "--ranks", 4)
        assert (found["unit"], found["makespan"]) == ("s", 2 * 4 * 18.0)  # 36 rows a shard
        assert found["policy"] == "balanced"
    found = record(capsys, "plan", toml, "--ranks", 4, "--costs", "equal")
    assert (found["unit"], found["makespan"], found["policy"]) == ("visits", 8.0, "round-robin")
    found = record(
        capsys, "plan", toml, "--ranks", 4, "--bandwidth", 1e6, "--state-bytes", 2_000_000
    )
    assert found["lower_bound"] == 2 * (4 * 18 + 3 * 2)
    del costs["configs"][names[2]]
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    status, _, err = command(capsys, "plan", toml, "--ranks", 4)
    assert status == 2
    assert f"there are no costs of config '{names[2]}'" in complaint(err)


def test_plan_of_sizes_compares_all_policies(capsys: Capture) -> None:
    status, out, _ = command(capsys, "plan", "--configs", 6, "--ranks", 3, "--epochs", 1)
    assert status == 0
    assert out.splitlines()[2:7] == [
        "policy       makespan [visits]  idle  ratio to bound  hops  arenas",
        "round-robin                  6  0.0%           1.000    12       4",
        "balanced                     6  0.0%           1.000    12       6",
        "random                       6  0.0%           1.000    12       4",
        "",
    ]
    assert "rank 2 (shard 2) 2 3 4 5 0 1" in out
    assert "moved" not in out
    found = record(capsys, "plan", "--configs", 6, "--ranks", 3, "--policy", "random", "--seed", 4)
    assert [rating["policy"] for rating in found["policies"]] == ["random"]
    other = record(capsys, "plan", "--configs", 6, "--ranks", 3, "--policy", "random", "--seed", 5)
    assert found["digest"] != other["digest"]


def test_plan_of_a_costs_file(capsys: Capture, write_costs: Write) -> None:
    found = record(capsys, "plan", "--ranks", 2, "--costs", write_costs(), "--epochs", 3)
    assert found["configs"] == ["small", "middle", "large"]
    # The largest config: 2 visits of 6 s and a hop of 1 s per epoch.
    assert (found["lower_bound"], found["makespan"], found["unit"]) == (39.0, 39.0, "s")
    assert found["bytes_moved"] == 3 * 5000
    assert {rating["policy"] for rating in found["policies"]} == {
        "balanced",
        "random",
        "round-robin",
    }
    assert found["policy"] == min(found["policies"], key=lambda one: one["makespan_s"])["policy"]
    faster = ["--bandwidth", 12000, "--state-bytes", 6000]
    found = record(capsys, "plan", "--ranks", 2, "--costs", write_costs(), "--epochs", 1, *faster)
    assert found["lower_bound"] == 12.75
    _, out, _ = command(capsys, "plan", "--ranks", 2, "--costs", write_costs())
    assert "every visit is one step, and --gantt draws its real length" in out
    assert "0 = small" in out


def test_a_faster_rank_owns_more_shards(capsys: Capture, write_costs: Write) -> None:
    configs = {name: {"seconds_per_row": 0.5} for name in "abc"}
    costs = write_costs({"configs": configs, "rank_factors": [3.0, 1.0]})
    words = ["--costs", costs, "--rows", 2, "--shards", 4, "--epochs", 1]
    found = record(capsys, "plan", "--ranks", 2, *words)
    assert [found["owners"].count(rank) for rank in (0, 1)] == [1, 3]
    assert found["lower_bound"] == 9.0
    other = record(capsys, "plan", "--ranks", 4, *words)
    assert other["owners"] == [0, 1, 2, 3]
    assert other["notes"][0].startswith("the costs file has speeds of 2 ranks, and here are 4")


def test_seconds_of_a_visit_and_bandwidth(capsys: Capture) -> None:
    sizes = ["--configs", 2, "--ranks", 2, "--epochs", 1]
    found = record(capsys, "plan", *sizes, "--costs", 2.5)
    assert (found["makespan"], found["unit"], found["notes"]) == (5.0, "s", [])
    hops = ["--bandwidth", 100, "--state-bytes", 50]
    found = record(capsys, "plan", *sizes, "--costs", 2.5, *hops)
    assert (found["makespan"], found["lower_bound"]) == (5.5, 5.5)
    found = record(capsys, "plan", *sizes, *hops)
    assert found["makespan"] == 2.5
    assert found["notes"] == ["hops are timed as if a visit took 1 s; --costs says what it takes"]


def test_costs_of_nothing(capsys: Capture, write_costs: Write) -> None:
    costs = write_costs({"configs": {"a": {"visit_s": 0}, "b": {"visit_s": 0}}})
    found = record(capsys, "plan", "--ranks", 2, "--costs", costs)
    assert (found["makespan"], found["ratio"]) == (0.0, None)
    status, out, _ = command(capsys, "plan", "--ranks", 2, "--costs", costs)
    assert (status, "makespan  0 s\n" in out) == (0, True)
    status, _, err = command(capsys, "simulate", "--ranks", 2, "--costs", costs)
    assert status == 2
    assert "all costs are 0" in complaint(err)


@pytest.mark.parametrize("name", ["plan", "simulate"])
def test_fewer_configs_than_ranks(capsys: Capture, name: str) -> None:
    words = [name, "--configs", 3, "--ranks", 4, "--epochs", 1]
    status, out, _ = command(capsys, *words, *(["--seeds", 1] if name == "simulate" else []))
    assert status == 0
    assert "warning: with 3 configs on 4 ranks 25% of the ranks' time is idle" in out
    assert "4 configs or more, or 3 ranks or fewer, would fill it" in out


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_pictures(capsys: Capture, tmp_path: Path, write_costs: Write, suffix: str) -> None:
    picture = tmp_path / f"plan{suffix}"
    words = ["plan", "--ranks", 2, "--costs", write_costs(), "--gantt", picture]
    assert command(capsys, *words)[0] == 0
    begins = {".png": b"\x89PNG", ".svg": b"<svg", ".html": b"<!DOCTYPE html>"}
    assert picture.read_bytes().startswith(begins[suffix])


def test_simulate(capsys: Capture, write_costs: Write) -> None:
    sizes = ["--configs", 6, "--ranks", 3, "--seeds", 3]
    status, out, err = command(capsys, "simulate", *sizes)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "6 configs, 3 shards, 3 ranks, 2 epochs: 36 visits; costs: equal"
    assert "3 realities that differ from these costs: noise 0.2, jitter 0.03" in lines[1]
    assert lines[3].split() == ["schedule", "mean", "worst", "renewals", "makespan", "[visits]"]
    assert [line.split("  ")[0] for line in lines[4:]] == [
        "lock-step rotation",
        "randomized greedy",
        "dynamic longest remaining first",
        "balanced, planned once",
        "balanced, renewed",
    ]
    found = record(capsys, "simulate", *sizes)
    assert found == record(capsys, "simulate", *sizes)
    assert all(1.0 - 1e-9 <= row["mean"] <= row["worst"] for row in found["rows"])
    found = record(capsys, "simulate", *sizes, "--noise", 0, "--jitter", 0)
    assert [row["worst"] for row in found["rows"]][-2:] == pytest.approx([1.0, 1.0])
    assert [row["makespan"] for row in found["rows"]][-2:] == pytest.approx([12.0, 12.0])
    assert found["lower_bound"] == pytest.approx(12.0)
    found = record(capsys, "simulate", "--ranks", 2, "--costs", write_costs(), "--seeds", 1)
    assert (found["unit"], found["num_configs"]) == ("s", 3)


def test_simulate_without_renewals(capsys: Capture) -> None:
    sizes = ["--configs", 6, "--ranks", 3, "--seeds", 2, "--costs", 2]
    every = record(capsys, "simulate", *sizes)["rows"]
    assert record(capsys, "simulate", *sizes, "--no-renewal")["rows"] == every[:-1]
    status, out, _ = command(capsys, "simulate", *sizes, "--no-renewal")
    assert (status, out.splitlines()[3].split()[-2:]) == (0, ["makespan", "[s]"])
    many = ["simulate", "--configs", 30_000, "--ranks", 40, "--epochs", 1]
    status, _, err = command(capsys, *many, "--no-renewal")
    assert (status, "at most 1000000 can be simulated" in complaint(err)) == (2, True)
    assert "or --no-renewal with up to 1000000" in complaint(command(capsys, *many)[2])


def test_hops_lengthen_what_is_simulated(capsys: Capture) -> None:
    words = ["simulate", "--configs", 2, "--ranks", 2, "--epochs", 1, "--costs", 8, "--seeds", 1]
    words += ["--noise", 0, "--jitter", 0, "--state-bytes", 100]
    slow, fast = (
        record(capsys, *words, "--bandwidth", bandwidth)["rows"][-1]["makespan"]
        for bandwidth in (100, 1e9)
    )
    assert (slow, fast) == pytest.approx((17.0, 16.0))


def test_simulate_an_experiment(capsys: Capture, write_experiment: Write) -> None:
    found = record(capsys, "simulate", write_experiment(), "--ranks", 2, "--seeds", 1)
    assert (found["num_configs"], found["num_shards"], found["num_epochs"]) == (4, 4, 2)
    assert found["notes"] == [
        "costs are taken as equal here; a pilot measures them when a run begins"
    ]


def test_realities_in_several_processes(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["simulate", "--configs", 4, "--ranks", 2, "--epochs", 1, "--seeds", 3]
    alone = record(capsys, *words)
    monkeypatch.setattr("mophpc.simulation._WORTH_PROCESSES_S", 0.0)
    monkeypatch.setattr("mophpc.simulation._cores", lambda: 2)
    assert record(capsys, *words) == alone


WRONG = [
    (["plan", "--ranks", 4], "give an EXPERIMENT, --configs N, or --costs with a costs file"),
    (["plan", "--configs", 4], "Missing option '--ranks'"),
    (["plan", "--configs", 4, "--ranks", 0], "greater than or equal to 1"),
    (["plan", "--configs", 4, "--ranks", 3, "--shards", 2], "--ranks is 3 and --shards is 2"),
    (["plan", "--configs", 4, "--ranks", 2, "--policy", "best"], "allowed: balanced, random, "),
    (
        ["plan", "--configs", 4, "--ranks", 2, "--costs", "no.json"],
        "costs file 'no.json' does not exist",
    ),
    (["plan", "--configs", 4, "--ranks", 2, "--costs", "-1"], "--costs is '-1'; allowed: 'equal'"),
    (["plan", "--configs", 4, "--ranks", 2, "--costs", "nan"], "--costs is 'nan'; allowed: "),
    (["plan", "--configs", 4, "--ranks", 2, "--bandwidth", "9"], "say it with --state-bytes"),
    (["plan", "--configs", 4, "--ranks", 2, "--bandwidth", "nan"], "--bandwidth is nan; allowed: "),
    (["plan", "--configs", 4, "--ranks", 2, "--rows", 9], "--rows is for costs per row"),
    (["plan", "--configs", 4, "--ranks", 2, "--gantt", "a.pdf"], "ends in .png, .svg, .html"),
    (["plan", "--configs", 4, "--ranks", 2, "--gantt", "no/a.png"], "cannot write the picture"),
    (["plan", "--configs", 100_000, "--ranks", 2], "--configs is 100000; at most 32768"),
    (["plan", "--configs", 9, "--ranks", 10**12], "at most 10000000 can be planned, so take fewer"),
    (["plan", "--configs", 1, "--ranks", 10**6], "1000000 ranks are too many to plan for; at most"),
    (["simulate", "--configs", 1, "--ranks", 9000], "9000 ranks are too many to plan for; at most"),
    (["run", "a.toml", "--out", "a", "--replay", "p", "--costs", "equal"], "plan; leave one out"),
    (["plan", "no.toml", "--ranks", 2], "experiment file 'no.toml' does not exist"),
    (["simulate", "--ranks", 4], "give an EXPERIMENT, --configs N, or --costs with a costs file"),
    (["simulate", "--configs", 4, "--ranks", 2, "--noise", "-0.1"], "--noise is -0.1; allowed: 0"),
    (["simulate", "--configs", 4, "--ranks", 2, "--noise", "inf"], "--noise is inf; allowed: 0"),
    (["simulate", "--configs", 4, "--ranks", 2, "--jitter", "9"], "--jitter is 9; allowed: 0 to 3"),
    (["simulate", "--configs", 4, "--ranks", 2, "--seeds", 0], "greater than or equal to 1"),
    (["simulate", "--configs", 30_000, "--ranks", 2], "at most 100000 can be simulated"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG)
def test_wrong_words(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[object],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = command(capsys, *words)
    assert (status, out) == (2, "")
    assert sentence in complaint(err)


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ('method = "nowhere.py:Mine"', "there is no file '"),
        ('method = "mine.py:Other"', "has no function 'Other'; it has Mine"),
        ('method = "mine.py:Mine"\noptions = {a = 1}', "raised KeyError: 'b'"),
        ('method = "mine.py:Mine"\noptions = {b = 1}', "whose configs come one after another"),
    ],
)
def test_a_method_is_checked_before_it_is_said_that_its_configs_are_not_known(
    capsys: Capture, write_experiment: Write, tmp_path: Path, search: str, sentence: str
) -> None:
    toml = write_experiment()
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, brief): brief.options['b']\n"
        "    def ask(self, room): return []\n"
        "    def tell(self, result): return []\n"
    )
    toml.write_text(f"{toml.read_text()}\n[search]\n{search}\n")
    status, _, err = command(capsys, "plan", toml, "--ranks", 2)
    assert status == 2
    assert sentence in complaint(err)


WRONG_COSTS = [
    ({"a": {"seconds_per_row": 1}}, [], "costs are per row; say with --rows how many"),
    ({"a": {"visit_s": 1}}, ["--configs", 2], "--configs is 2, but the costs file has 1"),
    ({"a": {"visit_s": [1, 2, 3]}}, [], "visit_s of config a has 3 numbers; there are 2 shards"),
    ({"a": {"visit_s": 1}}, ["--bandwidth", 9], "say it with --state-bytes"),
    ({}, [], "allowed: at least 1 entry"),
]


@pytest.mark.parametrize("name", ["plan", "simulate"])
@pytest.mark.parametrize(("configs", "words", "sentence"), WRONG_COSTS)
def test_costs_that_do_not_fit(
    capsys: Capture, write_costs: Write, name: str, configs: Any, words: list[object], sentence: str
) -> None:
    costs = write_costs({"configs": configs})
    status, _, err = command(capsys, name, "--ranks", 2, "--costs", costs, *words)
    assert status == 2
    assert sentence in complaint(err)


@pytest.mark.parametrize("name", ["plan", "simulate"])
@pytest.mark.parametrize("option", ["--configs", "--shards", "--rows"])
def test_sizes_beside_an_experiment(
    capsys: Capture, write_experiment: Write, name: str, option: str
) -> None:
    status, _, err = command(capsys, name, write_experiment(), "--ranks", 2, option, 8)
    assert status == 2
    assert f"{option} is 8, but the experiment says how many; leave either out" in complaint(err)


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--configs", "4", "--ranks", "2", "--gantt"],
        ["simulate", "--configs", "4", "--ranks", "2", "--seeds", "2"],
    ],
)
def test_nothing_heavy_is_imported(tmp_path: Path, words: list[str]) -> None:
    words = [*words, str(tmp_path / "plan.svg")] if words[-1] == "--gantt" else words
    script = (
        "import sys\nfrom mophpc.cli import main\n"
        f"try:\n    main({words!r})\n"
        "finally:\n    assert not {'torch', 'mpi4py', 'zarr'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
