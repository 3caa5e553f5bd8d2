"""How fast exported files are on this machine, beside what it can do at most and beside other runtimes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_mvae.atomic import write_text
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.environment import environment
from pyro_mvae.export.capture import PARTS
from pyro_mvae.export.deployed import check_file
from pyro_mvae.export.manifest import describe as described
from pyro_mvae.export.manifest import for_apple, part_macs
from pyro_mvae.export.verify import inputs_for, load_artifact
from pyro_mvae.latency.footprint import footprint
from pyro_mvae.latency.peaks import Peaks, bytes_moved, measured_peaks
from pyro_mvae.latency.peers import peers
from pyro_mvae.latency.phones import ASSUMED, estimates
from pyro_mvae.latency.timing import Timing, in_turns, ready
from pyro_mvae.models import VAE
from pyro_mvae.numbers import above, count

SCHEMA = 2
NAME = "benchmark.json"
PROTOCOL = {
    "machine": "a proxy: this machine's processor, one thread, one image at a time; no phone's latency",
    "percentile": "p90 is what MLPerf Mobile's single stream reports, which takes 60 seconds where this takes `seconds`",
    "turns": "all files and peers take turns in 16 rounds, after 20 calls each that are not timed",
    "calls": "what ExecuTorch and onnxruntime do, their input set before: an app waits for no Python; PyTorch's as they are",
    "noise": "how far the medians of rounds are apart, as a share of p50",
    "load_ms, peak_kb": "in a new process whose runtime is imported: to the first output; memory above what was in use",
    "share_of_peak": "multiply-adds a second at p50, as a share of the fastest convolution or matrix product at that precision",
    "share_of_roofline": "the same of what arithmetic and memory allow, were the file's bytes read from memory at each call",
    "phones": ASSUMED,
}
COLUMNS = {
    "µs p50": "p50_us",
    "p90": "p90_us",
    "p99": "p99_us",
    "noise %": "noise",
    "GMAC/s": "gmacs_per_second",
    "% of peak": "share_of_peak",
    "% of roofline": "share_of_roofline",
    "load ms": "load_ms",
    "peak KB": "peak_kb",
}


@dataclass(frozen=True)
class Candidate:
    """What is timed: a file, or a part of a model in some runtime."""

    about: dict[str, Any]
    run: Callable[[Tensor], Any]
    x: Tensor


def benchmark(
    folder: str | os.PathLike[str],
    *,
    models: Mapping[str, VAE] | None = None,
    runs: int = 1024,
    seconds: float = 5.0,
    out: str | os.PathLike[str] | None = None,
    progress: Track = untracked,
) -> dict[str, Any]:
    """Time each `.pte` and `.onnx` that a folder's manifest names, and parts of models in other runtimes, all taking turns.

    Args:
        folder: what files were exported to; each has to be as the manifest has it.
        models: peers, by the names they are to have: encoder and decoder of each run in eager and compiled PyTorch, in
            onnxruntime and ExecuTorch, in float32 and int8.
        runs, seconds: each is called so many times at least, and for so long.
        out: the JSON to write; `benchmark.json` in the folder when None.

    Returns: what was written: `environment`, `protocol`, `peaks` (see `Peaks`), and `rows`, one a file or peer, with percentiles
        in µs, noise, and where known: bytes, load_ms, peak_kb, macs, gmacs_per_second, share_of_peak, share_of_roofline, and
        `phones`, estimates in µs. What Core ML runs is not run here: its row has estimates alone.

    Raises:
        ValueError: for a folder without a manifest, a file that is gone or changed, or numbers below 1.
    """
    count(runs, "runs", 2)
    above(seconds, "seconds")
    folder = Path(folder)
    entries = described(folder)["files"]
    for entry in entries:
        check_file(folder, entry)
    peaks = measured_peaks()
    runnable = [entry for entry in entries if not for_apple(entry)]
    candidates = [of_file(folder, entry) for entry in progress(runnable, "Load", len(runnable))]
    for name, model in (models or {}).items():
        candidates += progress(of_model(name, model), f"Peers, {name}", 6 * len(PARTS))
    named = {each.about["name"]: each for each in candidates}
    calls = {name: ready(each.run, each.x) for name, each in named.items()}
    times = in_turns(calls, runs=runs, seconds=seconds)
    rows = [row(each, times[name], peaks) for name, each in named.items()]
    rows += [packaged(entry) for entry in entries if for_apple(entry)]
    content = {
        "schema": SCHEMA,
        "environment": environment(),
        "protocol": {**PROTOCOL, "runs": runs, "seconds": seconds, "threads": 1},
        "peaks": {**asdict(peaks), "unit": "giga multiply-adds a second, one thread; copy: gigabytes a second"},
        "rows": rows,
    }
    write_text(Path(out) if out else folder / NAME, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return content


def of_file(folder: Path, entry: Mapping[str, Any]) -> Candidate:
    """A file, with what loading it takes."""
    path = folder / entry["path"]
    artifact = load_artifact(path)
    about = {name: entry[name] for name in ("format", "part", "precision", "bytes")}
    return Candidate(
        {"name": entry["path"], **about, "macs": entry.get("macs"), **asdict(footprint(path))},
        artifact.run,
        example_of(artifact.input_shape),
    )


def of_model(name: str, model: VAE) -> Iterator[Candidate]:
    """Both parts of a model, in each runtime."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, *model.image_shape), generator=generator, dtype=torch.uint8)
    for part in PARTS:
        x, macs = inputs_for(part, model, images)[:1], part_macs(model, part)
        for runtime, precision, run in peers(model, part, images):
            about = {"name": f"{name}, {part}, {runtime}, {precision}", "format": runtime, "part": part, "precision": precision}
            yield Candidate({**about, "macs": macs}, run, x)


def example_of(shape: tuple[int, ...]) -> Tensor:
    """Something to compute with: pixels, or a code."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) if len(shape) == 2 else 255 * torch.rand(shape, generator=generator)


def row(candidate: Candidate, timing: Timing, peaks: Peaks) -> dict[str, Any]:
    """What is known of a candidate."""
    about, macs, precision = dict(candidate.about), candidate.about["macs"], candidate.about["precision"]
    found = {**about, **asdict(timing)}
    if macs is None:
        return found
    speed = macs / timing.p50_us * 1e6
    found |= {
        "gmacs_per_second": round(speed / 1e9, 3),
        "share_of_peak": round(speed / peaks.macs_per_second(precision), 4),
    }
    if "bytes" in about:
        outputs = candidate.run(candidate.x)
        moved = bytes_moved(about["bytes"], candidate.x, *outputs)
        found["share_of_roofline"] = round(speed / peaks.roofline(precision, macs=macs, moved=moved), 4)
        found["phones"] = estimates(format=about["format"], precision=precision, macs=macs, size=about["bytes"])
    return found


def packaged(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a file that Core ML runs, which no other system does."""
    about = {name: entry[name] for name in ("format", "part", "precision", "bytes")}
    macs = entry.get("macs")
    phones = {} if macs is None else estimates(format="coreml", precision=entry["precision"], macs=macs, size=entry["bytes"])
    name = ", ".join(filter(None, (entry["path"], entry.get("function"))))
    return {"name": name, **about, "macs": macs, "phones": phones}


def checkpoints(folder: str | os.PathLike[str], given: Iterable[str] = ()) -> dict[str, Path]:
    """Models to hold files against, by name: those given as NAME=CHECKPOINT, or teacher and student of a build in the folder.

    Raises:
        ValueError: for what is not NAME=CHECKPOINT.

    Example:
        >>> checkpoints("nowhere"), checkpoints("nowhere", ["old=old.safetensors"])
        ({}, {'old': PosixPath('old.safetensors')})
    """
    named: dict[str, Path] = {}
    for each in given:
        name, _, path = each.partition("=")
        if not (name and path):
            raise ValueError(f"model is {each!r}, expected NAME=CHECKPOINT")
        named[name] = Path(path)
    usual = {"teacher": "checkpoints/teacher.safetensors", "student": "student.safetensors"}
    there = {name: Path(folder) / path for name, path in usual.items() if (Path(folder) / path).is_file()}
    return named or there


def as_text(content: Mapping[str, Any], slower: Mapping[str, float] | None = None) -> tuple[list[str], list[list[str]]]:
    """A benchmark's columns and rows as they are shown, those that became slower marked."""
    shares = {"noise", "share_of_peak", "share_of_roofline"}

    def shown(each: Mapping[str, Any], key: str) -> str:
        value = each.get(key)
        return "–" if value is None else f"{100 * value:.1f}" if key in shares else f"{value:,.1f}"

    def named(each: Mapping[str, Any]) -> str:
        ratio = (slower or {}).get(each["name"])
        return each["name"] if ratio is None else f"{each['name']} (slower: {ratio:.2f} ×)"

    def on_phones(each: Mapping[str, Any]) -> str:
        return " to ".join(f"{us:,.0f}" for us in sorted({*each.get("phones", {}).values()})) or "–"

    rows = [[named(each), *(shown(each, key) for key in COLUMNS.values()), on_phones(each)] for each in content["rows"]]
    return ["file or peer", *COLUMNS, "phones µs, estimate"], rows
