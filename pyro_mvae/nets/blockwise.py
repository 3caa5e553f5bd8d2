"""Weights of 4 bits with a scale for each block of inputs: what Core ML packages can hold since iOS 18."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from pyro_mvae.nets.fold import CONVOLUTIONS
from pyro_mvae.nets.rounding import in_float16

BLOCK, HIGHEST = 32, 7


def block_size(channels: int) -> int:
    """How many inputs share a scale: the largest power of two that divides their number, 32 at most.

    Example:
        >>> block_size(128), block_size(20), block_size(7)
        (32, 4, 1)
    """
    size = BLOCK
    while channels % size:
        size //= 2
    return size


@torch.no_grad()
def in_blocks(weight: Tensor, *, transposed: bool) -> Tensor:
    """A convolution's weight with each value rounded to one of fifteen, −7 to 7 times the scale of its output and its block.

    Example:
        >>> in_blocks(torch.tensor([0.0, 1.2, -2.9, 7.0]).view(1, 4, 1, 1), transposed=False).flatten().tolist()
        [0.0, 1.0, -3.0, 7.0]
    """
    by_output = weight.transpose(0, 1) if transposed else weight
    size = block_size(by_output.shape[1])
    blocks = by_output.unflatten(1, (-1, size))
    scale = in_float16(blocks.abs().amax((2, 3, 4), keepdim=True) / HIGHEST)
    rounded = (torch.round(blocks / scale).clamp(-HIGHEST, HIGHEST) * scale).flatten(1, 2)
    return (rounded.transpose(0, 1) if transposed else rounded).contiguous()


def blockwise(net: nn.Module) -> nn.Module:
    """A copy of a net whose convolutions' weights are rounded `in_blocks`, as floats.

    Example:
        >>> net = blockwise(nn.Sequential(nn.Conv2d(4, 2, 3)))
        >>> len(net[0].weight[0].unique()) <= 15
        True
    """
    net = copy.deepcopy(net)
    for layer in net.modules():
        if isinstance(layer, CONVOLUTIONS):
            layer.weight.data = in_blocks(layer.weight.data, transposed=layer.transposed)
    return net
