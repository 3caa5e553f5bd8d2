"""A build on the bundled digits that several benchmarks look at; made once, in `benchmarks/runs/`."""

from __future__ import annotations

from pathlib import Path

from pyro_mvae import build

FOLDER = Path(__file__).parent / "runs" / "latency-digits"


def built() -> Path:
    """The folder of the build, which goes on where it was cut off."""
    if not (FOLDER / "report.json").is_file():
        build(out=FOLDER, resume=(FOLDER / "build.json").is_file())
    return FOLDER
