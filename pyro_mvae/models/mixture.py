"""A prior of clusters, shared by the models that have one."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn


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

    @torch.no_grad()
    def start(self, codes: Tensor, *, seed: int = 0, restarts: int = 10) -> None:
        """Take the parameters of the likeliest of several mixtures fitted to codes by expectation–maximisation."""
        fitted = GaussianMixture(len(self.loc), covariance_type="diag", n_init=restarts, random_state=seed)
        fitted.fit(codes.double().cpu().numpy())
        self.logits.copy_(torch.as_tensor(fitted.weights_).log())
        self.loc.copy_(torch.as_tensor(fitted.means_))
        self.log_scale.copy_(0.5 * torch.as_tensor(fitted.covariances_).log())
