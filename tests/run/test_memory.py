"""Memory that is freed and asked for again stays with the process."""

import json
import os
import subprocess
import sys

import pytest

from mophpc.run import memory

ROUNDS, ROUND_PAGES = 50, 3 * (4 << 20) // 4096

# Three tensors of 4 MiB, as a minibatch has them. A process of its own: malloc learns as it goes.
PROGRAM = f"""
import json, resource
from mophpc.run.memory import keep_freed_memory

kept = keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def minibatch():
    return [bytearray(b"x") * (4 << 20) for _ in range(3)]

for _ in range(3):
    minibatch()
before = faults()
for _ in range({ROUNDS}):
    minibatch()
print(json.dumps([kept, faults() - before]))
"""

has_glibc = pytest.mark.skipif(
    os.confstr_names.get("CS_GNU_LIBC_VERSION") is None, reason="mallopt is one of glibc's"
)


def faults(**settings: str) -> tuple[bool, int]:
    """Return whether memory is kept, and how many pages 50 minibatches had to get."""
    known = (*memory.OWN_CHOICE, "GLIBC_TUNABLES")
    environment = {k: v for k, v in os.environ.items() if k not in known} | settings
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    kept, pages = json.loads(done.stdout)
    return kept, pages


@has_glibc
def test_freed_memory_is_not_asked_for_again() -> None:
    kept, pages = faults()
    assert kept
    assert pages < ROUND_PAGES  # and not 50 times as many


@has_glibc
@pytest.mark.parametrize(
    "settings",
    [
        {"MALLOC_TRIM_THRESHOLD_": "65536"},
        {"MALLOC_MMAP_THRESHOLD_": "65536"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_somebodys_own_settings_stay(settings: dict[str, str]) -> None:
    kept, pages = faults(**settings)
    assert not kept
    assert pages > ROUNDS * ROUND_PAGES / 2


def test_a_c_library_without_such_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    for name in (*memory.OWN_CHOICE, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert not memory.keep_freed_memory()
