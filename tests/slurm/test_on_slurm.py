"""Runs on a real Slurm of four nodes: submitted, interrupted, put back into the queue."""

from __future__ import annotations

import json

import pytest
from mpi_launch import is_open_mpi

from mophpc.cli import main

pytestmark = [pytest.mark.slurm, pytest.mark.launch, pytest.mark.timeout(900)]

EPOCHS = 5
LONG = 20


def srun() -> str:
    """Return the plugin of srun that belongs to this environment's MPI."""
    return "pmix" if is_open_mpi() else "pmi2"


def check_done(submitted, capsys, epochs: int = EPOCHS) -> None:
    """Check that all configs are done, and equal to sequential training."""
    assert set(submitted.statuses().values()) == {("done", epochs)}
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(submitted.run)])
    assert stop.value.code == 0, capsys.readouterr()


def test_a_plain_run_on_all_nodes_by_mpirun(submit, capsys):
    submitted = submit("--nodes", "4", "--mpi", "mpirun")
    facts = submitted.wait_for("COMPLETED", "FAILED")
    assert facts["JobState"] == "COMPLETED", submitted.log
    check_done(submitted, capsys, epochs=2)
    assert len(list((submitted.run / "events").glob("rank-*.jsonl"))) == 4


def test_several_ranks_and_gpus_per_node_and_staging_by_srun(submit, capsys, tmp_path):
    stage = tmp_path / "stage"
    options = ["--nodes", "2", "--gpus-per-node", "2", "--stage", stage, "--mem", "500M"]
    submitted = submit(*options, "--mpi", srun(), "--", "--device", "cpu")
    facts = submitted.wait_for("COMPLETED", "FAILED")
    assert facts["JobState"] == "COMPLETED", submitted.log
    assert facts["TresPerNode"] in ("gres:gpu:2", "gpu:2")
    assert facts["NumNodes"] == "2"
    check_done(submitted, capsys, epochs=2)
    assert len(list((submitted.run / "events").glob("rank-*.jsonl"))) == 4
    assert any(stage.rglob("*")), "nothing was staged"


def test_an_array_makes_the_run_several_times(submit):
    submitted = submit("--mpi", srun(), "--array", "2", "--no-check")
    for number in ("1", "2"):
        part = f"{submitted.job}_{number}"
        type(submitted)(submitted.cluster, part, submitted.folder).wait_for("COMPLETED")
    digests = [
        [row["state_sha256"] for row in json.loads(path.read_text())["configs"]]
        for path in sorted(submitted.run.glob("*/results.json"))
    ]
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert len(list(submitted.folder.glob("tune-*_*.log"))) == 2


def test_a_mistake_ends_the_job_with_its_status(submit):
    submitted = submit("--mpi", srun(), "--no-check", "--", "--replay", "none.json")
    facts = submitted.wait_for("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0"), submitted.log
    assert "none.json" in submitted.log


def interrupted(submit, *options: str):
    """Submit a run that is long enough for something to happen to it, and wait for its begin."""
    words = ["--nodes", "2", "--requeue", "--no-check", "--time", "10"]
    submitted = submit(*words, *options, "--", "--costs", "equal", epochs=EPOCHS, slow_s=0.03)
    submitted.wait_for_epochs(4)
    return submitted


def check_went_on(submitted, capsys) -> None:
    """Check that a run which was put back into the queue goes on, and ends well."""
    submitted.start_again()
    facts = submitted.wait_for("COMPLETED", "FAILED", restarts=1)
    assert facts["JobState"] == "COMPLETED", submitted.log
    check_done(submitted, capsys)


def test_a_signal_to_the_script_puts_it_back_and_it_goes_on(submit, cluster, capsys):
    submitted = interrupted(submit, "--mpi", "mpirun")
    cluster.command("scancel", "--batch", "--signal=USR1", submitted.job)
    check_went_on(submitted, capsys)
    assert submitted.log.count("goes back into the queue") == 1


def test_a_signal_to_the_ranks_puts_it_back_and_it_goes_on(submit, cluster, capsys):
    submitted = interrupted(submit, "--mpi", srun())
    cluster.command("scancel", "--signal=USR1", submitted.job)
    check_went_on(submitted, capsys)


def test_a_run_that_somebody_requeues_goes_on(submit, cluster, capsys):
    submitted = interrupted(submit, "--mpi", srun())
    cluster.command("scontrol", "requeue", submitted.job)
    check_went_on(submitted, capsys)
    assert "goes back into the queue" not in submitted.log


def test_a_run_that_somebody_cancels_stays_cancelled(submit, cluster):
    submitted = interrupted(submit, "--mpi", srun())
    cluster.command("scancel", submitted.job)
    facts = submitted.wait_for("CANCELLED", "FAILED", "PENDING", "COMPLETED")
    assert facts["JobState"] == "CANCELLED"
    assert int(facts["Restarts"]) == 0


def test_a_node_that_goes_down(submit, cluster, capsys):
    submitted = interrupted(submit, "--mpi", srun())
    (node,) = cluster.command(
        "scontrol", "show", "hostnames", submitted.facts()["NodeList"]
    ).split()[-1:]
    cluster.kill_node(node)
    try:
        cluster.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")
        check_went_on(submitted, capsys)
        assert node not in submitted.nodes()
    finally:
        cluster.start_node(node)
        cluster.command("scontrol", "update", f"NodeName={node}", "State=RESUME")
        cluster.wait_for_nodes()


@pytest.fixture(scope="module", autouse=True)
def at_its_limit(submit):
    """A run whose time is over while the other tests are under way; Slurm has whole minutes."""
    words = ["--nodes", "2", "--requeue", "--no-check", "--time", "1", "--signal", "USR1@40"]
    words += ["--mpi", srun(), "--sbatch-option", "nodelist=n2,n3", "--", "--costs", "equal"]
    # Slurm looks at limits every 30 seconds.
    return submit(*words, epochs=LONG, slow_s=0.06)


@pytest.mark.timeout(400)
def test_the_time_limit(at_its_limit, capsys):
    """Last in this file: its run has gone on meanwhile."""
    at_its_limit.wait_for_epochs(1)
    restarts = 0
    while True:
        facts = at_its_limit.wait_for("PENDING", "COMPLETED", "FAILED", timeout=150.0)
        restarts = int(facts["Restarts"])
        if facts["JobState"] != "PENDING":
            break
        at_its_limit.start_again(restarts)
    assert facts["JobState"] == "COMPLETED", at_its_limit.log
    assert restarts >= 1
    check_done(at_its_limit, capsys, epochs=LONG)
