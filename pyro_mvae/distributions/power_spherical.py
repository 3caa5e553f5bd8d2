"""The Power Spherical distribution: as von Mises–Fisher, but drawn without rejection."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.distributions.kl import register_kl

from pyro_mvae.distributions.sphere import Directional, SphereUniform, log_area


class PowerSpherical(Directional):
    """p(x) ∝ (1 + locᵀx)^κ on the unit sphere: (1 + t) / 2 ~ Beta((d − 1) / 2 + κ, (d − 1) / 2).

    Args: as `Directional`.

    Source: De Cao and Aziz, The Power Spherical Distribution, 2020.

    Example:
        >>> p = PowerSpherical(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(10.0))
        >>> p.mean
        tensor([0.8333, 0.0000, 0.0000])
    """

    @property
    def shapes(self) -> tuple[Tensor, float]:
        """The two parameters of the Beta distribution."""
        other = 0.5 * (self.dim - 1)
        return self.concentration + other, other

    def cosine(self, sample_shape: Any) -> Tensor:
        first, second = self.shapes
        beta = Beta(first, torch.full_like(first, second), validate_args=False)
        return 2 * beta.rsample(torch.Size(sample_shape)) - 1

    def mean_cosine(self) -> Tensor:
        first, second = self.shapes
        return (first - second) / (first + second)

    def log_normalizer(self) -> Tensor:
        """The logarithm of what (1 + locᵀx)^κ is multiplied by; in float64, where a difference of large numbers survives."""
        first, second = self.shapes
        wide = first.double()
        return -(wide + second) * math.log(2) - second * math.log(math.pi) - torch.lgamma(wide) + torch.lgamma(wide + second)

    def log_prob(self, value: Tensor) -> Tensor:
        t = (self.loc * value).sum(-1).clamp(min=-1 + 1e-7)
        return (self.concentration * torch.log1p(t.double()) + self.log_normalizer()).to(t.dtype)

    def entropy(self) -> Tensor:
        first, second = self.shapes
        wide = first.double()
        mean_log = math.log(2) + torch.digamma(wide) - torch.digamma(wide + second)
        return (-self.log_normalizer() - self.concentration.double() * mean_log).to(first.dtype)


@register_kl(PowerSpherical, SphereUniform)
def kl_to_uniform(p: PowerSpherical, q: SphereUniform) -> Tensor:
    """log |S| − H(p)."""
    return log_area(p.dim) - p.entropy()
