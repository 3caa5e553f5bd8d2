"""Likelihoods p(x|z, θ′): what a decoder's output means.

A likelihood is a module called with the decoder's output η, (…, C, H, W), that returns the distribution of an image; its own
parameters belong to θ. Its location is σ(η), a picture in [0, 1], for all of them, so that an exported decoder does not depend on
which one it was trained with. What of it can be random for each image is θ′, in `theta`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints, register_kl

USUAL_PRECISION = 100.0  # of pixels in [0, 1]: a scale of 0.1


class Logistic(TorchDistribution):
    """A logistic distribution rounded to the 256 levels k / 255 of a pixel; what lies beyond 0 and 1 counts to them.

    p(x) = σ((x + h − loc) / scale) − σ((x − h − loc) / scale), h = 1/510 (Kingma et al., 2016, section 4.2).

    Args:
        loc: centre, in [0, 1].
        scale: positive, broadcast against `loc`.

    Example:
        >>> x = torch.arange(256) / 255
        >>> round(float(Logistic(torch.tensor(0.3), torch.tensor(0.05)).log_prob(x).exp().sum()), 5)
        1.0
    """

    # torch declares these as properties and its own distributions assign them too
    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    support = constraints.unit_interval  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    half_width = 1 / 510

    def __init__(self, loc: Tensor, scale: Tensor, *, validate_args: bool | None = None):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return Logistic(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        above = (value + self.half_width - self.loc) / self.scale
        below = (value - self.half_width - self.loc) / self.scale
        # σ(a) − σ(b) = σ(a) σ(−b) (1 − exp(b − a)): no cancellation, whatever the scale
        width = torch.log(-torch.expm1(-2 * self.half_width / self.scale))
        inside = torch.logical_and(value > self.half_width, value < 1 - self.half_width)
        return (
            torch.where(value < 1 - self.half_width, F.logsigmoid(above), 0.0)
            + torch.where(value > self.half_width, F.logsigmoid(-below), 0.0)
            + torch.where(inside, width, 0.0)
        )

    def sample(self, sample_shape=torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        u = torch.rand(self._extended_shape(sample_shape), device=self.loc.device).clamp(1e-7, 1 - 1e-7)
        with torch.no_grad():
            return torch.round((self.loc + self.scale * torch.logit(u)).clamp(0, 1) * 255) / 255

    @property
    def mean(self) -> Tensor:
        """Σₖ P(x ≥ k/255) / 255."""
        return sum((self.at_least(k) for k in range(1, 256)), torch.zeros(())) / 255

    @property
    def variance(self) -> Tensor:
        """Σₖ (2k − 1) P(x ≥ k/255) / 255² − mean²."""
        square = sum(((2 * k - 1) * self.at_least(k) for k in range(1, 256)), torch.zeros(())) / 255**2
        return (square - self.mean**2).clamp(min=0)

    def at_least(self, level: int) -> Tensor:
        """P(x ≥ level / 255)."""
        return torch.sigmoid((self.loc - (level - 0.5) / 255) / self.scale)


class ContinuousBernoulli(dist.ContinuousBernoulli):
    """Pyro's, with density, moments, entropy and KL by its logits.

    Torch's normaliser cancels near λ = 1/2, its moments are off by half there, and both stop near 0 and 1. With η the logit of λ:
    log p(x) = η (x − 1/2) − log(sinh(η/2) / (η/2)), mean = 1/(1 − e^−η) − 1/η, variance = 1/η² − 1/(4 sinh²(η/2)), and their
    series near η = 0. log p(x) is linear in x, so that its mean is its value at the mean of x.

    Example:
        >>> pixels = ContinuousBernoulli(logits=torch.tensor([0.0, 40.0]))
        >>> pixels.mean, pixels.log_prob(torch.ones(2))
        (tensor([0.5000, 0.9750]), tensor([0.0000, 3.6889]))
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        eta, size = self.logits, self.logits.abs()
        small = size < 0.5
        square, safe = torch.where(small, eta, 0.0).square(), torch.where(small, 1.0, size)
        series = eta * (value - 0.5) - (square / 24 - square**2 / 2880 + square**3 / 181440)
        return torch.where(small, series, eta * (value - (eta > 0).to(eta)) + safe.log() - torch.log1p(-torch.exp(-safe)))

    def entropy(self) -> Tensor:
        return -self.log_prob(self.mean)

    @property
    def mean(self) -> Tensor:
        eta, small = self.logits, self.logits.abs() < 0.5
        safe = torch.where(small, 1.0, eta)
        series = 0.5 + eta / 12 - eta**3 / 720 + eta**5 / 30240
        return torch.where(small, series, -1 / torch.expm1(-safe) - 1 / safe)

    @property
    def variance(self) -> Tensor:
        eta, small = self.logits, self.logits.abs() < 0.5
        safe = torch.where(small, 1.0, eta)
        series = 1 / 12 - eta**2 / 240 + eta**4 / 6048
        return torch.where(small, series, safe**-2 - (2 * torch.sinh(safe / 2)) ** -2)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl_continuous_bernoulli(p: ContinuousBernoulli, q: ContinuousBernoulli) -> Tensor:
    return p.log_prob(p.mean) - q.log_prob(p.mean)


class BernoulliLikelihood(nn.Module):
    """x ~ Bernoulli(σ(η)), for binarised images.

    Example:
        >>> BernoulliLikelihood()(torch.zeros(2, 1, 8, 8)).log_prob(torch.ones(2, 1, 8, 8)) / 64
        tensor([-0.6931, -0.6931])
    """

    name = "bernoulli"

    def forward(self, eta: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=eta, validate_args=False).to_event(3)

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each pixel."""
        p = eta.sigmoid()
        return p, p * (1 - p)


class ContinuousBernoulliLikelihood(nn.Module):
    """x ~ ContinuousBernoulli(σ(η)), a density on [0, 1] (Loaiza-Ganem and Cunningham, 2019), for grey and colour images.

    σ(η) is its parameter, and where its density leans to; its mean is closer to 1/2.

    Example:
        >>> ContinuousBernoulliLikelihood()(torch.zeros(2, 1, 8, 8)).log_prob(torch.ones(2, 1, 8, 8))
        tensor([0., 0.])
    """

    name = "continuous_bernoulli"

    def forward(self, eta: Tensor) -> TorchDistributionMixin:
        return ContinuousBernoulli(logits=eta, validate_args=False).to_event(3)

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each pixel."""
        pixels = ContinuousBernoulli(logits=eta, validate_args=False)
        return pixels.mean, pixels.variance


class GaussianLikelihood(nn.Module):
    """x ~ N(σ(η), s²), for grey and colour images; a scale s a channel, a parameter of θ unless a precision τ is given: s = 1/√τ.

    Example:
        >>> GaussianLikelihood(3)(torch.zeros(2, 3, 8, 8)).event_shape
        torch.Size([3, 8, 8])
    """

    name = "gaussian"
    family: Callable[..., Any] = dist.Normal
    spread = 1.0
    """The variance where s is 1."""

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), -0.5 * math.log(USUAL_PRECISION)))

    def forward(self, eta: Tensor, precision: Tensor | None = None) -> TorchDistributionMixin:
        scale = self.log_scale.exp() if precision is None else precision.rsqrt()[..., None, None]
        return self.family(eta.sigmoid(), scale, validate_args=False).to_event(3)

    def moments(self, eta: Tensor, variance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance of each pixel; E[s²], for each channel, is given where s is random."""
        squared = (2 * self.log_scale).exp() if variance is None else variance
        loc = eta.sigmoid()
        return loc, (self.spread * squared).expand_as(loc)


class LogisticLikelihood(GaussianLikelihood):
    """x ~ Logistic(σ(η), s) on 256 levels, for grey and colour images; s as in `GaussianLikelihood`.

    Its `moments` are those before it is rounded to levels and ends at 0 and 1.

    Example:
        >>> LogisticLikelihood(3)(torch.zeros(2, 3, 8, 8)).event_shape
        torch.Size([3, 8, 8])
    """

    name = "logistic"
    family = Logistic
    spread = math.pi**2 / 3


LIKELIHOODS: dict[str, Callable[[int], nn.Module]] = {
    "bernoulli": lambda channels: BernoulliLikelihood(),
    "continuous_bernoulli": lambda channels: ContinuousBernoulliLikelihood(),
    "gaussian": GaussianLikelihood,
    "logistic": LogisticLikelihood,
}


def location(conditional: Any) -> Tensor:
    """σ(η) of what a likelihood made of η.

    Example:
        >>> location(BernoulliLikelihood()(torch.zeros(1, 1, 1, 2)))
        tensor([[[[0.5000, 0.5000]]]])
    """
    pixels = conditional.base_dist
    return pixels.loc if hasattr(pixels, "loc") else pixels.probs


def make_likelihood(name: str, channels: int) -> nn.Module:
    """The likelihood of a name.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> type(make_likelihood("gaussian", 3)).__name__
        'GaussianLikelihood'
    """
    if name not in LIKELIHOODS:
        raise ValueError(f"likelihood is {name!r}, expected one of: {', '.join(LIKELIHOODS)}")
    return LIKELIHOODS[name](channels)
