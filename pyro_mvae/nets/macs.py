"""Multiply-adds of a net."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from pyro_mvae.nets.modes import evaluating
from pyro_mvae.nets.palette import PalettizedConv
from pyro_mvae.nets.rounding import QuantizedConv

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, QuantizedConv, PalettizedConv)


@torch.no_grad()
def macs_of(net: nn.Module, example: Tensor) -> int:
    """Multiply-adds of one example, in linear and convolutional layers.

    Example:
        >>> macs_of(nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 5, 5))
        162
    """
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
