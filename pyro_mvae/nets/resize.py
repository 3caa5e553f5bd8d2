"""Layers cut to the widths of the tensors they are to hold: how a pruned net is read back from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mvae.nets.fold import CONVOLUTIONS
from pyro_mvae.nets.palette import PalettizedConv


def resize(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give each convolution and batch normalisation of `net` the numbers of channels that `tensors`, a state, has for it.

    Kernels, strides and the order of layers stay; layers that `tensors` does not name are left alone.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
        >>> resize(net, nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)).state_dict())
        >>> net[0].out_channels, net[1].num_features
        (5, 5)
    """
    for name, layer in net.named_modules():
        if isinstance(layer, PalettizedConv) and (indices := tensors.get(f"{name}.indices")) is not None:
            conv: Any = layer.conv
            resize_convolution(conv, indices)
            layer.indices = torch.zeros_like(indices)
            layer.scale = nn.Parameter(torch.zeros(conv.out_channels))
            conv.weight = None
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(layer, nn.BatchNorm2d):
            layer.__init__(len(weight), eps=layer.eps, momentum=layer.momentum)
        elif isinstance(layer, CONVOLUTIONS) and weight.ndim == 4:
            resize_convolution(layer, weight)


def resize_convolution(layer: nn.Conv2d | nn.ConvTranspose2d, weight: Tensor) -> None:
    groups = len(weight) if layer.groups > 1 else 1
    ins, outs = (len(weight), weight.shape[1]) if layer.transposed else (weight.shape[1] * groups, len(weight))
    layer.in_channels, layer.out_channels, layer.groups = ins, outs, groups
    layer.weight = nn.Parameter(weight.new_zeros(weight.shape, dtype=torch.float32))
    if layer.bias is not None:
        layer.bias = nn.Parameter(weight.new_zeros(outs, dtype=torch.float32))
