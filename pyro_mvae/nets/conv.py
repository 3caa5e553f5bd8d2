"""Convolutional encoder and decoder, the blocks they share with the mobile nets, and the geometry of halving an image.

Every layer is a convolution: the last map is reduced by a kernel of its own extent instead of being flattened, and the decoder
opens with a transposed one. Channels then stay channels from end to end, which is what structured pruning can follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_mvae.nets.channels import keep_outputs

Shape = tuple[int, int, int]
Net = TypeVar("Net", bound=nn.Module)


def halvings(size: int, num_stages: int) -> list[int]:
    """Sizes of a map that strided convolutions halve, rounding up.

    Example:
        >>> halvings(28, 3)
        [28, 14, 7, 4]
    """
    sizes = [size]
    for _ in range(num_stages):
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def block(layer: nn.Module, channels: int) -> nn.Sequential:
    """A convolution, its batch normalisation and ReLU."""
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


class Doubling(nn.ConvTranspose2d):
    """A transposed convolution from ⌈n/2⌉ to n in each direction, see `doubling`.

    In training, that of a single channel and an even n is computed as a matrix product whose blocks are added where they overlap,
    two to three times faster than a convolution's kernels do it. Its weights may then be other ones for each datum,
    (n, in_channels, 1, 4, 4).
    """

    @property
    def is_product(self) -> bool:
        """Whether it is computed as a matrix product."""
        return self.training and self.out_channels == 1 and self.kernel_size == (4, 4)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not self.is_product:
            return super().forward(input, output_size)
        places, weight = input.permute(0, 2, 3, 1), self.weight.flatten(-3)
        if weight.ndim == 2:
            product = (places.flatten(0, 2) @ weight).unflatten(0, places.shape[:3])
        else:
            product = (places.flatten(1, 2) @ weight).unflatten(1, places.shape[1:3])
        blocks = product.unflatten(3, (4, 4))
        image = overlapped(overlapped(blocks, 1, 3), 2, 3)[:, None]
        return image if self.bias is None else image + self.bias[:, None, None]


def doubling(in_channels: int, out_channels: int, targets: Sequence[int]) -> Doubling:
    """From ⌈n/2⌉ to n in each direction: a kernel of 4 where n is even, of 3 where it is odd."""
    height, width = (3 if n % 2 else 4 for n in targets)
    return Doubling(in_channels, out_channels, (height, width), stride=2, padding=1)


def overlapped(blocks: Tensor, places: int, kernel: int) -> Tensor:
    """Blocks of 4, one each second place from −1 on, added where they overlap; `places` and `kernel` are dimensions, one is left.

    Example:
        >>> import torch
        >>> overlapped(torch.tensor([[1, 2, 3, 4], [10, 20, 30, 40]]), 0, 1)
        tensor([ 2, 13, 24, 30])
    """
    first, second, third, fourth = blocks.unbind(kernel)
    size, none = blocks.shape[places], torch.zeros_like(first.narrow(places, 0, 1))
    even = second + torch.cat([none, fourth.narrow(places, 0, size - 1)], places)
    odd = third + torch.cat([first.narrow(places, 1, size - 1), none], places)
    return torch.stack([even, odd], places + 1).flatten(places, places + 1)


class Halving(nn.Conv2d):
    """A convolution from n to ⌈n/2⌉ in each direction, the first of a net.

    In training, that of a single channel is computed as a matrix product of what its kernel covers: twice as fast.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.in_channels > 1:
            return super().forward(input)
        around = F.pad(input[:, 0], (1, 1, 1, 1))
        rows, columns = ((size - 1) // 2 * 2 + 1 for size in input.shape[2:])  # from the first place of a kernel to its last
        covered = torch.stack([around[:, r : r + rows : 2, c : c + columns : 2] for r in range(3) for c in range(3)], -1)
        maps = F.linear(covered.flatten(0, 2), self.weight.flatten(1), self.bias)
        return maps.unflatten(0, covered.shape[:3]).permute(0, 3, 1, 2)


class Gather(nn.Conv2d):
    """A convolution whose kernel is as large as its input: one place, all of the map.

    In training it is computed as the matrix product that it is, several times faster than a convolution's kernels do it.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.groups > 1:
            return super().forward(input)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]


class Spread(nn.ConvTranspose2d):
    """A transposed convolution of a single place: the opposite of `Gather`, and computed alike in training.

    Its stride, which a single place does not need, is its kernel: XNNPACK then knows that no two kernels overlap.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Any, **more: Any):
        super().__init__(in_channels, out_channels, kernel_size, **{"stride": kernel_size, **more})

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not self.training:
            return super().forward(input, output_size)
        product = F.linear(input.flatten(1), self.weight.flatten(1).T).unflatten(1, self.weight.shape[1:])
        return product if self.bias is None else product + self.bias[:, None, None]


def channels_last(net: Net) -> Net:
    """Put a net's convolutions into the memory format that CPUs compute them fastest in, those of `Gather` and `Spread` excepted.

    Example:
        >>> import torch
        >>> net = channels_last(nn.Sequential(nn.Conv2d(2, 2, 3), Gather(2, 2, 3)))
        >>> [layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in net]
        [True, False]
    """
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for layer in net.modules():
        if isinstance(layer, Gather | Spread) and layer.weight is not None:  # with a palette, or integers, it has none of its own
            layer.weight.data = layer.weight.data.contiguous()
    return net


def swift(net: Net) -> Net:
    """A net that is only evaluated, never exported: `channels_last`; what can be a matrix product is one, as in training.

    Example:
        >>> import torch
        >>> net, x = nn.Sequential(Gather(2, 3, 4)).eval(), torch.rand(1, 2, 4, 4)
        >>> torch.allclose(net(x), swift(net)(x), atol=1e-6)
        True
    """
    for layer in channels_last(net).modules():
        if isinstance(layer, Gather | Spread | Halving | Doubling):
            layer.train()
    return net


class Heads(nn.Module):
    """Two heads over one feature vector: the loc and the scale of q(z|x).

    Two layers and not one split in halves: a split can't be pruned by torch-pruning and falls out of XNNPACK's delegate.

    Args:
        num_scales: how many scales there are; as many as dimensions of z when None; with 0 the loc is all that is returned.
    """

    def __init__(self, in_channels: int, latent_dim: int, num_scales: int | None = None):
        super().__init__()
        self.loc = Gather(in_channels, latent_dim, 1)
        self.log_scale = None if num_scales == 0 else Gather(in_channels, num_scales or latent_dim, 1)

    def keep(self, kept: Sequence[int]) -> None:
        """Leave these dimensions of z alone, in place."""
        before = self.loc.out_channels
        keep_outputs(self.loc, kept)
        if self.log_scale is not None and self.log_scale.out_channels == before:
            keep_outputs(self.log_scale, kept)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        if self.log_scale is None:
            return self.loc(h).flatten(1)
        loc, log_scale = self.loc(h), self.log_scale(h)  # both before a reshape, see `export.executorch.read_late`
        return loc.flatten(1), log_scale.flatten(1).exp()


class ConvEncoder(nn.Module):
    """x → loc and scale of q(z|x), by strided convolutions.

    Args:
        image_shape: (channels, height, width), any size from 8 up.
        latent_dim: size of z.
        widths: channels after each halving.
        hidden: units of the layer between the last map and the heads.
        num_scales: see `Heads`.

    Shapes: (n, C, H, W) in [0, 1] → (n, latent_dim), (n, latent_dim).

    Example:
        >>> import torch
        >>> loc, scale = ConvEncoder((1, 28, 28), 16)(torch.rand(2, 1, 28, 28))
        >>> loc.shape, bool((scale > 0).all())
        (torch.Size([2, 16]), True)
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_dim: int,
        *,
        widths: Sequence[int] = (24, 48),
        hidden: int = 128,
        num_scales: int | None = None,
    ):
        super().__init__()
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for out in widths:
            layers.append(block(Halving(channels, out), out))
            channels = out
        extent = (halvings(height, len(widths))[-1], halvings(width, len(widths))[-1])
        layers.append(block(Gather(channels, hidden, extent), hidden))
        self.body = nn.Sequential(*layers)
        self.heads = Heads(hidden, latent_dim, num_scales)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        return self.heads(self.body(x))


class ConvDecoder(nn.Module):
    """z → the location of p(x|z) on the likelihood's own scale (logits for Bernoulli), by transposed convolutions.

    Args: as `ConvEncoder`, in the encoder's order: the decoder mirrors it.

    Shapes: (n, latent_dim) → (n, C, H, W).

    Example:
        >>> import torch
        >>> ConvDecoder((3, 33, 32), 16)(torch.randn(2, 16)).shape
        torch.Size([2, 3, 33, 32])
    """

    def __init__(self, image_shape: Shape, latent_dim: int, *, widths: Sequence[int] = (24, 48), hidden: int = 128):
        super().__init__()
        channels, height, width = image_shape
        heights, columns = halvings(height, len(widths)), halvings(width, len(widths))
        layers: list[nn.Module] = [
            block(nn.Conv2d(latent_dim, hidden, 1), hidden),
            block(Spread(hidden, widths[-1], (heights[-1], columns[-1])), widths[-1]),
        ]
        for i in reversed(range(1, len(widths))):
            layer = doubling(widths[i], widths[i - 1], (heights[i], columns[i]))
            layers.append(block(layer, widths[i - 1]))
        layers.append(doubling(widths[0], channels, (height, width)))
        self.body = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z[:, :, None, None])
