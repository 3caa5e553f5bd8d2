"""Nets with pre- and post-processing as one graph, at one precision: what exporters convert and `verify` compares with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_mvae.models import VAE
from pyro_mvae.nets.fold import fold_batch_norm
from pyro_mvae.nets.palette import with_weights
from pyro_mvae.nets.quantized import as_floats, as_integer_weights, as_integers, check_calibrated, is_quantized

PARTS = ("encoder", "decoder")
PRECISIONS = ("float32", "float16", "palettized", "int8")


class EncoderGraph(nn.Module):
    """Raw pixels, 0–255, → loc and scale of q(z|x); loc alone where there is no scale."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        return self.net(image * (1 / 255))


class DecoderGraph(nn.Module):
    """z → the expected picture, in [0, 1]. Noise is the caller's: z = loc + scale ε, with ε drawn by the app, or z = loc."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).sigmoid()


@dataclass(frozen=True, eq=False)
class Capture:
    """One part of a model at one precision: the PyTorch reference, an example of its input, and the names of its tensors."""

    part: str
    precision: str
    module: nn.Module
    example: Tensor
    input: str
    outputs: tuple[str, ...]

    def program(self) -> torch.export.ExportedProgram:
        """The graph that exporters convert, for a batch of one."""
        return torch.export.export(self.module, (self.example,), strict=False)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """What PyTorch computes; a tuple of the outputs."""
        with torch.no_grad():
            result = self.module(x)
        return result if isinstance(result, tuple) else (result,)


def capture(model: VAE, part: str, *, precision: str) -> Capture:
    """Take a part of a model at a precision.

    At "int8" a quantised model gives its integers, weights and activations; any other gives integer weights alone, which Core ML
    can use. At "float32" and "float16" a quantised model gives its rounded weights as floats. "palettized" is
    float16 whose files hold palettes.

    Raises:
        ValueError: for an unknown part or precision, or a quantised model that was never fitted.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> capture(MVAE((1, 28, 28)), "encoder", precision="float16")(torch.zeros(1, 1, 28, 28))[0].shape
        torch.Size([1, 16])
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, expected one of: {', '.join(PARTS)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of: {', '.join(PRECISIONS)}")
    net, example = model.deployable()[part]
    net = at_precision(net, precision).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    if part == "encoder":
        outputs = ("loc", "scale") if isinstance(net(example), tuple) else ("loc",)
        return Capture(part, precision, EncoderGraph(net).eval(), example, "image", outputs)
    return Capture(part, precision, DecoderGraph(net).eval(), example, "z", ("image",))


def at_precision(net: nn.Module, precision: str) -> nn.Module:
    """A copy of a net, in evaluation mode, that computes as the exported file will."""
    net = with_weights(net).eval().requires_grad_(False)
    if is_quantized(net):
        check_calibrated(net)
        return as_integers(net) if precision == "int8" else as_floats(net)
    net = fold_batch_norm(net)
    return as_integer_weights(net) if precision == "int8" else net
