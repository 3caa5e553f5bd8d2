"""What of a likelihood is random for each image, θ′, (6) to (12): the precision of its pixels, or weights of the last layer.

They have a prior p(θ′) in the model and a posterior q(θ′|x) in the guide, the sample site `theta`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.func import functional_call

from pyro_mvae.likelihoods import USUAL_PRECISION
from pyro_mvae.nets.channels import keep_inputs
from pyro_mvae.nets.conv import Doubling
from pyro_mvae.nets.rounding import QuantizedConv

PRECISE = ("gaussian", "logistic")
RELUCTANCE = 0.05
"""By how much less than the net says a guide moves the precision of an image: one that followed the first, bad reconstructions at
once would find every image hard, and the code would never be asked for more."""


class Precision(nn.Module):
    """θ′ = τ, the precision of the pixels, for each image and channel: τ ~ Gamma(a, a / m), or LogNormal; (n, C).

    m, the mean (the median of a LogNormal), and a = 1 + 1 / spread² are parameters of θ, learnt for each channel; the scale of a
    LogNormal is the spread. A Gamma with a ≤ 1 is left out: it draws τ so small that 1 / √τ has no gradient. With a Gaussian
    likelihood and Gamma, x is marginally of Student's t with 2a degrees of freedom.

    Args:
        channels: C.
        family: "gamma" or "log_normal".

    Example:
        >>> precision = Precision(3, "gamma")
        >>> precision.prior(2).batch_shape, precision.prior(2).event_shape
        (torch.Size([2]), torch.Size([3]))
    """

    def __init__(self, channels: int, family: str):
        super().__init__()
        self.size, self.family = channels, family
        self.log_mean = nn.Parameter(torch.full((channels,), math.log(USUAL_PRECISION)))
        self.log_spread = nn.Parameter(torch.zeros(channels))

    def prior(self, n: int) -> TorchDistributionMixin:
        """p(θ′) for n images."""
        return self.distribution(self.log_mean.expand(n, -1), self.log_spread.exp().expand(n, -1))

    def posterior(self, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """q(θ′|x) from what the guide's net says of each image: the location of log τ, from the usual one, and its spread."""
        return self.distribution(RELUCTANCE * loc + math.log(USUAL_PRECISION), 0.1 * scale)

    def distribution(self, log_mean: Tensor, spread: Tensor) -> TorchDistributionMixin:
        if self.family == "log_normal":
            return dist.LogNormal(log_mean, spread, validate_args=False).to_event(1)
        concentration = 1 + spread.clamp(1e-3, 1e3) ** -2
        return dist.Gamma(concentration, concentration * torch.exp(-log_mean), validate_args=False).to_event(1)

    def usual(self, n: int) -> Tensor:
        """θ′ where no image says otherwise: the prior's mean, its median for a LogNormal."""
        return self.log_mean.exp().expand(n, -1)

    def conditional(self, decoder: nn.Module, likelihood: nn.Module, z: Tensor, theta: Tensor) -> TorchDistributionMixin:
        """p(x|z, θ′)."""
        return likelihood(decoder(z), theta)

    def moments(self, decoder: nn.Module, likelihood: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each pixel given z, over θ′: E[1/τ] = (1 + spread²) / m; exp(spread² / 2) / m of a LogNormal."""
        squared = (2 * self.log_spread).exp()
        more = (squared / 2).exp() if self.family == "log_normal" else 1 + squared
        return likelihood.moments(decoder(z), (more * (-self.log_mean).exp())[:, None, None])


class Weights(nn.Module):
    """θ′ = weights of rank r in the decoder's last layer, for each image: W + Σᵣ θ′ᵣ uᵣ ⊗ vᵣ, θ′ ~ N(0, I); (n, r).

    The directions uᵣ ⊗ vᵣ, an output channel by a kernel over the layer's inputs, are parameters of θ. The layer is linear, so
    that its output changes by u (θ′ ⊙ v(h)), h its input: no weight is made for an image, but for a few that are faster to train
    so, those of a `Doubling` of one channel. A quantised layer rounds its v as well.

    Args:
        decoder: whose last linear or convolutional layer it is.
        rank: r.

    Example:
        >>> decoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 12))
        >>> weights, z, theta = Weights(decoder, 2), torch.randn(5, 4), torch.randn(5, 2)
        >>> h = decoder[:2](z)
        >>> delta = torch.einsum("nr,or,ri->noi", theta, weights.up.weight, weights.down.weight)
        >>> by_hand = torch.einsum("noi,ni->no", decoder[2].weight + delta, h) + decoder[2].bias
        >>> torch.allclose(weights.decode(decoder, z, theta), by_hand, atol=1e-5)
        True
    """

    def __init__(self, decoder: nn.Module, rank: int):
        super().__init__()
        self.size = rank
        _, last = last_layer(decoder)
        self.down: nn.Linear | nn.Conv2d | nn.ConvTranspose2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(last, nn.Linear):
            self.down = nn.Linear(last.in_features, rank, bias=False)
            self.up = nn.Linear(rank, last.out_features, bias=False)
        else:
            geometry: Any = {"kernel_size": last.kernel_size, "stride": last.stride, "padding": last.padding, "bias": False}
            self.down = type(last)(last.in_channels, rank, **geometry)
            self.up = nn.Conv2d(rank, last.out_channels, 1, bias=False)
        with torch.no_grad():
            self.up.weight.mul_(0.1)

    def keep_inputs(self, channels: Sequence[int]) -> None:
        """Drop the inputs of v that the layer has lost, after pruning."""
        keep_inputs(self.down, channels)

    def prior(self, n: int) -> TorchDistributionMixin:
        """p(θ′) for n images."""
        loc = next(self.parameters()).new_zeros(n, self.size)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)

    def posterior(self, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        """q(θ′|x) from what the guide's net says of each image."""
        return dist.Normal(loc, scale).to_event(1)

    def usual(self, n: int) -> Tensor:
        """θ′ where no image says otherwise: 0, which leaves the layer as it is."""
        return next(self.parameters()).new_zeros(n, self.size)

    def conditional(self, decoder: nn.Module, likelihood: nn.Module, z: Tensor, theta: Tensor) -> TorchDistributionMixin:
        """p(x|z, θ′)."""
        return likelihood(self.decode(decoder, z, theta))

    def moments(self, decoder: nn.Module, likelihood: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each pixel given z, over θ′ ~ N(0, I).

        η is normal then, its mean that of θ′ = 0, its variance u² v(h)²; integrals over it are sums of seven terms, by
        Gauss-Hermite quadrature.

        Raises:
            ValueError: for a decoder whose last layer is followed by what changes its shape.
        """
        beside: list[Tensor] = []

        def note(own: Tensor, h: Tensor) -> Tensor:
            beside.append(h)
            return own

        eta, (h,) = self.widened(decoder, z, note), beside
        deviation = functional_call(self.up, {"weight": self.up.weight.square()}, (h.square(),)).sqrt()
        if deviation.shape != eta.shape:
            given = f"the decoder's last layer gives {tuple(deviation.shape)}, the decoder {tuple(eta.shape)}"
            raise ValueError(f"{given}: expected a last layer that nothing follows")
        nodes, weights = np.polynomial.hermite_e.hermegauss(7)
        shares = (weights / weights.sum()).tolist()
        found = [likelihood.moments(eta + node * deviation) for node in nodes.tolist()]
        mean = sum((share * each for share, (each, _) in zip(shares, found, strict=True)), torch.zeros(()))
        terms = [share * (within + (each - mean).square()) for share, (each, within) in zip(shares, found, strict=True)]
        return mean, sum(terms, torch.zeros(()))

    def decode(self, decoder: nn.Module, z: Tensor, theta: Tensor) -> Tensor:
        """The decoder's output with the weights θ′ added to its last layer."""
        name, layer = last_layer(decoder)
        if isinstance(layer, Doubling) and layer.is_product and not isinstance(parent_of(decoder, name), QuantizedConv):
            up, down = self.up.weight.flatten(), self.down.weight.transpose(0, 1)
            change = ((theta * up) @ down.flatten(1)).unflatten(1, layer.weight.shape)
            return functional_call(decoder, {f"{name}.weight".lstrip("."): layer.weight + change}, (z,))
        return self.widened(decoder, z, lambda own, h: own + self.up(h * theta.reshape(*theta.shape, *[1] * (h.ndim - 2))))

    def widened(self, decoder: nn.Module, z: Tensor, combined: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The decoder's output, where its last layer computes v(h) beside its own channels, and both are combined."""
        name, layer = last_layer(decoder)
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        sizes = [layer.weight.shape[axis], self.size]
        wide = {f"{name}.weight".lstrip("."): torch.cat([layer.weight, self.down.weight], axis)}
        if layer.bias is not None:
            wide[f"{name}.bias".lstrip(".")] = torch.cat([layer.bias, layer.bias.new_zeros(self.size)])

        def both(computed_by: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return combined(*output.split(sizes, 1))

        parent = parent_of(decoder, name)
        handle = (parent if isinstance(parent, QuantizedConv) else layer).register_forward_hook(both)
        try:
            return functional_call(decoder, wide, (z,))
        finally:
            handle.remove()


def last_layer(decoder: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d | nn.ConvTranspose2d]:
    """The last linear or convolutional layer of a net, in the order they were made, and its name."""
    modules = decoder.named_modules()
    layers = [(name, layer) for name, layer in modules if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    if not layers or getattr(layers[-1][1], "groups", 1) > 1:
        raise ValueError("Bayesian weights need a decoder whose last layer is a Linear, Conv2d or ConvTranspose2d of one group")
    return layers[-1]


def parent_of(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


THETAS = ("gamma", "log_normal", "weights")


def make_theta(name: str | None, *, likelihood: str, channels: int, decoder: nn.Module, rank: int) -> Precision | Weights | None:
    """What of a likelihood is random: "gamma" or "log_normal" for its precision, "weights" for the last layer, or nothing.

    Raises:
        ValueError: for an unknown name, or a precision for a likelihood that has none.

    Example:
        >>> make_theta("gamma", likelihood="gaussian", channels=3, decoder=nn.Identity(), rank=1).size
        3
    """
    if name is None:
        return None
    if name not in THETAS:
        raise ValueError(f"theta is {name!r}, expected one of: {', '.join(THETAS)}")
    if name == "weights":
        return Weights(decoder, rank)
    if likelihood not in PRECISE:
        raise ValueError(f"the likelihood {likelihood!r} has no precision to be random: choose {' or '.join(PRECISE)}")
    return Precision(channels, name)
