"""Mobile nets: an encoder of depthwise-separable convolutions, a decoder of a few narrow transposed ones.

The decoder is not separable: at 16 to 64 channels a transposed 4×4 kernel costs XNNPACK no more time than the two layers that
would replace it, and reaches a better bound at the same number of bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from pyro_mvae.nets.conv import Halving, Heads, Shape, Spread, block, doubling, halvings


def separable(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """A 3×3 depthwise convolution, which looks around, and a 1×1 one, which mixes channels."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels)
    return nn.Sequential(block(depthwise, in_channels), block(nn.Conv2d(in_channels, out_channels, 1), out_channels))


class MobileEncoder(nn.Module):
    """x → loc and scale of q(z|x), at a small fraction of `ConvEncoder`'s multiply-adds.

    Args:
        image_shape: (channels, height, width), any size from 8 up.
        latent_dim: size of z.
        widths: channels after each halving.
        hidden: units between the last map, which a depthwise kernel of its own extent reduces, and the heads.
        num_scales: see `Heads`.

    Shapes: (n, C, H, W) in [0, 1] → (n, latent_dim), (n, latent_dim).

    Example:
        >>> import torch
        >>> loc, scale = MobileEncoder((1, 28, 28), 16)(torch.rand(2, 1, 28, 28))
        >>> loc.shape
        torch.Size([2, 16])
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_dim: int,
        *,
        widths: Sequence[int] = (16, 32, 64),
        hidden: int = 128,
        num_scales: int | None = None,
    ):
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = [block(Halving(channels, widths[0]), widths[0])]
        for narrow, wide in itertools.pairwise(widths):
            layers.append(separable(narrow, wide, stride=2))
        extent = (halvings(height, len(widths))[-1], halvings(width, len(widths))[-1])
        layers.append(block(nn.Conv2d(widths[-1], widths[-1], extent, groups=widths[-1]), widths[-1]))
        layers.append(block(nn.Conv2d(widths[-1], hidden, 1), hidden))
        self.body = nn.Sequential(*layers)
        self.heads = Heads(hidden, latent_dim, num_scales)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        return self.heads(self.body(x))


def default_widths(image_shape: Shape) -> tuple[int, ...]:
    """Channels after each halving, until the map is at most 4 × 4.

    Example:
        >>> default_widths((1, 28, 28)), default_widths((3, 64, 64))
        ((16, 32, 64), (16, 16, 32, 64))
    """
    stages, size = 0, max(image_shape[1:])
    while size > 4:
        size, stages = (size + 1) // 2, stages + 1
    return ((16,) * max(stages - 2, 0) + (32, 64))[-max(stages, 1) :]


class MobileDecoder(nn.Module):
    """z → the location of p(x|z) on the likelihood's own scale, by overlapping transposed convolutions.

    Args:
        image_shape: (channels, height, width), any size from 8 up.
        latent_dim: size of z.
        widths: channels of the maps from the largest to the smallest, as in `MobileEncoder`.

    Shapes: (n, latent_dim) → (n, C, H, W).

    Example:
        >>> import torch
        >>> MobileDecoder((1, 28, 28), 16)(torch.randn(2, 16)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(self, image_shape: Shape, latent_dim: int, *, widths: Sequence[int] = (16, 32, 64)):
        super().__init__()
        channels, height, width = image_shape
        heights, columns = halvings(height, len(widths)), halvings(width, len(widths))
        layers: list[nn.Module] = [block(Spread(latent_dim, widths[-1], (heights[-1], columns[-1])), widths[-1])]
        for i in reversed(range(1, len(widths))):
            layers.append(block(doubling(widths[i], widths[i - 1], (heights[i], columns[i])), widths[i - 1]))
        layers.append(doubling(widths[0], channels, (height, width)))
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z[:, :, None, None])
