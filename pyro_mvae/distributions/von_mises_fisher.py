"""The von Mises–Fisher distribution: what a normal distribution is on a line, on a sphere."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions.kl import register_kl

from pyro_mvae.distributions.bessel import log_normalizer, mean_cosine, mean_cosine_of
from pyro_mvae.distributions.sphere import Directional, SphereUniform, log_area

NODES = 64
REACH = 12.0
"""How far, in standard deviations of the angle, the integral of the gradient goes."""


class VonMisesFisher(Directional):
    """p(x) = C_d(κ) exp(κ locᵀx) on the unit sphere.

    Draws are by rejection and never given up. Their gradient in κ is the exact one of the cosine's quantiles, dt/dκ =
    −∂F(t; κ)/∂κ ÷ p(t; κ), which needs no correction for what was rejected; that in loc is the rotation's.

    Args: as `Directional`; d from 2 to 256 is tested, κ up to 1e5.

    Source: Wood, Simulation of the von Mises Fisher Distribution, 1994; Figurnov, Mohamed and Mnih, Implicit Reparameterization
        Gradients, 2018.

    Example:
        >>> p = VonMisesFisher(torch.tensor([1.0, 0.0, 0.0]), torch.tensor(10.0))
        >>> p.mean
        tensor([0.9000, 0.0000, 0.0000])
    """

    def cosine(self, sample_shape: Any) -> Tensor:
        return _cosine(self.concentration.expand(torch.Size(sample_shape) + self.batch_shape), self.dim)

    def mean_cosine(self) -> Tensor:
        return mean_cosine(self.concentration, self.dim)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.concentration * (self.loc * value).sum(-1) + log_normalizer(self.concentration, self.dim)

    def entropy(self) -> Tensor:
        wide = self.concentration.double()  # where the difference of two large numbers survives
        return (-wide * mean_cosine(wide, self.dim) - log_normalizer(wide, self.dim)).to(self.concentration.dtype)


@register_kl(VonMisesFisher, SphereUniform)
def kl_to_uniform(p: VonMisesFisher, q: SphereUniform) -> Tensor:
    """κ A_d(κ) + log C_d(κ) + log |S|."""
    return log_area(p.dim) - p.entropy()


@torch.no_grad()
def draw_cosine(kappa: Tensor, dim: int) -> Tensor:
    """t ~ p(t) ∝ exp(κt) (1 − t²)^{(d−3)/2}, by rejection, until every element is accepted; NaN where κ is not finite."""
    wide, m = kappa.double().flatten(), dim - 1
    b = m / (2 * wide + torch.sqrt(4 * wide**2 + m**2))
    x = (1 - b) / (1 + b)
    c = wide * x + m * torch.log1p(-(x**2))
    drawn, open_ = torch.full_like(wide, torch.nan), wide.isfinite().nonzero()[:, 0]
    proposal = torch.distributions.Beta(wide.new_tensor(m / 2), wide.new_tensor(m / 2), validate_args=False)
    while open_.numel():
        epsilon, b_, x_ = proposal.sample(open_.shape), b[open_], x[open_]
        t = (1 - (1 + b_) * epsilon) / (1 - (1 - b_) * epsilon)
        accepted = wide[open_] * t + m * torch.log1p(-x_ * t) - c[open_] >= torch.rand_like(t).log()
        drawn[open_[accepted]] = t[accepted]
        open_ = open_[~accepted]
    return drawn.clamp(-1, 1).view(kappa.shape).to(kappa.dtype)


@torch.no_grad()
def cosine_slope(t: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """dt/dκ = ∫_t^1 (s − A) p(s) ds / p(t) = −∫_{−1}^t (s − A) p(s) ds / p(t), by Gauss and Legendre's rule in the angle.

    Of the two the one is taken whose integrand has one sign: nothing cancels.
    """
    wide, s = kappa.double(), t.double().clamp(-1 + 1e-14, 1 - 1e-14)
    nodes, weights = (torch.as_tensor(part, device=t.device) for part in gauss_legendre())
    angle, mean = torch.arccos(s), mean_cosine_of(wide, dim)
    reach = REACH / torch.sqrt(wide + dim - 1)
    inward = s >= mean
    end = torch.where(inward, (angle - reach).clamp(min=0), (angle + reach).clamp(max=math.pi))
    theta = angle[..., None] + (end - angle)[..., None] * nodes
    ratio = torch.sin(theta) / torch.sin(angle)[..., None]
    log_density = wide[..., None] * (torch.cos(theta) - s[..., None]) + (dim - 2) * torch.log(ratio.clamp(min=1e-300))
    integrand = (torch.cos(theta) - mean[..., None]).abs() * torch.exp(log_density) * torch.sin(angle)[..., None]
    return ((integrand * weights).sum(-1) * (end - angle).abs()).to(t.dtype)


@functools.cache
def gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (nodes + 1) / 2, weights / 2


_slope = torch.library.custom_op(
    "pyro_mvae::von_mises_fisher_cosine_slope",
    cosine_slope,
    mutates_args=(),
    schema="(Tensor t, Tensor kappa, int dim) -> Tensor",
)
_slope.register_fake(lambda t, kappa, dim: torch.empty_like(t))
_cosine = torch.library.custom_op(
    "pyro_mvae::von_mises_fisher_cosine",
    draw_cosine,
    mutates_args=(),
    schema="(Tensor kappa, int dim) -> Tensor",
    tags=[torch.Tag.nondeterministic_seeded],
)
_cosine.register_fake(lambda kappa, dim: kappa.new_empty(kappa.shape))


def remember(ctx: Any, inputs: Any, output: Tensor) -> None:
    kappa, ctx.dim = inputs
    ctx.save_for_backward(output, kappa)


_cosine.register_autograd(lambda ctx, gradient: (gradient * _slope(*ctx.saved_tensors, ctx.dim), None), setup_context=remember)
