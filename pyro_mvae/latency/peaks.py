"""What this machine can do at most on one thread, multiply-adds and bytes a second: what nets reach is a share of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_mvae.export.executorch import loaded, lowered
from pyro_mvae.latency.timing import microseconds, on_threads, ready
from pyro_mvae.nets.quantized import as_integers, quantized

GEMM_SIZE = 1024
COPIED_BYTES = 64 * 2**20
CONVOLUTIONS = ((64, 64, 3, 56), (256, 256, 3, 14), (512, 512, 1, 14))
"""Channels in and out, kernel, and side of the map: large enough that calls cost nothing, small enough for caches."""
RUNS = 15


@dataclass(frozen=True)
class Peaks:
    """The most that was seen on one thread: giga multiply-adds a second, and gigabytes a second read and written by a copy.

    Attributes:
        gemm_float32: a product of matrices of 1024 by 1024, in PyTorch.
        conv_float32, conv_int8: the fastest of a few large convolutions, in a `.pte` for XNNPACK.
        copy: of 64 MiB, more than caches hold; bytes read and bytes written both count.
    """

    gemm_float32: float
    conv_float32: float
    conv_int8: float
    copy: float

    def macs_per_second(self, precision: str) -> float:
        """What arithmetic of a precision is held against: a file's weights may be narrower than what it computes in.

        Example:
            >>> Peaks(40.0, 35.0, 90.0, 10.0).macs_per_second("int8")
            90000000000.0
        """
        return 1e9 * (self.conv_int8 if precision == "int8" else max(self.gemm_float32, self.conv_float32))

    def roofline(self, precision: str, *, macs: int, moved: int) -> float:
        """Multiply-adds a second that arithmetic and memory allow, where `moved` bytes come from memory at each call.

        Example:
            >>> Peaks(40.0, 35.0, 90.0, 10.0).roofline("int8", macs=1000, moved=1000)
            10000000000.0
        """
        return min(self.macs_per_second(precision), 1e9 * self.copy * macs / moved)


def measured_peaks() -> Peaks:
    """Measure this machine; some seconds."""
    with on_threads(1), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        a, b = (torch.rand(GEMM_SIZE, GEMM_SIZE) for _ in range(2))
        gemm = GEMM_SIZE**3 / least(lambda: torch.mm(a, b)) / 1e3
        source, target = (torch.zeros(COPIED_BYTES, dtype=torch.uint8) for _ in range(2))
        copy = 2 * COPIED_BYTES / least(lambda: target.copy_(source)) / 1e3
        float32, int8 = (max(of_convolution(*sizes, integers=integers) for sizes in CONVOLUTIONS) for integers in (False, True))
    return Peaks(*(round(figure, 2) for figure in (gemm, float32, int8, copy)))


def of_convolution(in_channels: int, out_channels: int, kernel: int, side: int, *, integers: bool) -> float:
    """Giga multiply-adds a second of one convolution with its ReLU.

    Example:
        >>> of_convolution(8, 8, 3, 8, integers=True) > 0
        True
    """
    net: nn.Module = nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2), nn.ReLU())
    x = torch.rand(1, in_channels, side, side)
    if integers:
        net = quantized(net)
        net.train()(x)
        net = as_integers(net.eval())
    _, run = loaded(lowered(torch.export.export(net.eval(), (x,), strict=False)))
    return in_channels * out_channels * kernel**2 * side**2 / least(ready(run, x)) / 1e3


def least(run: Callable[[], object]) -> float:
    """Microseconds of the fastest of some calls: what disturbs can only slow down."""
    for _ in range(3):
        run()
    return min(microseconds(run) for _ in range(RUNS))


def bytes_moved(weights: int, *tensors: Tensor) -> int:
    """Bytes that a call reads and writes at the least: weights once, inputs and outputs in float32 once.

    Example:
        >>> bytes_moved(100, torch.zeros(2, 3))
        124
    """
    return weights + sum(4 * tensor.numel() for tensor in tensors)
