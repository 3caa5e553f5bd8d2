"""Timing candidates side by side: on a shared machine only a ratio from one interleaved run says anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pyro_mvae.latency.timing import in_turns


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
    times = in_turns(candidates, runs=rounds * runs, seconds=0, rounds=rounds, warm_up=warm_up)
    return {name: {"p50_us": timing.p50_us, "p90_us": timing.p90_us} for name, timing in times.items()}
