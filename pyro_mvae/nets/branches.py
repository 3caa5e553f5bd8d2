"""Convolutions that are trained as several side by side, and used as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class Branches(nn.Module):
    """Σ of a k×k convolution, a 1×1 one and, where shapes allow, the input itself, each with a batch normalisation of its own.

    It trains as a residual net does. `merged` is the one k×k convolution that computes the same in evaluation mode:
    `FoldAndFuse`, `Quantize` and the exporters put it in its place, so that a phone computes one.

    Args:
        kernel_size: k, odd.
        groups: as of `nn.Conv2d`; with as many as channels all branches are depthwise.

    Shapes: (n, in_channels, H, W) → (n, out_channels, ⌈H / stride⌉, ⌈W / stride⌉).

    Raises:
        ValueError: for an even kernel.

    Source: Ding et al., RepVGG: Making VGG-style ConvNets Great Again, 2021.

    Example:
        >>> layer, x = Branches(4, 4).eval(), torch.rand(2, 4, 8, 8)
        >>> torch.allclose(layer(x), layer.merged()(x), atol=1e-5)
        True
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, groups: int = 1):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}, expected an odd number: the branches have one centre")
        padding = kernel_size // 2
        self.wide = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False)
        self.narrow = nn.Conv2d(in_channels, out_channels, 1, stride=stride, groups=groups, bias=False)
        self.wide_norm, self.narrow_norm = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)
        same = in_channels == out_channels and stride == 1
        self.input_norm = nn.BatchNorm2d(out_channels) if same else None

    def forward(self, x: Tensor) -> Tensor:
        total = self.wide_norm(self.wide(x)) + self.narrow_norm(self.narrow(x))
        return total if self.input_norm is None else total + self.input_norm(x)

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """One convolution, with a bias, that computes what this does in evaluation mode, to float32 rounding."""
        conv, margin = self.wide, self.wide.kernel_size[0] // 2
        terms = [(conv.weight, self.wide_norm), (F.pad(self.narrow.weight, [margin] * 4), self.narrow_norm)]
        if self.input_norm is not None:
            through = torch.zeros_like(conv.weight)
            places = torch.arange(conv.out_channels, device=through.device)
            through[places, places % through.shape[1], margin, margin] = 1
            terms.append((through, self.input_norm))
        folded = [normalised(weight, norm) for weight, norm in terms]
        one = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            stride=conv.stride[0],
            padding=margin,
            groups=conv.groups,
        )
        one.weight = nn.Parameter(torch.stack([weight for weight, _ in folded]).sum(0))
        one.bias = nn.Parameter(torch.stack([bias for _, bias in folded]).sum(0))
        return one.to(conv.weight.device).train(self.training)


def normalised(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The weight and the bias of a convolution that has its normalisation in it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    folded, bias = fuse_conv_bn_weights(
        nn.Parameter(weight), None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return folded.detach(), bias.detach()
