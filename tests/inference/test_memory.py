"""Memory that is freed while a model is fitted comes back to the next step without the system's help."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from pyro_mvae.inference.memory import freed_memory_kept

COUNTED = """
import resource, torch
from pyro_mvae.inference.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        del_me = [torch.ones(12_000_000) for _ in range(2)]  # 48 MB each: above what glibc's moving threshold comes to
        del del_me
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

plain, before = faults(), resident()
with freed_memory_kept():
    kept, held = faults(), resident()
print(plain, kept, held - before, resident() - before, 12_000_000 * 4 // resource.getpagesize())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another allocator than glibc's")
def test_pages_stay_and_are_given_back():
    """In a process of its own, as what an allocator does depends on what was done before."""
    shown = subprocess.run([sys.executable, "-c", COUNTED], check=True, capture_output=True, text=True).stdout
    plain, kept, held, left, tensor = map(int, shown.split())
    assert kept < plain / 10
    assert held > tensor  # two tensors' pages wait for the next step …
    assert left < tensor / 10  # … and go back in the end


def test_an_error_passes_through():
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        raise ZeroDivisionError
