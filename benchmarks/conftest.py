"""`pytest benchmarks/`: figures are printed, and kept in `results/` beside how they came about."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from rich import print_json

from pyro_mvae.atomic import write_text
from pyro_mvae.environment import environment

RESULTS = Path(__file__).parent / "results"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Benchmarks run alone."""
    return 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mnist", metavar="DIR", help="the folder of MNIST's idx files, for the figures on all of MNIST")
    parser.addoption("--emoji", metavar="GLOB", help="tar files of pictures, for the figures on colour")


@pytest.fixture
def measured() -> Callable[..., list[dict[str, Any]]]:
    """Measure case after case, each once: a benchmark that was cut short goes on where it stopped.

    Rows wait in `results/NAME.partial.jsonl`, to be removed by whoever wants to begin anew, until all are there.
    """

    def measured(name: str, cases: Iterable[dict[str, Any]], measure: Callable[..., Mapping[str, Any]]) -> list[dict[str, Any]]:
        partial, rows = RESULTS / f"{name}.partial.jsonl", []
        done = [json.loads(line) for line in partial.read_text().splitlines()] if partial.exists() else []
        for case in cases:
            row = next((row for row in done if case.items() <= row.items()), None)
            if row is None:
                row = {**case, **measure(**case)}
                with partial.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            rows.append(row)
            print(row, flush=True)
        partial.unlink(missing_ok=True)
        return rows

    return measured


@pytest.fixture
def record(capsys: pytest.CaptureFixture[str]) -> Callable[[str, Mapping[str, Any]], None]:
    """Print figures and write them to `results/NAME.json` with the command, the machine and the versions."""

    def record(name: str, figures: Mapping[str, Any]) -> None:
        command = shlex.join(["pytest", *(word.replace(str(Path.cwd().parent), "..") for word in sys.argv[1:])])
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), **environment()}
        content = {"command": command, "when": when, **machine, "figures": figures}
        write_text(RESULTS / f"{name}.json", json.dumps(content, indent=2) + "\n")
        with capsys.disabled():
            print(f"\n{name}")
            print_json(data=figures)

    return record
