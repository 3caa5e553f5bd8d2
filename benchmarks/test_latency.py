"""What `pyro-mvae benchmark` says of a build on digits: its student against its teacher, runtimes, and the machine's peak.

pytest benchmarks/ -k 'latency and digits'
"""

from __future__ import annotations

from typing import Any

from benchmarks.digits import built
from benchmarks.interleave import one_core
from pyro_mvae import benchmark, load_model
from pyro_mvae.latency import checkpoints

TIMES, SHARE, LARGE = 10, 0.4, 10**6


def test_latency_digits(record):
    """The decoder's p90: int8 on XNNPACK against the teacher in float32, and the same student elsewhere."""
    out = built()
    models = {name: load_model(path).eval() for name, path in checkpoints(out).items()}
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
    record("latency-digits", {**figures, "peaks": found["peaks"], "protocol": found["protocol"], "rows": list(rows.values())})
