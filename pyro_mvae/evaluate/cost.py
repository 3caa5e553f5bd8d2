"""What a model costs: parameters, multiply-adds, and time on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_mvae.models import VAE
from pyro_mvae.models.vq_vae import Codebook
from pyro_mvae.nets.modes import evaluating
from pyro_mvae.nets.palette import PalettizedConv
from pyro_mvae.nets.quantized import QuantizedConv

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, QuantizedConv, PalettizedConv)


def num_params(model: nn.Module) -> int:
    """Numbers a model learned, those of a codebook, which no gradient moves, included.

    Example:
        >>> num_params(nn.Linear(3, 2))
        8
    """
    codebooks = [module.vectors for module in model.modules() if isinstance(module, Codebook)]
    return sum(tensor.numel() for tensor in [*model.parameters(), *codebooks])


@torch.no_grad()
def num_macs(model: VAE) -> int:
    """Multiply-adds to encode one image and decode it again, in linear and convolutional layers.

    Example:
        >>> num_macs(VAE((1, 28, 28))) > 10**6
        True
    """
    return sum(macs_of(net, example) for net, example in model.deployable().values())


def macs_of(net: nn.Module, example: Tensor) -> int:
    counted: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        conv = layer.conv if isinstance(layer, QuantizedConv | PalettizedConv) else layer
        # each weight meets every place of the map it strides over: the input's if transposed, else the output's
        places = inputs[0] if isinstance(conv, nn.ConvTranspose2d) else output
        weight = layer.weight if isinstance(layer, PalettizedConv) else conv.weight
        assert isinstance(weight, Tensor)
        counted.append(weight.numel() * places[0, 0].numel() if places.ndim == 4 else weight.numel())

    with evaluating(net), ExitStack() as stack:
        for layer in net.modules():
            if isinstance(layer, LAYERS):
                stack.callback(layer.register_forward_hook(count).remove)
        net(example)
    return sum(counted)


@dataclass(frozen=True)
class Latency:
    """Microseconds a call, at the 50th and the 90th percentile."""

    p50_us: float
    p90_us: float


def latency(run: Callable[[Tensor], object], x: Tensor, *, runs: int = 300, warm_up: int = 30) -> Latency:
    """Time a function on one thread of this machine. It is no phone's latency, and says little of one.

    Example:
        >>> latency(torch.sigmoid, torch.zeros(4), runs=10).p50_us > 0
        True
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(warm_up):
            run(x)
        times = [timed(run, x) for _ in range(runs)]
    finally:
        torch.set_num_threads(threads)
    deciles = statistics.quantiles(times, n=10)
    return Latency(round(statistics.median(times), 1), round(deciles[8], 1))


def timed(run: Callable[[Tensor], object], x: Tensor) -> float:
    """Microseconds of one call."""
    start = time.perf_counter_ns()
    run(x)
    return (time.perf_counter_ns() - start) / 1000
