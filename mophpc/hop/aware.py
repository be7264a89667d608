"""Whether this MPI sends from GPU memory: tried in a process of its own, not believed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

TEST_S = 120.0
LAUNCHED = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDRA_", "MPI_LOCAL", "PALS_", "SLURM_")
"""What a launcher tells its ranks: a process that has none of it starts an MPI of its own."""

KEPT = ("pml", "btl", "mtl", "osc", "smsc", "accelerator", "opal_cuda", "mpi_cuda")
"""Parts of Open MPI whose settings (OMPI_MCA_...) are the user's, and count in the test too."""

_TEST = """
import sys
import torch
torch.cuda.set_device(int(sys.argv[1]))
torch.zeros(1, device="cuda")
from mpi4py import MPI
sent = torch.arange(1 << 20, dtype=torch.int32, device="cuda")
got = torch.zeros_like(sent)
torch.cuda.synchronize()
request = MPI.COMM_SELF.Irecv([got, MPI.INT], 0, 1)
MPI.COMM_SELF.Send([sent, MPI.INT], 0, 1)
request.Wait()
torch.cuda.synchronize()
print("equal" if torch.equal(sent, got) else "different")
"""


def apart(
    program: str, environ: Mapping[str, str], limit_s: float, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python program in a process of its own, where a crash is only an answer.

    Raises:
        RuntimeError: it took longer than `limit_s` seconds.
    """
    try:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            env=dict(environ),
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"it took more than {limit_s:g} s") from error


def gpu_aware(index: int = 0, environ: Mapping[str, str] = os.environ) -> str:
    """Return what came of sending GPU memory to itself, in a process of its own.

    A crash there is only an answer: a build that says it is GPU-aware may not be, and the other
    way round.

    Args:
        index: of the GPU among those that this process sees.
        environ: the process's environment.

    Returns:
        `yes`, or why not.
    """
    clean = {k: v for k, v in environ.items() if not k.startswith(LAUNCHED) or _is_kept(k)}
    try:
        done = apart(_TEST, clean, TEST_S, str(index))
    except RuntimeError as error:
        return f"no: {error}"
    if done.returncode != 0:
        return f"no: the test ended with status {done.returncode}"
    return "yes" if done.stdout.strip().endswith("equal") else "no: other bytes arrived"


def _is_kept(variable: str) -> bool:
    return variable.removeprefix("OMPI_MCA_").startswith(KEPT) and variable.startswith("OMPI_MCA_")
