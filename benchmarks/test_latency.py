"""What `pyro-mvae benchmark` says of a student against its teacher, runtimes, and the machine's peak.

pytest benchmarks/ -k latency_digits
pytest benchmarks/ -k 'compress_within or compress_ablation or latency_mnist' --mnist DIR
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.digits import FOLDER, built
from benchmarks.interleave import one_core
from pyro_mvae import VAE, benchmark, export_executorch, load_model
from pyro_mvae.export.manifest import write_manifest
from pyro_mvae.latency import checkpoints

TIMES, SHARE, LARGE = 10, 0.4, 10**6


def test_latency_digits(record):
    """The build on the bundled digits."""
    models = {name: load_model(path).eval() for name, path in checkpoints(built()).items()}
    held_against_teacher(FOLDER, models, record, "latency-digits")


STUDENTS = {name: f"compress-{name}-mnist" for name in ("size", "tenth", "macs", "search")}


@pytest.mark.parametrize(("student", "search"), STUDENTS.items(), ids=STUDENTS)
def test_latency_mnist(student, search, record, tmp_path):
    """The compression benchmark's teacher, and a student within each bound of `compress_within` and `compress_ablation`."""
    runs = FOLDER.parent
    paths = {"teacher": runs / "compress-teacher-mnist.safetensors", "student": runs / search / "student.safetensors"}
    if not all(path.is_file() for path in paths.values()):
        pytest.skip("run -k 'compress_within or compress_ablation' before, with --mnist")
    models = {name: load_model(path).eval() for name, path in paths.items()}
    files = [export_executorch(models["student"], tmp_path / f"{part}.pte", part=part) for part in ("encoder", "decoder")]
    write_manifest(tmp_path, models["student"], files)
    held_against_teacher(tmp_path, models, record, f"latency-mnist-{student}")


def held_against_teacher(out: Path, models: Mapping[str, VAE], record: Callable[..., None], name: str) -> None:
    """The decoder's p90: int8 on XNNPACK against the teacher in float32, and the same student elsewhere."""
    with one_core():
        found = benchmark(out, models=models)
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in found["rows"] if "p90_us" in row}
    small = rows["decoder.pte"]["p90_us"]

    def best(model: str, part: str, *precisions: str, runtime: str = "") -> float:
        names = [name for name in rows if name.startswith(f"{model}, {part}, {runtime}") and name.endswith(precisions)]
        return min(rows[name]["p90_us"] for name in names)

    large = {name: row["share_of_peak"] for name, row in rows.items() if row["precision"] == "int8" and row["macs"] > LARGE}
    figures = {
        "times_as_fast_as_teacher_float32": round(best("teacher", "decoder", "float32") / small, 2),
        "goal_times": TIMES,
        "times_as_fast_as_onnxruntime": round(best("student", "decoder", "float32", "int8", runtime="onnxruntime") / small, 2),
        "share_of_int8_peak": rows["decoder.pte"]["share_of_peak"],
        "shares_above_a_million_macs": large,
        "goal_share": SHARE,
    }
    record(name, {**figures, "peaks": found["peaks"], "protocol": found["protocol"], "rows": list(rows.values())})
