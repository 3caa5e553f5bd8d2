"""A prior of clusters, shared by the models that have one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_mvae.nets.channels import selected


class Mixture(nn.Module):
    """p(z) = Σ_y π_y N(z; loc_y, diag(scale_y²)), its parameters learnt with the rest of θ.

    Args:
        num_clusters: how many components y there are.
        latent_dim: size of z.

    Example:
        >>> Mixture(10, 4)(5).sample().shape
        torch.Size([5, 4])
    """

    def __init__(self, num_clusters: int, latent_dim: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_clusters))
        self.loc = nn.Parameter(torch.randn(num_clusters, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_clusters, latent_dim))

    def forward(self, n: int) -> TorchDistributionMixin:
        """p(z) for n data."""
        components = dist.Normal(self.loc, self.log_scale.exp(), validate_args=False).to_event(1)
        choice = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(choice, components, validate_args=False).expand((n,))

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(z, y) for every y; (…, d) → (…, K)."""
        squares = ((z[..., None, :] - self.loc) / self.log_scale.exp()).square().sum(-1)
        constant = self.log_scale.sum(-1) + 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return self.logits.log_softmax(-1) - 0.5 * squares - constant

    def responsibilities(self, z: Tensor) -> Tensor:
        """p(y|z), by Bayes' rule; (…, d) → (…, K)."""
        return self.log_joint(z).softmax(-1)

    def keep(self, kept: Sequence[int]) -> None:
        """Leave these dimensions of z alone, in place."""
        self.loc, self.log_scale = selected(self.loc, kept, axis=1), selected(self.log_scale, kept, axis=1)

    @torch.no_grad()
    def start(self, gaussians: Gaussians) -> None:
        """Take up these components."""
        self.logits.copy_(gaussians.weights.log())
        self.loc.copy_(gaussians.loc)
        self.log_scale.copy_(gaussians.scale.log())


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Components of a mixture: weights (K,), locs and scales (K, d)."""

    weights: Tensor
    loc: Tensor
    scale: Tensor


def likeliest(codes: Tensor, num_clusters: int, *, seed: int = 0, restarts: int = 10) -> Gaussians:
    """The likeliest of several mixtures fitted to codes by expectation–maximisation.

    Example:
        >>> likeliest(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2).loc.sort(0).values.round(decimals=2).flatten().tolist()
        [0.05..., 5.05...]
    """
    from sklearn.mixture import GaussianMixture  # slow to import

    fitted = GaussianMixture(num_clusters, covariance_type="diag", n_init=restarts, random_state=seed)
    fitted.fit(codes.double().cpu().numpy())
    weights, loc, variance = (torch.as_tensor(value) for value in (fitted.weights_, fitted.means_, fitted.covariances_))
    return Gaussians(weights, loc, variance.sqrt())


def of_clusters(codes: Tensor, clusters: Tensor, num_clusters: int) -> Gaussians:
    """The components whose codes are known; a cluster with one code or none is as wide as all, and weighs as one.

    Example:
        >>> of_clusters(torch.tensor([[0.0], [2.0], [5.0], [9.0]]), torch.tensor([0, 0, 1, 1]), 2).loc.flatten().tolist()
        [1.0, 7.0]
    """
    own = [codes[clusters == y] for y in range(num_clusters)]
    weights = torch.tensor([float(max(len(some), 1)) for some in own])
    own = [some if len(some) > 1 else codes for some in own]
    loc, scale = torch.stack([some.mean(0) for some in own]), torch.stack([some.std(0) for some in own])
    return Gaussians(weights / weights.sum(), loc, scale.clamp(min=1e-3))
