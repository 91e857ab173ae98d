"""What a training step frees stays in the process, for the next step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hookbrew import heap

FAULTS = """
import ctypes, resource, sys
{before}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def step():
    blocks = [(libc.malloc(size << 20), size << 20) for size in (4, 8, 16, 24, 24, 24)]
    for block, size in blocks:
        ctypes.memset(block, 1, size)
    for block, _ in blocks:
        libc.free(block)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}

pytestmark = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="glibc's settings"
)


def faults(before, **environment):
    """Pages that five steps of 100 MiB get from the system anew."""
    command = [sys.executable, "-c", FAULTS.format(before=before)]
    done = subprocess.run(command, env=PLAIN | environment, cwd=Path(heap.__file__).parents[1], capture_output=True)
    assert not done.returncode, done.stderr
    return int(done.stdout)


def test_pages_are_kept():
    page = os.sysconf("SC_PAGE_SIZE")
    assert faults("") > 5 * (40 << 20) / page  # else there is nothing to mend
    assert faults("from hookbrew import heap\nassert heap.keep()") < (4 << 20) / page


def test_settings_of_the_environment_stay():
    kept = faults("from hookbrew import heap\nassert not heap.keep()", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept > 5 * (40 << 20) / os.sysconf("SC_PAGE_SIZE")
