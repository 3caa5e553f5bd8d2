"""A VAE whose every quantity has a closed form: z ~ N(0, I), x ~ N(Wz + b, σ²I), q(z|x) = N(Ax + c, diag(s²))."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_mvae import VAE


class LinearGaussian(nn.Module):
    """Images of (1, 2, 3), codes of 2; float64, so that what is compared is mathematics and not rounding."""

    image_shape, theta, check, propose = (1, 2, 3), None, VAE.check, VAE.propose
    propose_theta, check_batch, check_lone, check_type = VAE.propose_theta, VAE.check_batch, VAE.check_lone, VAE.check_type

    def __init__(self, *, sigma: float = 0.5, exact: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        draw = lambda *shape: nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))  # noqa: E731
        self.latent_dim, self.sigma = 2, sigma
        self.W, self.b, self.A, self.c, self.log_s = draw(6, 2), draw(6), draw(2, 6), draw(2), draw(2)
        self.log_s.data -= 2  # little noise, so that a wrong term stands out
        if exact:  # a diagonal posterior is exact when the columns of W are orthogonal
            self.W.data = torch.linalg.qr(self.W.data).Q * torch.tensor([2.0, 0.7], dtype=torch.float64)
            precision = (self.W.data**2).sum(0) / sigma**2 + 1
            self.A.data = (self.W.data / sigma**2 / precision).T
            self.c.data = -self.A.data @ self.b.data
            self.log_s.data = -precision.log() / 2

    def prior(self, n: int):
        return dist.Normal(self.W.new_zeros(n, 2), 1.0).to_event(1)

    def posterior(self, x: Tensor):
        loc = x.flatten(1) @ self.A.T + self.c
        return dist.Normal(loc, self.log_s.exp().expand_as(loc)).to_event(1)

    def conditional(self, z: Tensor):
        return dist.Normal((z @ self.W.T + self.b).unflatten(-1, (1, 2, 3)), self.sigma).to_event(3)

    def model(self, x: Tensor) -> None:
        pyro.module("theta", nn.ParameterList([self.W, self.b]))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior(x.shape[0]))
            pyro.sample("x", self.conditional(z), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("phi", nn.ParameterList([self.A, self.c, self.log_s]))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.posterior(x))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) = log N(x; b, WWᵀ + σ²I)."""
        covariance = self.W @ self.W.T + self.sigma**2 * torch.eye(6, dtype=self.W.dtype)
        return torch.distributions.MultivariateNormal(self.b, covariance).log_prob(x.flatten(1))

    def elbo(self, x: Tensor) -> Tensor:
        """Exact ELBO: E_q‖x − Wz − b‖² = ‖x − Wm − b‖² + Σⱼ sⱼ²‖W_j‖²."""
        flat = x.flatten(1)
        m, s = flat @ self.A.T + self.c, self.log_s.exp()
        square = (flat - m @ self.W.T - self.b).square().sum(-1) + (s**2 * (self.W**2).sum(0)).sum()
        likelihood = -square / (2 * self.sigma**2) - 6 * math.log(self.sigma * math.sqrt(2 * math.pi))
        kl = 0.5 * (m**2 + s**2 - 1 - 2 * self.log_s).sum(-1)
        return likelihood - kl


def data(n: int = 8) -> Tensor:
    return torch.randn(n, 1, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
