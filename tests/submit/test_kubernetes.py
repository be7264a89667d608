"""The manifest for the MPI Operator, against what its API takes."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from mophpc.errors import LaunchError
from mophpc.submit.kubernetes import as_yaml, mpijob
from mophpc.submit.settings import Kubernetes, Run

COUNT = {"type": "integer", "minimum": 0}
TEXT = {"type": "string"}


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has no other fields: Kubernetes drops or refuses them."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def array_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


QUANTITIES = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9]+([KMGT]i|m)?$"}]
    },
}
CONTAINER = closed(
    ("name", "image"),
    name=TEXT,
    image=TEXT,
    command=array_of(TEXT),
    args=array_of(TEXT),
    env=array_of(closed(("name",), name=TEXT, value=TEXT)),
    resources=closed(limits=QUANTITIES, requests=QUANTITIES),
    volumeMounts=array_of(closed(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
VOLUME = closed(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=closed(("claimName",), claimName=TEXT),
    emptyDir=closed(medium=TEXT, sizeLimit=TEXT),
)
POD = closed(
    ("containers",),
    terminationGracePeriodSeconds=COUNT,
    containers=array_of(CONTAINER) | {"minItems": 1},
    volumes=array_of(VOLUME),
)
REPLICAS = closed(
    ("replicas", "restartPolicy", "template"),
    replicas={"type": "integer", "minimum": 1},
    restartPolicy={"enum": ["Never", "OnFailure"]},
    template=closed(("spec",), spec=POD),
)
MPIJOB = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "kubeflow.org/v2beta1"},
    kind={"const": "MPIJob"},
    metadata=closed(
        ("name",),
        name=TEXT,
        namespace=TEXT,
        annotations={"type": "object", "additionalProperties": TEXT},
    ),
    spec=closed(
        ("mpiReplicaSpecs",),
        slotsPerWorker=COUNT,
        mpiImplementation={"enum": ["OpenMPI", "Intel", "MPICH"]},
        sshAuthMountPath=TEXT,
        runPolicy=closed(
            cleanPodPolicy={"enum": ["None", "Running", "All"]},
            backoffLimit=COUNT,
            activeDeadlineSeconds=COUNT,
            ttlSecondsAfterFinished=COUNT,
        ),
        mpiReplicaSpecs=closed(("Launcher", "Worker"), Launcher=REPLICAS, Worker=REPLICAS),
    ),
)
"""What v2beta1 takes of what a manifest of ours may hold, written by hand after its documentation;
`MOPHPC_MPIJOB_CRD` may name the file that the operator publishes, kubeflow.org_mpijobs.yaml."""

RUN = Run(
    experiment="exp/tune.toml",
    out="runs/tune",
    nodes=4,
    gpus_per_node=8,
    cpus_per_rank=3,
    memory="64G",
    time="4:00:00",
    stage="/stage",
    max_restarts=5,
    options=("--costs", "equal"),
    made_by="mophpc launch exp/tune.toml --kubernetes",
)
TUNE = Kubernetes(job_name="tune", image="a.example/mophpc:1", claim="files", namespace="lab")
SMALL = Kubernetes(job_name="tune", image="mophpc", claim="files", mpi="mpich", mount="/my data")
CASES = [
    (RUN, TUNE),
    (Run(experiment="a.toml", out="runs/a", nodes=1), SMALL),
    (Run(experiment="a.toml", out="runs/a", nodes=2), Kubernetes(
        job_name="a", image="i", claim="c", mpi="intel"
    )),
]  # fmt: skip


@pytest.mark.parametrize(("run", "kubernetes"), CASES)
def test_it_is_what_the_operator_takes(run, kubernetes):
    jsonschema.validate(mpijob(run, kubernetes), MPIJOB)


def without_unknown(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a published schema that allows no field but its own, as `kubectl --validate` does."""
    found = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in schema:
        found["properties"] = {
            name: inner
            if name == "metadata" and "properties" not in inner
            else without_unknown(inner)
            for name, inner in schema["properties"].items()
        }
        found["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found[key] = without_unknown(schema[key])
    return found


@pytest.mark.skipif(
    "MOPHPC_MPIJOB_CRD" not in os.environ,
    reason="MOPHPC_MPIJOB_CRD does not name the operator's kubeflow.org_mpijobs.yaml",
)
@pytest.mark.parametrize(("run", "kubernetes"), CASES)
def test_it_is_valid_against_the_published_schema(run, kubernetes):
    published = yaml.safe_load(Path(os.environ["MOPHPC_MPIJOB_CRD"]).read_text())
    (version,) = [one for one in published["spec"]["versions"] if one["name"] == "v2beta1"]
    schema = without_unknown(version["schema"]["openAPIV3Schema"])
    jsonschema.validate(mpijob(run, kubernetes), schema)
    wrong = mpijob(run, kubernetes)
    wrong["spec"]["slots"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_what_is_wrong_is_found():
    for change in ({"slotsPerWorker": "8"}, {"cleanPodPolicy": "All"}, {"mpiReplicaSpecs": {}}):
        wrong = mpijob(RUN, TUNE)
        wrong["spec"] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, MPIJOB)


@pytest.mark.parametrize(("run", "kubernetes"), CASES)
def test_yaml_holds_the_same(run, kubernetes):
    text = as_yaml(mpijob(run, kubernetes))
    assert yaml.safe_load(text) == mpijob(run, kubernetes)
    assert "&id" not in text
    assert "- |\n" in text


def test_sizes():
    spec = mpijob(RUN, TUNE)["spec"]
    assert spec["slotsPerWorker"] == 8
    assert spec["runPolicy"] == {
        "cleanPodPolicy": "Running",
        "backoffLimit": 5,
        "activeDeadlineSeconds": 14_400,
    }
    ranks = spec["mpiReplicaSpecs"]["Worker"]
    assert ranks["replicas"] == 4
    (container,) = ranks["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {
        "cpu": "24",
        "memory": "64Gi",
        "nvidia.com/gpu": "8",
    }
    assert "command" not in container


def mpirun_of(run: Run, kubernetes: Kubernetes) -> list[str]:
    pod = mpijob(run, kubernetes)["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]
    script = pod["containers"][0]["command"][2]
    (line,) = [row for row in script.splitlines() if row.startswith("mpirun")]
    return shlex.split(line.removesuffix(" &"))


def test_the_ranks_are_started_on_the_pods():
    words = mpirun_of(RUN, TUNE)
    assert words[:5] == ["mpirun", "-n", "32", "--hostfile", "/etc/mpi/hostfile"]
    at = words.index("mophpc")
    assert words[at:] == [
        *("mophpc", "run", "exp/tune.toml", "--out", "runs/tune", "--resume"),
        *("--stage", "/stage", "--costs", "equal"),
    ]
    assert "--hostfile" not in mpirun_of(CASES[1][0], SMALL)


@pytest.mark.parametrize("stage", ["stage", "$TMPDIR", "/a:b"])
def test_a_stage_that_no_pod_can_mount_is_refused(stage):
    run = Run(experiment="a.toml", out="runs/a", nodes=1, stage=stage)
    with pytest.raises(LaunchError, match="--stage is"):
        mpijob(run, TUNE)


@pytest.mark.parametrize("out", ["/runs/a", "../a", "/mophpc/../a"])
def test_a_run_folder_that_goes_with_its_pod_is_refused(out):
    with pytest.raises(LaunchError, match=r"--out is .*under /mophpc \(--mount\)"):
        mpijob(Run(experiment="a.toml", out=out, nodes=1), TUNE)
    mpijob(Run(experiment="a.toml", out="/mophpc/runs/a", nodes=1), TUNE)


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--mpi", {"mpi": "pmix"}),
        ("--mount", {"mount": "data"}),
        ("--mount", {"mount": "/a\nb"}),
        ("--pvc", {"claim": "My Files"}),
        ("--namespace", {"namespace": "a/b"}),
        ("--job-name", {"job_name": "Tune"}),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(option, setting):
    given = {"job_name": "tune", "image": "a", "claim": "files"} | setting
    with pytest.raises(LaunchError, match=f"{option} is"):
        Kubernetes(**given)
