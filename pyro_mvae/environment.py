"""What a figure was measured with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path


def environment() -> dict[str, str]:
    """Versions of what computes, and the processor."""
    packages = ("torch", "pyro-ppl", "coremltools", "executorch", "onnxruntime", "scikit-learn", "umap-learn")
    versions = {name.removesuffix("-ppl"): version(name) for name in packages}
    return {"python": platform.python_version(), **versions, "cpu": cpu()}


def cpu() -> str:
    """The processor's name."""
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
