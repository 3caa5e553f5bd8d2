"""Channels between two convolutions made about equally large, so that one scale serves them all: exact, and free on the phone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyro_mvae.nets.fold import CONVOLUTIONS, call_modules

MOST = 64.0
"""What a channel is made larger by at most: values beyond those that were seen, of one that hardly moves, are not cut off."""

Conv = nn.Conv2d | nn.ConvTranspose2d


@torch.no_grad()
def equalize(net: nn.Module, run: Callable[[], Any], *, depthwise_only: bool = False, but: nn.Module | None = None) -> None:
    """Scale channels up where they leave a convolution, and down again where the next one reads them, in place.

    With r_c the largest value of channel c, and w_c its largest weight as a share of the largest of the output that it is part
    of, the scale is the power of two below w_c maxᵢ rᵢ / r_c, from 1 to 64: activations are then as unequal as weights were, and
    the other way round. A depthwise convolution, whose weights have a scale for each channel, has w_c = 1: all its inputs become
    equally large. The net computes the same: a positive scale passes a ReLU, and one of a power of two rounds nothing.

    Args:
        net: with batch normalisation folded.
        run: lets inputs pass through the net, by which r is measured.
        depthwise_only: whether weights that share a scale are left as they are: those of few bits can't be more unequal.
        but: a convolution whose weights are left as they are.

    Source: Nagel and others, Data-Free Quantization Through Weight Equalization and Bias Correction, 2019.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 3, groups=2)).eval()
        >>> net[0].weight.data[:], net[0].bias.data[:] = torch.tensor([1.0, 8.0])[:, None, None, None], 0.0
        >>> x = torch.rand(4, 1, 8, 8)
        >>> before = net(x)
        >>> equalize(net, lambda: net(x))
        >>> net[0].weight.flatten().tolist(), torch.equal(net(x), before)
        ([8.0, 8.0], True)
    """
    pairs = [
        (first, second) for first, second in adjacent(net) if second is not but and (is_depthwise(second) or not depthwise_only)
    ]
    largest: dict[nn.Module, Tensor] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen = inputs[0].abs().amax((0, 2, 3))
        largest[layer] = torch.maximum(largest.get(layer, seen), seen)

    handles = [second.register_forward_pre_hook(look) for _, second in pairs]
    run()
    for handle in handles:
        handle.remove()
    for first, second in pairs:
        rescale(first, second, scales_of(largest[second], second))


def is_depthwise(conv: Conv) -> bool:
    return conv.groups == conv.in_channels


def scales_of(largest: Tensor, second: Conv) -> Tensor:
    """What each channel is made larger by, by its largest value and the convolution that reads it."""
    shares = largest / largest.amax().clamp(min=torch.finfo(largest.dtype).tiny)
    return (weight_shares(second) / shares.clamp(min=1 / MOST)).clamp(min=1.0).log2().floor().exp2()


def weight_shares(conv: Conv) -> Tensor:
    """The largest weight of each input channel, as a share of the largest of the output channel that it is part of."""
    grouped = by_group(conv).detach().abs().flatten(3).amax(3)
    return (grouped / grouped.amax(2, keepdim=True).clamp(min=torch.finfo(grouped.dtype).tiny)).amax(1).flatten()


def by_group(conv: Conv) -> Tensor:
    """A view of a convolution's weights: group, output channel in it, input channel in it, kernel."""
    if conv.transposed:
        return conv.weight.unflatten(0, (conv.groups, -1)).transpose(1, 2)
    return conv.weight.unflatten(0, (conv.groups, -1))


def rescale(first: Conv, second: Conv, scales: Tensor) -> None:
    """Multiply the channels that `first` gives, and divide by as much where `second` reads them."""
    by_group(first).mul_(scales.unflatten(0, (first.groups, -1))[:, :, None, None, None])
    if first.bias is not None:
        first.bias.mul_(scales)
    by_group(second).div_(scales.unflatten(0, (second.groups, -1))[:, None, :, None, None])


def adjacent(net: nn.Module) -> list[tuple[Conv, Conv]]:
    """Convolutions with nothing between them but a ReLU, each called once, and the one that alone reads what the other gives."""
    modules, calls = dict(net.named_modules()), call_modules(net)
    times = Counter(modules[str(node.target)] for node in calls)

    def of(node: Any) -> nn.Module | None:
        return modules.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None

    found: list[tuple[Conv, Conv]] = []
    for node in calls:
        second: Any = of(node)
        source: Any = node.args[0] if node.args else None
        while isinstance(of(source), nn.ReLU | nn.Identity) and alone(source):
            source = source.args[0]
        first = of(source)
        if not isinstance(first, CONVOLUTIONS) or not isinstance(second, CONVOLUTIONS):
            continue
        if alone(source) and times[first] == times[second] == 1:
            found.append((first, second))
    return found


def alone(node: Any) -> bool:
    """Whether one thing reads what a node gives."""
    return len(node.users) == 1
