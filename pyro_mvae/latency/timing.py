"""Timing functions on this machine: one alone, or several that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pyro_mvae.export.executorch import Program
from pyro_mvae.export.onnx import Session
from pyro_mvae.export.verify import Verification, inputs_for, load_artifact
from pyro_mvae.models import VAE


@dataclass(frozen=True)
class Latency:
    """Microseconds a call, at the 50th and the 90th percentile."""

    p50_us: float
    p90_us: float


@dataclass(frozen=True)
class Timing:
    """What many calls of a function took.

    Attributes:
        runs: calls that were timed.
        seconds: that they took, together.
        p50_us, p90_us, p99_us: microseconds a call, percentiles over all of them.
        noise: how far the medians of rounds are from one another, as a share of the median of all: their median absolute
            deviation × 1.4826, which is the standard deviation where they are normal.
    """

    runs: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    noise: float


def ready(run: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    """A call of a function with an input; of a file, what its runtime does: an app has no Python to wait for.

    Example:
        >>> ready(torch.sigmoid, torch.zeros(1))()
        tensor([0.5000])
    """
    return run.ready(x) if isinstance(run, Program | Session) else lambda: run(x)


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """PyTorch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def latency(run: Callable[[Tensor], object], x: Tensor, *, runs: int = 300, warm_up: int = 30) -> Latency:
    """Time a function on one thread of this machine, when `ready`. It is no phone's latency, and says little of one.

    Example:
        >>> latency(torch.sigmoid, torch.zeros(4), runs=10).p50_us > 0
        True
    """
    with on_threads(1):
        call = ready(run, x)
        for _ in range(warm_up):
            call()
        times = [microseconds(call) for _ in range(runs)]
    return Latency(round(statistics.median(times), 1), round(statistics.quantiles(times, n=10)[8], 1))


def file_latency(found: Verification, model: VAE, *, images: Tensor | None = None) -> dict[str, float] | None:
    """`p50_us` and `p90_us` of an exported file; None of what Core ML runs, which no other system does."""
    run = None if found.format == "coreml" else load_artifact(found.path).run
    if not isinstance(run, Program | Session):
        return None
    return asdict(latency(run, inputs_for(found.part, model, images)[:1]))


def in_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    runs: int = 1024,
    seconds: float = 5.0,
    rounds: int = 16,
    warm_up: int = 20,
) -> dict[str, Timing]:
    """Time functions on one thread, each for a while in each round, so that all meet the same disturbances.

    Args:
        runs, seconds: each is called so many times at least, two or more, and for so long at least.
        rounds: how often each has its turn.
        warm_up: calls before, which are not timed.

    Example:
        >>> times = in_turns({"a": lambda: sum(range(9)), "b": lambda: sum(range(9999))}, runs=16, seconds=0.01)
        >>> times["a"].p50_us < times["b"].p50_us, times["b"].runs >= 16
        (True, True)
    """
    times: dict[str, list[list[float]]] = {name: [] for name in candidates}
    with on_threads(1):
        for run in candidates.values():
            for _ in range(warm_up):
                run()
        for _ in range(rounds):
            for name, run in candidates.items():
                times[name].append(a_turn(run, runs=-(-runs // rounds), seconds=seconds / rounds))
    return {name: summary(turns) for name, turns in times.items()}


def a_turn(run: Callable[[], object], *, runs: int, seconds: float) -> list[float]:
    """Microseconds of each call, of so many and for so long."""
    times: list[float] = []
    left = seconds * 1e6
    while len(times) < runs or left > 0:
        times.append(microseconds(run))
        left -= times[-1]
    return times


def microseconds(run: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) / 1000


def summary(turns: list[list[float]]) -> Timing:
    """Percentiles of all calls, and what the turns' medians say of noise.

    Example:
        >>> summary([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]).noise
        0.7413
    """
    every = [each for turn in turns for each in turn]
    percentiles = statistics.quantiles(every, n=100, method="inclusive")
    medians = [statistics.median(turn) for turn in turns]
    middle = statistics.median(medians)
    deviation = statistics.median(abs(each - middle) for each in medians)
    return Timing(
        runs=len(every),
        seconds=round(sum(every) / 1e6, 2),
        p50_us=round(percentiles[49], 1),
        p90_us=round(percentiles[89], 1),
        p99_us=round(percentiles[98], 1),
        noise=round(1.4826 * deviation / percentiles[49], 4),
    )
