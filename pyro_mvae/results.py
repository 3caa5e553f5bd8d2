"""The figures of each model and seed of a comparison, in a file each, where they are kept as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pyro_mvae.atomic import write_text
from pyro_mvae.evaluate.judge import JUDGE
from pyro_mvae.evaluate.measurement import Measurement

Measures = Mapping[str, Callable[[], Iterable[Measurement]]]
"""What is to be measured, each under a name of its own."""


def result_path(out: Path, name: str, seed: int) -> Path:
    """Where the figures of a model are, once it has all of them."""
    return out / "results" / f"{name}-{seed}.json"


def measure_into(path: Path, measures: Measures, *, about: Mapping[str, Any]) -> None:
    """Measure, and write all figures to `path` with what they are `about`.

    Until the last is there they are in a file beside `path`, and what that holds is not measured again.
    """
    part = path.with_suffix(".part.json")
    found: dict[str, Any] = read_json(part) if part.exists() else {}
    for what, figures in measures.items():
        if what not in found:
            found[what] = [figure.as_dict() for figure in figures()]
            write_text(part, json.dumps(found, indent=2) + "\n")
    measurements = [entry for what in measures for entry in found[what]]
    write_text(path, json.dumps({**about, "measurements": measurements}, indent=2) + "\n")
    part.unlink(missing_ok=True)


def first_seed(out: Path, name: str, seeds: int) -> int | None:
    """The first seed of a model that has results; None when there is none."""
    return next((seed for seed in range(seeds) if result_path(out, name, seed).exists()), None)


def gathered(out: Path, name: str, seeds: int) -> dict[str, list[float]]:
    """The values of each measurement of a model, over the seeds that have results."""
    values: dict[str, list[float]] = {}
    for seed in range(seeds):
        path = result_path(out, name, seed)
        if path.exists():
            for entry in read_result(path)["measurements"]:
                values.setdefault(entry["name"], []).append(entry["value"])
    return values


def judged(figures: Mapping[str, Mapping[str, list[float]]]) -> set[float]:
    """The judge's own accuracies: there may be one for each time that the comparison was gone on with."""
    return {value for found in figures.values() for value in found.get(JUDGE, [])}


def read_result(path: Path) -> dict[str, Any]:
    """What a result file holds; ValueError for one that is damaged."""
    held = read_json(path)
    try:
        assert {"name", "value"} <= set().union(*held["measurements"])
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(damaged(path)) from error
    return held


def read_json(path: Path) -> Any:
    """What a file of figures holds; ValueError for one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(damaged(path)) from error


def damaged(path: Path) -> str:
    """What is said of a file that can't be read."""
    return f"{path} is damaged: remove it, and the model is measured again"
