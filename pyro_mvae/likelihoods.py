"""Likelihoods p(x|z): what a decoder's output means.

A likelihood is a module called with the decoder's output η, (…, C, H, W), that returns the distribution of an image; its own
parameters belong to θ. `mean` is its expectation as a picture in [0, 1], and is the same function for all of them, so that an
exported decoder does not depend on which one it was trained with.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints


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
        inside = (value > self.half_width) & (value < 1 - self.half_width)
        return (
            torch.where(value < 1 - self.half_width, F.logsigmoid(above), 0.0)
            + torch.where(value > self.half_width, F.logsigmoid(-below), 0.0)
            + torch.where(inside, width, 0.0)
        )

    def sample(self, sample_shape=torch.Size()) -> Tensor:  # noqa: B008  torch's own signature
        u = torch.rand(self._extended_shape(sample_shape), device=self.loc.device).clamp(1e-7, 1 - 1e-7)
        with torch.no_grad():
            return torch.round((self.loc + self.scale * torch.logit(u)).clamp(0, 1) * 255) / 255


class BernoulliLikelihood(nn.Module):
    """x ~ Bernoulli(σ(η)), for binarised images.

    Example:
        >>> BernoulliLikelihood()(torch.zeros(2, 1, 8, 8)).log_prob(torch.ones(2, 1, 8, 8)) / 64
        tensor([-0.6931, -0.6931])
    """

    name = "bernoulli"

    def forward(self, eta: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=eta, validate_args=False).to_event(3)


class LogisticLikelihood(nn.Module):
    """x ~ Logistic(σ(η), s) on 256 levels, for grey and colour images; one scale s a channel, a parameter of θ.

    Example:
        >>> LogisticLikelihood(3)(torch.zeros(2, 3, 8, 8)).event_shape
        torch.Size([3, 8, 8])
    """

    name = "logistic"

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((channels, 1, 1), math.log(0.1)))

    def forward(self, eta: Tensor) -> TorchDistributionMixin:
        return Logistic(eta.sigmoid(), self.log_scale.exp(), validate_args=False).to_event(3)
