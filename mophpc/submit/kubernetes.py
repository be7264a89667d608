"""An MPIJob for Kubernetes' MPI Operator; pure functions of settings."""

from __future__ import annotations

import posixpath
import shlex
from pathlib import PurePosixPath
from typing import Any

from mophpc.errors import LaunchError
from mophpc.submit.settings import KUBERNETES_MPIS, Kubernetes, Run
from mophpc.submit.words import seconds_of

API_VERSION, KIND = "kubeflow.org/v2beta1", "MPIJob"
HOSTS = "/etc/mpi/hostfile"
"""Where the operator says on which pods the ranks are."""
GRACE_S = 90
"""From TERM to KILL: the ranks' time for their states, and mpirun's after it."""
_MEMORY = {"K": "Ki", "M": "Mi", "G": "Gi", "T": "Ti"}

START = """\
cd {mount}
ranks="" again=""
trap 'again=1; [ -z "$ranks" ] || kill -USR1 "$ranks"' TERM
{mpirun} &
ranks=$!
again=1
while [ -n "$again" ]; do
  again=""
  wait "$ranks"
  status=$?
done
exit "$status"
"""
"""A pod that has to go gets TERM, which mpirun would answer by killing the ranks."""


def mpijob(run: Run, kubernetes: Kubernetes) -> dict[str, Any]:
    """Return the manifest of a run, to be written as YAML or JSON.

    `mophpc run` is started with `--resume`: whatever starts a pod again continues the run.

    Raises:
        LaunchError: two settings do not fit each other.
    """
    if run.stage is not None and (not run.stage.startswith("/") or set(":$") & set(run.stage)):
        raise LaunchError(
            f"--stage is {run.stage!r}; allowed with --kubernetes: an absolute path without ':' "
            "and '$', where each pod gets a folder of its own"
        )
    mount = posixpath.normpath(kubernetes.mount)
    out = PurePosixPath(posixpath.normpath(posixpath.join(mount, run.out)))
    if not out.is_relative_to(mount):
        raise LaunchError(
            f"--out is {run.out!r}, which goes with the pod; allowed with --kubernetes: a folder "
            f"in the claim, that is under {kubernetes.mount} (--mount)"
        )
    metadata: dict[str, Any] = {"name": kubernetes.job_name}
    if kubernetes.namespace is not None:
        metadata["namespace"] = kubernetes.namespace
    if run.made_by is not None:
        metadata["annotations"] = {"mophpc/made-by": run.made_by}
    policy: dict[str, Any] = {"cleanPodPolicy": "Running", "backoffLimit": run.max_restarts}
    if run.time is not None:
        policy["activeDeadlineSeconds"] = seconds_of("--time", run.time)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "slotsPerWorker": run.ranks_of_node,
            "mpiImplementation": KUBERNETES_MPIS[kubernetes.mpi],
            "runPolicy": policy,
            "mpiReplicaSpecs": {
                "Launcher": _replicas(1, _launcher(run, kubernetes), run, kubernetes),
                "Worker": _replicas(run.nodes, _node(run, kubernetes), run, kubernetes),
            },
        },
    }


def as_yaml(manifest: dict[str, Any]) -> str:
    """Return a manifest as the text that `kubectl apply` takes.

    Raises:
        LaunchError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise LaunchError(
            "--kubernetes needs PyYAML; install it with: pip install 'mophpc[kubernetes]'"
        ) from None

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as blocks."""

    def block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, block)
    return yaml.dump(manifest, Dumper=Dumper, sort_keys=False, width=1_000_000)


def _replicas(
    count: int, container: dict[str, Any], run: Run, kubernetes: Kubernetes
) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [
        {"name": "files", "persistentVolumeClaim": {"claimName": kubernetes.claim}},
        # A container's own has 64 MB, and ranks of one pod exchange states through it.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "files", "mountPath": kubernetes.mount},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    if run.stage is not None:
        volumes.append({"name": "stage", "emptyDir": {}})
        mounts.append({"name": "stage", "mountPath": run.stage})
    spec = {
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [{**container, "volumeMounts": mounts}],
        "volumes": volumes,
    }
    return {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": spec}}


def _launcher(run: Run, kubernetes: Kubernetes) -> dict[str, Any]:
    script = START.format(mount=shlex.quote(kubernetes.mount), mpirun=_mpirun(run, kubernetes))
    found: dict[str, Any] = {
        "name": "launcher",
        "image": kubernetes.image,
        "command": ["/bin/sh", "-c", script],
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
    }
    if kubernetes.mpi == "openmpi":
        names = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
        found["env"] = [{"name": name, "value": "1"} for name in names]
    return found


def _node(run: Run, kubernetes: Kubernetes) -> dict[str, Any]:
    """Return the container of the ranks; without a command the operator starts its SSH server."""
    limits: dict[str, Any] = {"cpu": str(run.ranks_of_node * run.cpus_per_rank)}
    if run.memory is not None:
        memory = run.memory.upper()
        limits["memory"] = f"{memory}Mi" if memory.isdigit() else memory[:-1] + _MEMORY[memory[-1]]
    if run.gpus_per_node:
        limits["nvidia.com/gpu"] = str(run.gpus_per_node)
    return {"name": "ranks", "image": kubernetes.image, "resources": {"limits": limits}}


def _mpirun(run: Run, kubernetes: Kubernetes) -> str:
    threads = run.cpus_per_rank
    command = f"mpirun -n {run.ranks}"
    if kubernetes.mpi == "openmpi":
        # The operator names the hosts to older versions only; SSH passes no environment on.
        command += f" --hostfile {HOSTS} --bind-to none -x PATH -x OMP_NUM_THREADS={threads}"
    else:
        command += f" -genv OMP_NUM_THREADS {threads}"
    command += f" mophpc run {shlex.quote(run.experiment)} --out {shlex.quote(run.out)} --resume"
    if run.stage is not None:
        command += f" --stage {shlex.quote(run.stage)}"
    return f"{command} {shlex.join(run.options)}".rstrip()
