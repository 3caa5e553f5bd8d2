"""Layers whose weights are chosen from a palette of a few values, times a scale for each channel: all that a file has to hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_mvae.nets.fold import CONVOLUTIONS, fold_batch_norm
from pyro_mvae.nets.quantized import replaced
from pyro_mvae.nets.rounding import convolve

BITS = (1, 2, 4, 6, 8)
"""Of an index, as Core ML has had them since iOS 16."""
FEWEST = 4
"""How many weights to a value a layer has at least: of fewer the palette would be a large part."""


class PalettizedConv(nn.Module):
    """A convolution, plain or transposed, each of whose weights is one of 2ᵇ values, times the scale of its output channel.

    w = scale[channel] palette[index]. In training scales and values move, each by the gradients of all its weights, and which
    weight has which value stays (Han et al., Deep Compression, 2016).

    Args:
        conv: the layer it takes the place of; its bias is kept, its weight is not.
        scale, palette, indices: of the channels, the values, and which of them each weight is.

    Example:
        >>> layer = PalettizedConv.of(nn.Conv2d(4, 8, 3), bits=2)
        >>> len(layer.chosen().unique()), layer.scale.shape
        (4, torch.Size([8]))
    """

    indices: Tensor

    def __init__(self, conv: Any, scale: Tensor, palette: Tensor, indices: Tensor):
        super().__init__()
        self.conv, self.scale, self.palette = conv, nn.Parameter(scale), nn.Parameter(palette)
        self.register_buffer("indices", indices)
        self.conv.weight = None

    @classmethod
    def of(cls, conv: Any, *, bits: int) -> PalettizedConv:
        """A convolution with the palette that suits its weights, each channel's divided by the largest."""
        weight = conv.weight.detach()
        scale = by_output(conv, weight).abs().amax((1, 3)).flatten()
        return cls(conv, scale, *clustered(weight / spread(conv, scale.clamp(min=1e-12)), bits=bits))

    def chosen(self) -> Tensor:
        """The value of each weight, not scaled."""
        return self.palette[self.indices.long().reshape(-1)].view(self.indices.shape)

    @property
    def weight(self) -> Tensor:
        """The weights that the layer has."""
        return self.chosen() * spread(self.conv, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.conv, x, self.weight)


def by_output(conv: Any, weight: Tensor) -> Tensor:
    """A convolution's weight as (groups, inputs of one, outputs of one, places of the kernel)."""
    grouped = weight.view(conv.groups, -1, *weight.shape[1:]).flatten(3)
    return grouped if conv.transposed else grouped.transpose(1, 2)


def spread(conv: Any, scale: Tensor) -> Tensor:
    """One number for each output channel, shaped so that it multiplies a convolution's weight.

    Example:
        >>> spread(nn.ConvTranspose2d(4, 6, 3, groups=2), torch.arange(6.0))[:, :, 0, 0]
        tensor([[0., 1., 2.],
                [0., 1., 2.],
                [3., 4., 5.],
                [3., 4., 5.]])
    """
    if not conv.transposed:
        return scale[:, None, None, None]
    return scale.view(conv.groups, -1).repeat_interleave(conv.in_channels // conv.groups, 0)[:, :, None, None]


class ScaleAndShift(nn.Module):
    """y = scale[channel] x + shift[channel]."""

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale[:, None, None]), nn.Parameter(shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


@torch.no_grad()
def clustered(weight: Tensor, *, bits: int) -> tuple[Tensor, Tensor]:
    """2ᵇ values and, for each weight, the number of the nearest: k-means in one dimension, begun at quantiles."""
    count, like = 2**bits, {"dtype": weight.dtype, "device": weight.device}
    values = weight.cpu().double().reshape(-1, 1).numpy()
    few, places = np.unique(values, return_inverse=True)
    if len(few) <= count:
        palette, indices = np.pad(few, (0, count - len(few)), mode="edge"), places
    else:
        from sklearn.cluster import KMeans  # slow to import

        begun = np.quantile(values, (np.arange(count) + 0.5) / count)[:, None]
        found: Any = KMeans(count, init=begun, n_init=1).fit(values)  # pyright: ignore[reportArgumentType]
        palette, indices = found.cluster_centers_[:, 0], found.labels_
    numbers = torch.as_tensor(indices.astype(np.uint8), device=weight.device).reshape(weight.shape)
    return torch.as_tensor(palette).to(**like), numbers


def palettized(net: nn.Module, *, bits: int, but: str | None = None) -> nn.Module:
    """A copy of `net`, batch normalisation folded, with palettes for all convolutions but those of very few weights.

    Args:
        but: the name of a layer that is left as it is.

    Example:
        >>> net = palettized(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), bits=2)
        >>> how_palettized(net)
        {'bits': 2, 'layers': ['0']}
    """
    net = fold_batch_norm(net)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, CONVOLUTIONS) and name != but and layer.weight.numel() >= FEWEST * 2**bits:
            net.set_submodule(name, PalettizedConv.of(layer, bits=bits))
    return net


def how_palettized(net: nn.Module) -> dict[str, Any] | None:
    """The bits of a net's palettes, and the layers that have one; None where there are none."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, PalettizedConv)}
    if not layers:
        return None
    return {"bits": (len(next(iter(layers.values())).palette) - 1).bit_length(), "layers": list(layers)}


def with_palettes(net: nn.Module, *, bits: int, layers: Sequence[str]) -> nn.Module:
    """`net`, made again into what `how_palettized` says of one; its values wait to be filled."""
    for name in layers:
        conv: Any = net.get_submodule(name)
        scale, palette = (conv.weight.new_zeros(size) for size in (conv.out_channels, 2**bits))
        net.set_submodule(name, PalettizedConv(conv, scale, palette, torch.zeros_like(conv.weight, dtype=torch.uint8)))
    return net


def with_scales(net: nn.Module) -> nn.Module:
    """A copy of a palettised net with plain convolutions again, whose weights are its values, and scales after them."""

    def apart(layer: Any) -> nn.Module:
        bias = torch.zeros_like(layer.scale) if layer.conv.bias is None else layer.conv.bias
        layer.conv.weight, layer.conv.bias = nn.Parameter(layer.chosen().detach()), None
        return nn.Sequential(layer.conv, ScaleAndShift(layer.scale.detach(), bias.detach()))

    return replaced(copy.deepcopy(net), {PalettizedConv: apart})


def with_weights(net: nn.Module) -> nn.Module:
    """A copy of a palettised net with plain convolutions again, which have its weights."""

    def plain(layer: Any) -> nn.Module:
        layer.conv.weight = nn.Parameter(layer.weight.detach())
        return layer.conv

    return replaced(copy.deepcopy(net), {PalettizedConv: plain})
