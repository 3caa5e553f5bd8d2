"""Seconds of a quick look at two models of Table 9, as a user starts it.

pytest benchmarks/ -k compare
"""

from __future__ import annotations

import subprocess
import sys
import time

from pyro_mvae.side_by_side import cores

SECONDS = 180


def test_compare(tmp_path, record):
    """From beginning to end, Python's start included, three seeds of each, as many processes as there are cores."""
    command = [sys.executable, "-m", "pyro_mvae", "compare", "--models", "vae,mvae", "--out", str(tmp_path / "compare")]
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    taken = round(time.perf_counter() - begun, 1)
    record("compare-quick", {"seconds": taken, "goal": SECONDS, "processes": cores()})
    assert (tmp_path / "compare/table9.csv").exists()
