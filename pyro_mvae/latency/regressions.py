"""What became slower from one benchmark to another, beyond noise."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_mvae.environment import environment
from pyro_mvae.latency.benchmark import SCHEMA
from pyro_mvae.latency.peaks import Peaks

WITHIN = 0.05


def regressions(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    """Rows that became slower beyond noise, and how many times as slow they are, p50.

    A row counts when it is slower by more than 5 %, the spread that MLPerf allows, and by more than three times the noise of
    both runs, as it stands and also with what the machine itself became slower by, its peak at that precision, taken out.

    Raises:
        ValueError: for figures of another schema or another processor, or when no row is in both.

    Example:
        >>> peaks = {"gemm_float32": 1, "conv_float32": 1, "conv_int8": 1, "copy": 1}
        >>> run = {"schema": 1, "environment": {"cpu": "one"}, "peaks": peaks}
        >>> row = {"name": "a", "precision": "int8", "noise": 0.01}
        >>> fast, slow = ({**run, "rows": [{**row, "p50_us": time}]} for time in (10.0, 12.0))
        >>> regressions(slow, fast), regressions(fast, slow)
        ({'a': 1.2}, {})
    """
    check_comparable(before, schema=now["schema"], cpu=now["environment"]["cpu"])
    machine = {precision: peak_of(now, precision) / peak_of(before, precision) for precision in ("float32", "int8")}
    timed = {each["name"]: each for each in before["rows"] if "p50_us" in each}
    if not timed.keys() & {each["name"] for each in now["rows"] if "p50_us" in each}:
        raise ValueError(f"no file was timed in both runs, the earlier one has: {', '.join(timed) or 'none'}")
    slower: dict[str, float] = {}
    for each in now["rows"]:
        if "p50_us" not in each or each["name"] not in timed:
            continue
        other = timed[each["name"]]
        ratio = each["p50_us"] / other["p50_us"]
        allowed = 1 + max(WITHIN, 3 * math.hypot(each["noise"], other["noise"]))
        if min(ratio, ratio * machine[each["precision"]]) > allowed:
            slower[each["name"]] = round(ratio, 3)
    return slower


def only_in_one(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, list[str]]:
    """Rows that are new, and those that are gone: `regressions` says nothing of either.

    Example:
        >>> only_in_one({"rows": [{"name": "a", "p50_us": 1.0}]}, {"rows": [{"name": "b", "p50_us": 1.0}]})
        {'new': ['a'], 'gone': ['b']}
    """
    here, there = ([each["name"] for each in run["rows"] if "p50_us" in each] for run in (now, before))
    return {"new": [name for name in here if name not in there], "gone": [name for name in there if name not in here]}


def check_comparable(before: Mapping[str, Any], *, schema: int = SCHEMA, cpu: str | None = None) -> None:
    """Raise a ValueError for figures of another schema, or another processor than this machine's."""
    for what, ours, theirs in (
        ("schema", schema, before["schema"]),
        ("processor", cpu or environment()["cpu"], before["environment"]["cpu"]),
    ):
        if ours != theirs:
            raise ValueError(f"figures of another {what} can't be compared: {theirs}, expected {ours}")


def peak_of(run: Mapping[str, Any], precision: str) -> float:
    peaks = {name: value for name, value in run["peaks"].items() if name != "unit"}
    return Peaks(**peaks).macs_per_second(precision)


def read_benchmark(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an earlier `benchmark` wrote.

    Raises:
        ValueError: when there is none, or it is damaged.

    Example:
        >>> read_benchmark("nowhere.json")
        Traceback (most recent call last):
            ...
        ValueError: no figures at nowhere.json: give a JSON file that benchmark wrote
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no figures at {path}: give a JSON file that benchmark wrote")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not {"schema", "environment", "peaks", "rows"} <= held.keys():
            raise ValueError
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, or no file that benchmark wrote") from error
    return held
