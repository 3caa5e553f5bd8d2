"""Which way of running a step is the fastest: measured, for this model, batch and machine."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mvae.inference.compiled import Graph, compile_gradients
from pyro_mvae.inference.layout import LAYOUTS, in_layout, laid_out
from pyro_mvae.inference.objective import Objective
from pyro_mvae.inference.tracing import reason
from pyro_mvae.inference.undone import restored

WORTH_TRACING = 100
"""Steps below which a run is over in Pyro before it is traced: tracing takes seconds, Pyro's messages milliseconds a step."""
WORTH_COMPILING = 150.0
"""How many times as long as tracing took a run has to be for compiling to be tried: both take longer the more is computed."""
WORTH_MEASURING = 20.0
"""Seconds of training below which the memory format is not measured either."""

logger = logging.getLogger(__name__)


def fastest(
    objective: Objective, x: Tensor, *, num_steps: int, backend: str = "auto", layout: str = "auto"
) -> tuple[dict[str, str], Graph | None]:
    """The backend and the memory format that take a run to its end soonest, compiling included; and the graph, if one was traced.

    Measured on a batch, without training on it. What is not "auto" is kept. In a run of seconds nothing is measured, in one of
    a few steps nothing is traced, and compiling is not tried where the whole run, at the pace of "eager", ends before it could
    pay off.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> fastest(Objective(VAE((1, 8, 8), 4)), torch.rand(2, 1, 8, 8), num_steps=10)[0]
        {'backend': 'pyro', 'layout': 'channels_last'}
    """
    convolutional = any(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in objective.modules())
    layouts = [layout] if layout != "auto" else list(LAYOUTS) if convolutional else ["contiguous"]
    if backend == "auto" and num_steps < WORTH_TRACING:
        return {"backend": "pyro", "layout": layouts[0]}, None
    if backend != "auto" and len(layouts) == 1:
        return {"backend": backend, "layout": layouts[0]}, None
    first = "eager" if backend == "auto" else backend
    seconds: dict[tuple[str, str], float] = {}
    traced: dict[tuple[str, str], float] = {}
    graphs: dict[tuple[str, str], Graph] = {}

    def measure(backend: str, layout: str) -> None:
        how = backend, layout
        seconds[how], traced[how], graphs[how] = timed(objective, x, backend=backend, layout=layout)

    with restored(list(objective.buffers())):
        for candidate in layouts:
            measure(first, candidate)
            if num_steps * seconds[first, candidate] < WORTH_MEASURING:
                break
        quickest = min(seconds, key=seconds.__getitem__)
        if backend == "auto" and num_steps * seconds[quickest] > WORTH_COMPILING * traced[quickest]:
            for candidate in layouts:
                try:
                    measure("inductor", candidate)
                except Exception as error:  # no C++ compiler, or an operation that it does not know: whatever torch raises
                    logger.warning("not compiled: %s", reason(error))
                    break
    best = min(seconds, key=seconds.__getitem__)
    shown = ", ".join(f"{' '.join(how)} {time * 1e3:.2f} ms" for how, time in seconds.items())
    logger.info("a step takes: %s; chosen: %s", shown, " ".join(best))
    return {"backend": best[0], "layout": best[1]}, graphs[best] if len(graphs) == 1 else None


def timed(objective: Objective, x: Tensor, *, backend: str, layout: str) -> tuple[float, float, Graph]:
    """Seconds a step, seconds until there was a first one, traced and compiled where it is, and the graph."""
    laid_out(objective.vae, layout)
    x = in_layout(x, layout)
    started = time.perf_counter()
    graph = compile_gradients(objective, x, backend=backend)
    graph(x)
    taken = time.perf_counter() - started
    logger.info("%s, %s: traced and ready in %.1f s", backend, layout, taken)
    return seconds_per_step(graph, x), taken, graph


def seconds_per_step(graph: Callable[[Tensor], Any], x: Tensor) -> float:
    """The median of a few runs, the first left out."""
    times = []
    for _ in range(8):
        started = time.perf_counter()
        graph(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
