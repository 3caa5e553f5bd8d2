"""Timing candidates side by side: on a shared machine only a ratio from one interleaved run says anything."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def one_core():
    """Everything that computes here shares one core and one thread."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(allowed)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, allowed)


def interleaved(
    candidates: Mapping[str, Callable[[], Any]], *, rounds: int = 30, runs: int = 20, warm_up: int = 20
) -> dict[str, dict[str, float]]:
    """Microseconds of each candidate, median and 90th percentile over all runs, the candidates taking turns."""
    for run in candidates.values():
        for _ in range(warm_up):
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            for _ in range(runs):
                start = time.perf_counter_ns()
                run()
                times[name].append((time.perf_counter_ns() - start) / 1000)
    return {
        name: {"p50_us": round(statistics.median(some), 1), "p90_us": round(statistics.quantiles(some, n=10)[8], 1)}
        for name, some in times.items()
    }
