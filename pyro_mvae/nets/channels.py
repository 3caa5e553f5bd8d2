"""Layers with some of their channels taken away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


def keep_inputs(layer: Layer, kept: Sequence[int]) -> None:
    """Leave a layer of one group these of its input channels, in place.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> keep_inputs(layer, [0, 2])
        >>> layer
        Linear(in_features=2, out_features=2, bias=True)
    """
    layer.weight = selected(layer.weight, kept, axis=0 if isinstance(layer, nn.ConvTranspose2d) else 1)
    setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(kept))


def keep_outputs(layer: Layer, kept: Sequence[int]) -> None:
    """Leave a layer of one group these of its output channels, in place.

    Example:
        >>> layer = nn.ConvTranspose2d(3, 5, 2)
        >>> keep_outputs(layer, [1, 4])
        >>> layer.weight.shape, layer.bias.shape
        (torch.Size([3, 2, 2, 2]), torch.Size([2]))
    """
    layer.weight = selected(layer.weight, kept, axis=1 if isinstance(layer, nn.ConvTranspose2d) else 0)
    if layer.bias is not None:
        layer.bias = selected(layer.bias, kept)
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(kept))


def selected(parameter: Tensor, kept: Sequence[int], *, axis: int = 0) -> nn.Parameter:
    """A parameter with these places of one of its axes alone."""
    return nn.Parameter(parameter.detach().index_select(axis, torch.as_tensor(kept, device=parameter.device)))
