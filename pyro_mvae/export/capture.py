"""Nets with pre- and post-processing as one graph, at one precision: what exporters convert and `verify` compares with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch._export.utils as export_utils
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_mvae.models import VAE
from pyro_mvae.nets.blockwise import blockwise
from pyro_mvae.nets.fold import fold_batch_norm
from pyro_mvae.nets.palette import with_scales, with_weights
from pyro_mvae.nets.quantized import as_floats, as_integer_weights, as_integers, check_calibrated, is_quantized
from pyro_mvae.theta import Precision, Weights

PARTS = ("encoder", "decoder")
WHOLES = ("reconstruct", "anomaly")
"""What goes from an image through both parts."""
PREDICTIVE = "predictive"
"""A decoder that says how sure it is, of a model with a Bayesian likelihood."""
EVERY_PART = (*PARTS, *WHOLES, PREDICTIVE)
PRECISIONS = ("float32", "float16", "palettized", "int8", "int8_weights", "int4")
MOST = 1024
"""Images in a batch of any size, at most."""


# operations of densities that some runtime does not know, in terms of those that all do
IN_OTHER_TERMS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.log_sigmoid.default: lambda x: -F.softplus(-x),
    torch.ops.aten.binary_cross_entropy_with_logits.default: lambda eta, x, *more: (
        x * F.softplus(-eta) + (1 - x) * F.softplus(eta)
    ),
    torch.ops.aten.where.ScalarOther: lambda chosen, a, b: torch.where(chosen, a, torch.full_like(a, b)),
    torch.ops.aten.max.other: lambda a, b: torch.logical_or(a, b) if a.dtype == torch.bool else torch.maximum(a, b),
}


class EncoderGraph(nn.Module):
    """Raw pixels, 0–255, → loc and scale of q(z|x); loc alone where there is no scale."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        return self.net(image * (1 / 255))


class DecoderGraph(nn.Module):
    """z → the expected picture, from 0 to `white`. Noise is the caller's: z = loc + scale ε, ε drawn by the app, or z = loc."""

    def __init__(self, net: nn.Module, *, white: float = 1.0):
        super().__init__()
        self.net, self.white = net, white

    def forward(self, z: Tensor) -> Tensor:
        return shown(self.net(z), white=self.white)


class PredictiveGraph(nn.Module):
    """z → mean, from 0 to `white`, and standard deviation of each pixel, over θ′ ~ p(θ′) and x ~ p(x|z, θ′)."""

    def __init__(self, model: VAE, net: nn.Module, *, white: float = 1.0):
        super().__init__()
        self.net, self.theta, self.likelihood, self.white = net, model.theta, model.likelihood, white

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        assert self.theta is not None
        mean, variance = self.theta.moments(self.net, self.likelihood, z)
        return (mean if self.white == 1 else self.white * mean), variance.sqrt()


class ReconstructGraph(nn.Module):
    """Raw pixels, 0–255, → the expected picture of their code, from 0 to `white`."""

    def __init__(self, model: VAE, *, white: float = 1.0):
        super().__init__()
        self.model, self.white = model, white

    def forward(self, image: Tensor) -> Tensor:
        return shown(self.model.decoder(coded(self.model, image * (1 / 255))), white=self.white)


class AnomalyGraph(nn.Module):
    """Raw pixels, 0–255, → −log p(x|z) a pixel and channel, z the mean of q(z|x), in nats; (1,).

    A mean and not a sum, as `anomaly_scores` gives: float16 counts to 65,504.
    """

    def __init__(self, model: VAE):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        x = image * (1 / 255)
        minus, theta = -self.model.decoder(coded(self.model, x)), self.model.theta
        eta = -minus  # what leaves XNNPACK as integers did has its axes mixed up; what was negated has not
        given = (eta, theta.usual(1)) if isinstance(theta, Precision) else (eta,)
        return -self.model.likelihood(*given).base_dist.log_prob(x).mean((1, 2, 3))


def shown(eta: Tensor, *, white: float) -> Tensor:
    """The picture that a decoder's output stands for."""
    picture = eta.sigmoid()
    return picture if white == 1 else white * picture


def coded(model: VAE, x: Tensor) -> Tensor:
    """The mean of q(z|x), by whatever the encoder is now."""
    outputs = model.encoder(x)
    return model.code_of(outputs[0] if isinstance(outputs, tuple) else outputs)


@dataclass(frozen=True, eq=False)
class Capture:
    """One part of a model at one precision: the PyTorch reference, an example of its input, and the names of its tensors."""

    part: str
    precision: str
    module: nn.Module
    example: Tensor
    input: str
    outputs: tuple[str, ...]

    def program(self, *, any_batch: bool = False) -> torch.export.ExportedProgram:
        """The graph that exporters convert, for a batch of one, or for any."""
        example = torch.cat([self.example] * 2) if any_batch else self.example
        sizes = ({0: torch.export.Dim("batch", min=1, max=MOST)},) if any_batch else None
        program = torch.export.export(self.module, (example,), strict=False, dynamic_shapes=sizes)
        return program.run_decompositions(IN_OTHER_TERMS) if self.part in ("anomaly", PREDICTIVE) else program

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """What PyTorch computes; a tuple of the outputs."""
        with torch.no_grad():
            result = self.module(x)
        return result if isinstance(result, tuple) else (result,)


@contextmanager
def listed_once() -> Iterator[None]:
    """Have torch list its composite operations once, not at every decomposition; of the process, as `quiet`."""
    name = "_collect_all_valid_cia_ops_for_namespace"
    with mock.patch.object(export_utils, name, functools.cache(getattr(export_utils, name))):
        yield


def unchanged(net: nn.Module) -> nn.Module:
    """The net itself."""
    return net


def capture(
    model: VAE,
    part: str,
    *,
    precision: str,
    written: Callable[[nn.Module], nn.Module] = unchanged,
    white: float = 1.0,
) -> Capture:
    """Take a part of a model, or both from an image on, at a precision.

    At "int8" a quantised model gives its integers, weights and activations, at "float32" and "float16" its rounded weights as
    floats. "palettized" is float16 whose files hold palettes, "int8_weights" and "int4" float16 whose files hold rounded weights,
    by a scale for each channel or `in_blocks`, of a model that is not quantised.

    Args:
        written: what nets are put into, the same in operations that a runtime prefers.
        white: what the brightest pixel is in pictures that come out.

    Raises:
        ValueError: for an unknown part or precision, one that the model can't have, or a quantised model that was never fitted.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> capture(MVAE((1, 28, 28)), "encoder", precision="float16")(torch.zeros(1, 1, 28, 28))[0].shape
        torch.Size([1, 16])
    """
    if part not in EVERY_PART:
        raise ValueError(f"part is {part!r}, expected one of: {', '.join(EVERY_PART)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected one of: {', '.join(PRECISIONS)}")
    if part in WHOLES:
        return whole(model, part, precision=precision, written=written, white=white)
    if part == PREDICTIVE:
        return predictive(model, precision=precision, white=white)
    net, example = model.deployable()[part]
    net = written(at_precision(net, precision)).to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    if part == "encoder":
        outputs = ("loc", "scale") if isinstance(net(example), tuple) else ("loc",)
        return Capture(part, precision, EncoderGraph(net).eval(), example, "image", outputs)
    return Capture(part, precision, DecoderGraph(net, white=white).eval(), example, "z", ("image",))


def predictive(model: VAE, *, precision: str, white: float) -> Capture:
    """The decoder of a model with a Bayesian likelihood, as it says how sure it is."""
    if model.theta is None:
        raise ValueError("a predictive part needs a Bayesian likelihood, and this model has none: make it with theta=")
    if precision not in ("float32", "float16"):
        raise ValueError(f"a predictive part is of floats, precision is {precision!r}: give precision float32 or float16")
    net, example = model.deployable()["decoder"]
    graph = PredictiveGraph(copy.deepcopy(model), at_precision(net, precision), white=white).eval().requires_grad_(False)
    return Capture(PREDICTIVE, precision, graph, example, "z", ("image", "sd"))


def whole(model: VAE, part: str, *, precision: str, written: Callable[[nn.Module], nn.Module], white: float) -> Capture:
    """Both nets of a model as one graph."""
    example = model.deployable()["encoder"][1]
    model = as_exported(model, precision)
    model.encoder, model.decoder = written(model.encoder), written(model.decoder)
    # "picture": exporters would rename an output that is called as the input is
    if part == "reconstruct":
        return Capture(part, precision, ReconstructGraph(model, white=white).eval(), example, "image", ("picture",))
    return Capture(part, precision, AnomalyGraph(model).eval(), example, "image", ("score",))


def as_exported(model: VAE, precision: str) -> VAE:
    """A copy of a model, in evaluation mode, both of whose nets compute as files of a precision will.

    Raises:
        ValueError: for a precision that the model can't have.

    Example:
        >>> from pyro_mvae.models import MVAE
        >>> len(as_exported(MVAE((1, 8, 8)), "int4").encoder.get_parameter("body.0.0.weight")[0].unique()) <= 15
        True
    """
    copied = copy.deepcopy(model)
    copied.encoder, copied.decoder = (at_precision(net, precision) for net in (model.encoder, model.decoder))
    if isinstance(copied.theta, Weights):
        copied.theta = None  # files have the weights of θ′ = 0 built in
    return copied.eval().requires_grad_(False)


def at_precision(net: nn.Module, precision: str) -> nn.Module:
    """A copy of a net, in evaluation mode, that computes as the exported file will."""
    apart = with_scales if precision == "palettized" else with_weights
    net = apart(net).eval().requires_grad_(False)
    if is_quantized(net):
        check_calibrated(net)
        return as_integers(net) if precision == "int8" else as_floats(net)
    if precision == "int8":
        raise ValueError("the model is not quantised: let it go through Quantize first, or choose precision int8_weights")
    net = fold_batch_norm(net)
    return {"int8_weights": as_integer_weights, "int4": blockwise}.get(precision, unchanged)(net)
