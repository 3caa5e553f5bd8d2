"""Decoders in the operations that runtimes compute fast: the same numbers, to the bit where they are integers.

The s × s phases of a transposed convolution are channels of a plain one here, moved to their places then. XNNPACK computes eight
outputs of a convolution or more at a time, so a transposed one to one channel or three, which is the last of most decoders, costs
as much as one to eight. onnxruntime has no transposed convolution of integers, and computes it in floats, which matters where it
is large and dense, as the first of a decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from pyro_mvae.nets.fold import LayerTracer
from pyro_mvae.nets.rounding import IntegerActivation, IntegerConv

FEW = 8
"""Outputs that XNNPACK computes at a time."""
MANY = 100_000
"""Weights of a layer that takes longer in floats than its outputs take to be moved; each output gets a bias and scales there."""


class Interleave(nn.Module):
    """Channels that are the phases of a transposed convolution, moved to their places.

    After each move values are rounded as they were before, which changes none: so XNNPACK sees that integers are moved.

    Args:
        conv: the transposed convolution.
        rounding: what rounded the phases.

    Shapes: (n, C s², h + t − 1, w + t − 1), t = ⌈kernel / s⌉, → (n, C, H, W), as `conv` gives for (h, w).
    """

    def __init__(self, conv: nn.ConvTranspose2d, rounding: nn.Module):
        super().__init__()
        self.strides, self.kernels, self.cuts = conv.stride, conv.kernel_size, conv.padding
        self.more, self.rounding = conv.output_padding, rounding

    def forward(self, phases: Tensor) -> Tensor:
        (n, _, rows, columns), (s, t) = phases.shape, self.strides
        moved = self.rounding(phases.view(n, -1, s, t, rows, columns))
        moved = self.rounding(moved.permute(0, 1, 4, 2, 5, 3))
        moved = self.rounding(moved.reshape(n, -1, rows * s, columns * t))
        for axis, windows in enumerate((rows, columns)):
            stride, kernel, cut = self.strides[axis], self.kernels[axis], int(self.cuts[axis])
            size = (windows - -(-kernel // stride)) * stride + kernel - 2 * cut + self.more[axis]
            moved = self.rounding(moved.narrow(2 + axis, cut, size))
        return moved


def phases(weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The kernels of a transposed convolution as those of a plain one, a channel a phase.

    Shapes: (in, C, k, l) → (C s t, in, ⌈k / s⌉, ⌈l / t⌉).

    Example:
        >>> import torch
        >>> phases(torch.arange(4.0).view(1, 1, 1, 4), (1, 2)).tolist()
        [[[[2.0, 0.0]]], [[[3.0, 1.0]]]]
    """
    (in_channels, out_channels, height, width), (s, t) = weight.shape, stride
    rows, columns = -(-height // s), -(-width // t)
    whole = F.pad(weight, (0, columns * t - width, 0, rows * s - height))
    taps = whole.view(in_channels, out_channels, rows, s, columns, t).flip(2, 4)
    return taps.permute(1, 3, 5, 0, 2, 4).reshape(-1, in_channels, rows, columns)


def as_convolution(layer: nn.ConvTranspose2d | IntegerConv) -> nn.Conv2d | IntegerConv:
    """A transposed convolution as the plain one that `Interleave` comes after, of floats or of integers."""
    conv = conv_of(layer)
    weight = phases(layer.integers if isinstance(layer, IntegerConv) else conv.weight.detach(), conv.stride)
    times = conv.stride[0] * conv.stride[1]
    height, width = weight.shape[2:]
    plain = nn.Conv2d(conv.in_channels, len(weight), (height, width), padding=(height - 1, width - 1), bias=conv.bias is not None)
    if conv.bias is not None:
        plain.bias = nn.Parameter(conv.bias.detach().repeat_interleave(times))
    if isinstance(layer, IntegerConv):
        one_for_all = conv.out_channels == 1 and times > FEW
        return IntegerConv(plain, weight, layer.scales if one_for_all else layer.scales.repeat_interleave(times))
    plain.weight = nn.Parameter(weight)
    return plain


def few_outputs(conv: nn.ConvTranspose2d) -> bool:
    """Whether a transposed convolution has fewer outputs than XNNPACK computes at a time."""
    return conv.out_channels < FEW


def wide_spread(conv: nn.ConvTranspose2d) -> bool:
    """Whether a transposed convolution is a large dense layer from one place to many."""
    weights = conv.in_channels * conv.out_channels * math.prod(conv.kernel_size)
    return conv.kernel_size == conv.stride and weights >= MANY


def interleaved(net: nn.Module, *, worth: Callable[[nn.ConvTranspose2d], bool] = few_outputs) -> nn.Module:
    """A net some of whose transposed convolutions are plain ones, each with `Interleave` after it; itself without such.

    The layers are shared with `net`, whose own stay as they are.

    Example:
        >>> import torch
        >>> from pyro_mvae.nets import MobileDecoder
        >>> net, z = MobileDecoder((1, 8, 8), 4).eval(), torch.randn(2, 4)
        >>> torch.allclose(interleaved(net)(z), net(z), atol=1e-5)
        True
    """
    if not any(can_be(layer) and worth(conv_of(layer)) for layer in net.modules()):
        return net
    result = fx.GraphModule(net, IntegerTracer().trace(net))
    modules: dict[str, nn.Module] = dict(result.named_modules())
    for node in list(result.graph.nodes):
        layer: Any = modules.get(str(node.target)) if node.op == "call_module" else None
        if layer is None or not (can_be(layer) and worth(conv_of(layer))):
            continue
        end, rounding = rounded(node, modules)
        name, after = f"plain_{node.name}", f"interleave_{node.name}"
        result.add_submodule(name, as_convolution(layer))
        result.add_submodule(after, Interleave(conv_of(layer), rounding))
        node.target = name
        with result.graph.inserting_after(end):
            moved = result.graph.call_module(after, (end,))
        end.replace_all_uses_with(moved, delete_user_cb=lambda user, moved=moved: user is not moved)
    result.delete_all_unused_submodules()
    result.recompile()
    return result.eval()


def conv_of(layer: nn.Module) -> Any:
    """The convolution of a layer of integers; any other as it is."""
    return layer.conv if isinstance(layer, IntegerConv) else layer


class IntegerTracer(LayerTracer):
    """Sees layers of integers, and what rounds between them, as one call each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, IntegerConv | IntegerActivation) or super().is_leaf_module(m, module_qualified_name)


def can_be(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution that can be written as a plain one."""
    conv = conv_of(layer)
    if not isinstance(conv, nn.ConvTranspose2d) or conv.groups > 1:
        return False
    inside = all(more <= int(cut) for more, cut in zip(conv.output_padding, conv.padding, strict=True))
    return conv.stride != (1, 1) and conv.dilation == (1, 1) and inside


def rounded(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, nn.Module]:
    """The last of what XNNPACK fuses with a convolution, and what rounds there, if anything does."""
    while len(node.users) == 1:
        (user,) = node.users
        layer = modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(layer, IntegerActivation):
            return user, layer
        if not isinstance(layer, nn.ReLU | nn.Identity):
            break
        node = user
    return node, nn.Identity()
