"""What it takes to load a file: seconds and memory, in a process that has not seen it."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pyro_mvae.export._quiet import import_quietly
from pyro_mvae.export.executorch import runtime
from pyro_mvae.export.verify import load_artifact
from pyro_mvae.side_by_side import side_by_side

CALLS = 10
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Footprint:
    """Of one file, in a process of its own with its runtime there already.

    Attributes:
        load_ms: from the file's name to its first output.
        peak_kb: the most memory in use while it is loaded and called, above what was in use before; units of 1000 bytes.
    """

    load_ms: float
    peak_kb: float


def footprint(path: str | os.PathLike[str]) -> Footprint:
    """Load a `.pte` or `.onnx` in a new process and call it a few times.

    Raises:
        ValueError: when the file is damaged.
    """
    (found,) = side_by_side(in_this_process, [(Path(path),)], processes=1)
    return found


def in_this_process(path: Path) -> Footprint:
    """Load and call a file. What was loaded here before would not be loaded again: call it in a new process."""
    warm_up(path.suffix)
    before = peak_bytes(anew=True)
    start = time.perf_counter()
    artifact = load_artifact(path)
    x = torch.zeros(artifact.input_shape)
    artifact.run(x)
    seconds = time.perf_counter() - start
    for _ in range(CALLS):
        artifact.run(x)
    return Footprint(round(seconds * 1e3, 2), round(max(peak_bytes() - before, 0) / 1e3, 1))


def warm_up(suffix: str) -> None:
    """Import the runtime of a format."""
    if suffix == ".pte":
        runtime()
    else:
        import_quietly("onnxruntime")


def peak_bytes(*, anew: bool = False) -> int:
    """The most memory that this process has had; since now, with `anew`, where the system can forget what was before."""
    if anew and CLEAR.exists():
        CLEAR.write_text("5")
    if STATUS.exists():
        peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
