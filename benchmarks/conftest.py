"""`pytest benchmarks/`: figures are printed, and kept in `results/` beside how they came about."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from rich import print_json

from pyro_mvae.atomic import atomic
from pyro_mvae.report import environment

RESULTS = Path(__file__).parent / "results"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Benchmarks run alone."""
    return 0


@pytest.fixture
def record(capsys: pytest.CaptureFixture[str]) -> Callable[[str, Mapping[str, Any]], None]:
    """Print figures and write them to `results/NAME.json` with the command, the machine and the versions."""

    def record(name: str, figures: Mapping[str, Any]) -> None:
        command = shlex.join(["pytest", *sys.argv[1:]])
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        content = {"command": command, "when": when, "cores": os.cpu_count(), **environment(), "figures": figures}
        with atomic(RESULTS / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        with capsys.disabled():
            print(f"\n{name}")
            print_json(data=figures)

    return record
