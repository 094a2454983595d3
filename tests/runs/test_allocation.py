"""Freed memory is kept by the process, so that no step waits for the kernel to map it again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PAGES = """
import resource
from sslzoo.runs.allocation import keep_freed_memory
print(keep_freed_memory())
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
sizes = [40_000_000, 90_000_000, 40_000_000]
for _ in range(2):
    kept = [bytearray(b"x") * size for size in sizes]
    del kept
before = faults()
for _ in range(3):
    kept = [bytearray(b"x") * size for size in sizes]
    del kept
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize("given", [{}, {"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": ""}])
def test_freed_memory_is_kept_unless_the_environment_chooses(given: dict[str, str]) -> None:
    known = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    own = {k: v for k, v in os.environ.items() if not k.startswith(known)} | given
    done = subprocess.run(
        [sys.executable, "-c", PAGES], env=own, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    assert kept == str(not given)
    if given:
        assert int(faults) > 50_000  # 3 times 170 MB in pages of 4 KB
    else:
        assert int(faults) < 100
