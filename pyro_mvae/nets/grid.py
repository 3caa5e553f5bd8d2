"""Nets whose code is a map: a vector at each place of a coarse grid, as vector quantisation wants it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_mvae.nets.conv import Shape, block, doubling, halvings
from pyro_mvae.nets.kinds import check_widths
from pyro_mvae.nets.mlp import MLPDecoder, MLPEncoder
from pyro_mvae.nets.mobile import separable


def grid_of(image_shape: Shape, num_halvings: int) -> tuple[int, int]:
    """Height and width of the grid that so many halvings leave.

    Example:
        >>> grid_of((1, 28, 28), 2)
        (7, 7)
    """
    return halvings(image_shape[1], num_halvings)[-1], halvings(image_shape[2], num_halvings)[-1]


def full(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution and what follows it, where mobile nets have `separable` ones."""
    return block(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1), out_channels)


class GridEncoder(nn.Module):
    """x → a vector at each place of a grid, flat, the vectors' dimensions first.

    Args:
        image_shape: (channels, height, width), any size from 8 up.
        code_dim: size of each vector.
        widths: channels after each halving.
        hidden: channels of the 3×3 convolution on the grid.
        convolution: what makes a block of 3×3, see `full`; for mobile nets `separable`.

    Shapes: (n, C, H, W) in [0, 1] → (n, code_dim · places).

    Example:
        >>> import torch
        >>> GridEncoder((1, 28, 28), 8)(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 392])
    """

    def __init__(
        self,
        image_shape: Shape,
        code_dim: int,
        *,
        widths: Sequence[int] = (24, 48),
        hidden: int = 64,
        convolution: Callable[..., nn.Module] = full,
    ):
        super().__init__()
        layers: list[nn.Module] = [full(image_shape[0], widths[0], stride=2)]
        for narrow, wide in itertools.pairwise(widths):
            layers.append(convolution(narrow, wide, stride=2))
        layers += [convolution(widths[-1], hidden), nn.Conv2d(hidden, code_dim, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).flatten(1)


class GridDecoder(nn.Module):
    """The vectors of a grid → the location of p(x|z) on the likelihood's own scale, the mirror image of `GridEncoder`.

    Its upsampling is not separable in mobile nets either, see `MobileDecoder`.

    Args: as `GridEncoder`, in its order.

    Shapes: (n, code_dim · places) → (n, C, H, W).

    Example:
        >>> import torch
        >>> GridDecoder((3, 33, 32), 8)(torch.randn(2, 8 * 9 * 8)).shape
        torch.Size([2, 3, 33, 32])
    """

    def __init__(
        self,
        image_shape: Shape,
        code_dim: int,
        *,
        widths: Sequence[int] = (24, 48),
        hidden: int = 64,
        convolution: Callable[..., nn.Module] = full,
    ):
        super().__init__()
        channels, height, width = image_shape
        self.grid = (code_dim, *grid_of(image_shape, len(widths)))
        heights, columns = halvings(height, len(widths)), halvings(width, len(widths))
        layers: list[nn.Module] = [full(code_dim, hidden)]
        if convolution is not full:  # a depthwise layer on the code itself would tie what follows to it
            layers = [block(nn.Conv2d(code_dim, hidden, 1), hidden), convolution(hidden, hidden)]
        inner = [hidden, *reversed(widths[:-1])]
        for i, (before, after) in enumerate(itertools.pairwise(inner)):
            place = len(widths) - 1 - i
            layers.append(block(doubling(before, after, (heights[place], columns[place])), after))
        layers.append(doubling(inner[-1], channels, (height, width)))
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z.reshape(z.shape[0], *self.grid))


def make_grid_nets(
    kind: str, image_shape: Shape, code_dim: int, *, widths: Sequence[int], hidden: int, mlp_places: int
) -> tuple[nn.Module, nn.Module, int]:
    """An encoder, x → vectors, a decoder, vectors → the likelihood's location, and the number of places, for a kind of nets.

    "mlp" nets have no grid: they are given `mlp_places`.

    Example:
        >>> make_grid_nets("conv", (1, 28, 28), 8, widths=(8, 16), hidden=32, mlp_places=16)[2]
        49
    """
    sizes: tuple[Shape, int] = (image_shape, code_dim)
    if kind == "mlp":
        sizes = (image_shape, code_dim * mlp_places)
        encoder = MLPEncoder(*sizes, widths=widths, hidden=hidden, num_scales=0)
        return encoder, MLPDecoder(*sizes, widths=widths, hidden=hidden), mlp_places
    check_widths(kind, widths)
    height, width = grid_of(image_shape, len(widths))
    how: dict[str, Any] = {"widths": widths, "hidden": hidden, "convolution": separable if kind == "mobile" else full}
    encoder, decoder = (net(*sizes, **how) for net in (GridEncoder, GridDecoder))
    return encoder, decoder, height * width
