"""Fully connected nets, in the layers that every pass and exporter knows: `Gather` and `Spread` are their matrix products."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from pyro_mvae.nets.conv import Gather, Heads, Shape, Spread


class MLPEncoder(nn.Module):
    """x → loc and scale of q(z|x), by fully connected layers with ReLU.

    Args:
        image_shape: (channels, height, width).
        latent_dim: size of z.
        widths: units of the hidden layers but the last, from the image on.
        hidden: units of the last one.
        num_scales: see `Heads`.

    Shapes: (n, C, H, W) in [0, 1] → (n, latent_dim), (n, latent_dim).

    Example:
        >>> import torch
        >>> loc, scale = MLPEncoder((1, 28, 28), 10, widths=(500, 500), hidden=2000)(torch.rand(2, 1, 28, 28))
        >>> loc.shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_dim: int,
        *,
        widths: Sequence[int] = (),
        hidden: int = 400,
        num_scales: int | None = None,
    ):
        super().__init__()
        channels, height, width = image_shape
        sizes = [*widths, hidden]
        layers: list[nn.Module] = [Gather(channels, sizes[0], (height, width)), nn.ReLU()]
        for narrow, wide in itertools.pairwise(sizes):
            layers += [Gather(narrow, wide, 1), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.heads = Heads(hidden, latent_dim, num_scales)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        return self.heads(self.body(x))


class MLPDecoder(nn.Module):
    """z → the location of p(x|z) on the likelihood's own scale, the mirror image of `MLPEncoder`.

    Args: as `MLPEncoder`, in its order.

    Shapes: (n, latent_dim) → (n, C, H, W).

    Example:
        >>> import torch
        >>> MLPDecoder((3, 9, 8), 16)(torch.randn(2, 16)).shape
        torch.Size([2, 3, 9, 8])
    """

    def __init__(self, image_shape: Shape, latent_dim: int, *, widths: Sequence[int] = (), hidden: int = 400):
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([latent_dim, hidden, *reversed(widths)]):
            layers += [Gather(before, after, 1), nn.ReLU()]
        layers.append(Spread([hidden, *reversed(widths)][-1], channels, (height, width)))
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z[:, :, None, None])
