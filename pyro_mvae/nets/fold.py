"""Batch normalisation folded into the convolution before it, branches merged into one: exact, and fewer layers on the phone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pyro_mvae.nets.branches import Branches

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def fold_batch_norm(net: nn.Module) -> nn.Module:
    """A copy of `net` in which every `BatchNorm2d` that follows a convolution is part of that convolution's weights.

    `Branches` are one convolution in it. The result computes what `net` computes in evaluation mode, to float32 rounding.

    Raises:
        ValueError: for a normalisation that keeps no running statistics.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(net(x), fold_batch_norm(net)(x), atol=1e-5)
        True
    """
    net = copy.deepcopy(net)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, Branches):
            net.set_submodule(name, layer.merged())
    modules = dict(net.named_modules())
    for node in call_modules(net):
        norm, source = modules[str(node.target)], node.args[0]
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        conv = modules[str(source.target)]
        if isinstance(conv, CONVOLUTIONS) and len(source.users) == 1:
            absorb(conv, norm)
            net.set_submodule(str(node.target), nn.Identity())
    return net


def absorb(conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    """Scale and shift a convolution as the normalisation after it would."""
    if norm.running_mean is None:
        raise ValueError(f"{norm} keeps no running statistics, and can't be folded: make it with track_running_stats=True")
    groups = conv.groups if conv.transposed else 1  # whose weights have the channels of one group beside each other

    def of_groups(values: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * groups if values is None else values.chunk(groups)

    given = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    fused = [
        fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift, conv.transposed)  # pyright: ignore[reportArgumentType]
        for weight, bias, mean, variance, scale, shift in zip(*map(of_groups, given), strict=True)
    ]
    learned = conv.weight.requires_grad
    conv.weight, conv.bias = (nn.Parameter(torch.cat(each).detach(), learned) for each in zip(*fused, strict=True))


class LayerTracer(fx.Tracer):
    """Sees every convolution as one call, those of our own classes too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def call_modules(net: nn.Module) -> list[fx.Node]:
    """The calls of submodules in the order they are made."""
    return [node for node in LayerTracer().trace(net).nodes if node.op == "call_module"]
