"""Nets of layers that round: made of nets of floats, described, and turned into what each runtime reads.

`as_integers` turns them into the explicit quantise/dequantise operations that XNNPACK, Core ML and ONNX each translate to their
own integer kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from pyro_mvae.nets.fold import CONVOLUTIONS, call_modules, fold_batch_norm
from pyro_mvae.nets.rounding import LOGIT_LIMIT, PIXELS, ActivationQuantizer, IntegerActivation, QuantizedConv


def quantized_pair(encoder: nn.Module, decoder: nn.Module, *, bits: int = 8) -> tuple[nn.Module, nn.Module]:
    """`quantized` copies of an encoder of pixels and a decoder to logits.

    Example:
        >>> from pyro_mvae.nets import MobileDecoder, MobileEncoder
        >>> encoder, decoder = quantized_pair(MobileEncoder((1, 8, 8), 4), MobileDecoder((1, 8, 8), 4))
        >>> is_quantized(encoder), is_quantized(decoder)
        (True, True)
    """
    return quantized(encoder, bounds=PIXELS, bits=bits), quantized(decoder, output_limit=LOGIT_LIMIT, bits=bits)


def quantized(
    net: nn.Module, *, bounds: tuple[float, float] | None = None, output_limit: float = torch.inf, bits: int = 8
) -> nn.Module:
    """A copy of `net` that computes in integers: batch normalisation folded, convolutions and activations between them rounded.

    An activation is rounded after its ReLU, where XNNPACK fuses it, and a convolution's input where nothing rounded it before.
    The ranges are those of the data that pass through in training mode.

    Args:
        bounds: the range of the net's input, if it is known beforehand.
        output_limit: what the range of a convolution that is the net's output never goes beyond.
        bits: of the weights; activations have 8.

    Raises:
        ValueError: for a net that is quantised already, or a layer that can't be.

    Example:
        >>> net = quantized(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), bounds=(0.0, 1.0))
        >>> x = torch.rand(2, 1, 8, 8)
        >>> y = net.train()(x)
        >>> len(torch.unique(net.eval()(x))) <= 256
        True
    """
    if is_quantized(net):
        raise ValueError("the net is quantised already")
    net = fold_batch_norm(net)
    rounded: set[fx.Node] = set()
    modules = dict(net.named_modules())
    for node in call_modules(net):
        layer, name = modules[str(node.target)], str(node.target)
        if isinstance(layer, nn.Linear):
            raise ValueError(f"layer {name!r} is linear: use a 1×1 convolution, which every runtime quantises alike")
        if not isinstance(layer, CONVOLUTIONS):
            continue
        source, last = node.all_input_nodes[0], end_of_activation(node, modules)
        replacement: nn.Module = QuantizedConv(layer, bits=bits)
        if source not in rounded:
            known = bounds if source.op == "placeholder" else None
            replacement = nn.Sequential(ActivationQuantizer(bounds=known), replacement)
        net.set_submodule(name, replacement)
        final, ends = str(last.target), any(user.op == "output" for user in last.users)
        rounding = ActivationQuantizer(limit=output_limit if ends else torch.inf)
        net.set_submodule(final, nn.Sequential(net.get_submodule(final), rounding))
        rounded.add(last)
    return net


def end_of_activation(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    """The last of the modules after a convolution that XNNPACK fuses with it."""
    users = list(node.users)
    while len(users) == 1 and users[0].op == "call_module" and isinstance(modules[str(users[0].target)], (nn.ReLU, nn.Identity)):
        node = users[0]
        users = list(node.users)
    return node


def check_calibrated(net: nn.Module) -> None:
    """Raise a ValueError when a quantiser has seen no data."""
    for name, module in net.named_modules():
        if isinstance(module, ActivationQuantizer) and not bool(torch.isfinite(module.low)):
            raise ValueError(f"quantiser {name!r} has seen no data, so it has no range: fit the model after quantising it")


def is_quantized(net: nn.Module) -> bool:
    """Whether a net has layers of integers."""
    return any(isinstance(module, QuantizedConv) for module in net.modules())


def how_quantized(net: nn.Module) -> dict[str, Any] | None:
    """How a net was quantised, for its checkpoint: bits of its weights, and whether its ranges are learned; None if it was not.

    Example:
        >>> from pyro_mvae.nets import MobileEncoder
        >>> how_quantized(quantized(MobileEncoder((1, 8, 8), 4), bits=4))
        {'bits': 4, 'learned': False}
    """
    bits = [module.bits for module in net.modules() if isinstance(module, QuantizedConv)]
    learned = any(isinstance(module, ActivationQuantizer) and isinstance(module.low, nn.Parameter) for module in net.modules())
    return {"bits": bits[0], "learned": learned} if bits else None


def learn_ranges(net: nn.Module) -> None:
    """`ActivationQuantizer.learn`, of every one in a net."""
    for module in net.modules():
        if isinstance(module, ActivationQuantizer):
            module.learn()


def as_integers(net: nn.Module) -> nn.Module:
    """A copy of a quantised net in evaluation mode, its rounding done by explicit integer operations.

    It computes what the net itself computes in evaluation mode with its biases rounded as runtimes keep them: integers of 32
    bits, in steps of an input's scale times a weight's. Unless they are rounded here too, a value near the middle of two levels
    is rounded up by one and down by the other, and where a net's last levels are coarse that is seen in its pictures.
    """
    net = copy.deepcopy(net)
    round_biases(net)
    return replaced(net.eval(), {QuantizedConv: QuantizedConv.stored, ActivationQuantizer: IntegerActivation})


class RoundingTracer(fx.Tracer):
    """Sees what rounds, and every convolution, as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QuantizedConv | ActivationQuantizer) or super().is_leaf_module(m, module_qualified_name)


@torch.no_grad()
def round_biases(net: nn.Module) -> None:
    """Round the bias of each quantised convolution to steps of its input's scale times its weight's, in place."""
    modules = dict(net.named_modules())
    for node in RoundingTracer().trace(net).nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantizedConv) and layer.conv.bias is not None:
            rounding = modules[str(getattr(node.args[0], "target", ""))]
            assert isinstance(rounding, ActivationQuantizer)
            step = rounding.qparams()[0] * layer.scales()
            layer.conv.bias.copy_(torch.round(layer.conv.bias / step) * step)


def roundings(net: nn.Module) -> dict[QuantizedConv, ActivationQuantizer]:
    """Each quantised convolution of a net with what rounds its output."""
    modules, found = dict(net.named_modules()), {}
    for node in RoundingTracer().trace(net).nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, QuantizedConv):
            (user,) = node.users
            while not isinstance(modules[str(user.target)], ActivationQuantizer):
                (user,) = user.users
            found[layer] = modules[str(user.target)]
    return found


def as_integer_weights(net: nn.Module) -> nn.Module:
    """A copy of a net that was not quantised, in evaluation mode, with int8 weights and activations left as they are."""

    def integer(conv: Any) -> nn.Module:
        return QuantizedConv(conv).stored()

    return replaced(copy.deepcopy(net).eval(), dict.fromkeys(CONVOLUTIONS, integer))


def as_floats(net: nn.Module) -> nn.Module:
    """A copy of a quantised net in evaluation mode with its rounded weights as floats and its activations left as they are."""

    def plain(quantized: Any) -> nn.Module:
        quantized.conv.weight.data = quantized.rounded_weight().detach()
        return quantized.conv

    return replaced(copy.deepcopy(net).eval(), {QuantizedConv: plain, ActivationQuantizer: lambda _: nn.Identity()})


def replaced(net: nn.Module, rules: Mapping[type, Callable[[Any], nn.Module]]) -> nn.Module:
    """`net` with each module whose type, or what it is derived from, is in `rules` replaced by what the rule makes of it."""
    rule = next((rules[kind] for kind in type(net).__mro__ if kind in rules), None)
    if rule is not None:
        return rule(net)
    for name, child in net.named_children():
        setattr(net, name, replaced(child, rules))
    return net
