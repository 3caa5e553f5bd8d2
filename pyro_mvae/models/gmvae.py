"""The Gaussian mixture VAE (Dilokthanakul et al., 2016): row 3 of the paper's Table 9."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_mvae.data import Data
from pyro_mvae.models.vade import found_clusters
from pyro_mvae.models.vae import VAE, checked_cluster, draws, whole
from pyro_mvae.models.weighted import Weighted
from pyro_mvae.nets import make_nets
from pyro_mvae.nets.channels import keep_outputs


class GMVAE(VAE):
    """w ~ N(0, I), y ~ Categorical(1/K), z ~ N(loc_y(w), diag(scale_y(w)²)), x ~ p(x|z).

    θ′ ~ p(θ′) where the likelihood is Bayesian, (6) to (12).

    q(w, z, y|x) = q(w|x) q(z|x) p(y|w, z), the first two normal, the last by Bayes' rule. The guide marks y for parallel
    enumeration: `TraceEnum_ELBO(max_plate_nesting=1)` and `fit` sum over it exactly, `Trace_ELBO` samples it.

    Args:
        image_shape, latent_dim, and more: as `VAE`.
        num_clusters: K.
        style_dim: size of w, which varies what a cluster looks like.
        style_hidden: units between w and the components' locs and scales.

    Raises:
        ValueError: for sizes that can't be.

    Shapes: sites w (n, style_dim), y (n,), z (n, latent_dim), x (n, C, H, W).

    Source: Dilokthanakul et al., Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, 2016.

    Example:
        >>> from pyro.infer import SVI, TraceEnum_ELBO
        >>> vae = GMVAE((1, 28, 28), 10)
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
        >>> svi.step(torch.rand(4, 1, 28, 28).round()) > 0
        True
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        num_clusters: int = 10,
        style_dim: int = 8,
        style_hidden: int = 64,
        **more: Any,
    ):
        super().__init__(image_shape, latent_dim, **more)
        self.num_clusters, self.style_dim = whole(num_clusters, "num_clusters"), whole(style_dim, "style_dim")
        self.config |= {
            "num_clusters": num_clusters,
            "style_dim": style_dim,
            "style_hidden": whole(style_hidden, "style_hidden"),
        }
        sizes = {name: self.config[name] for name in ("widths", "hidden")}
        self.encoder_style, _ = make_nets(self.config["net"], self.image_shape, style_dim, **sizes)
        self.components = Components(style_dim, num_clusters, latent_dim, hidden=style_hidden)

    def style_posterior(self, x: Tensor) -> TorchDistributionMixin:
        """q(w|x)."""
        loc, scale = self.encoder_style(x)
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def style_prior(self, n: int) -> TorchDistributionMixin:
        """p(w) for n data."""
        loc = next(self.parameters()).new_zeros(n, self.style_dim)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)

    def model(self, x: Tensor) -> Tensor:
        """p(x, z, y, w, θ′), with sites `w`, `y`, `z`, `x` and, if it is random, `theta` in the plate `data`; returns z."""
        self.check_batch(x)
        self.register(guide=False)
        n = x.shape[0]
        with pyro.plate("data", n):
            with Weighted(self.kl_weight):
                w = pyro.sample("w", self.style_prior(n))
                y = pyro.sample("y", dist.Categorical(logits=w.new_zeros(n, self.components.shape[0])))
                loc, scale = self.components(w)
                place = torch.arange(n, device=x.device), y
                z = pyro.sample("z", dist.Normal(loc[place], scale[place], validate_args=False).to_event(1))
            pyro.sample("x", self.conditional(z, self.draw_theta(n)), obs=x)
        return z

    def guide(self, x: Tensor) -> None:
        """q(w, z, y, θ′|x), with the sites of `model` but `x` in the plate `data`."""
        self.check_batch(x)
        self.register(guide=True)
        with pyro.plate("data", x.shape[0]):
            with Weighted(self.kl_weight):
                w = pyro.sample("w", self.style_posterior(x))
                z = pyro.sample("z", self.posterior(x))
                logits = self.components.log_prob(w, z)
                pyro.sample("y", dist.Categorical(logits=logits, validate_args=False), infer={"enumerate": "parallel"})
            self.infer_theta(x)

    def propose(self, x: Tensor, num_samples: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """z, drawn from q, and log p(w) Σ_y p(y) p(z|w, y) − log q(w|x) q(z|x)."""
        self.check_batch(x)
        style, posterior = self.style_posterior(x), self.posterior(x)
        w, z = draws(style, num_samples), draws(posterior, num_samples)
        log_prior = self.style_prior(x.shape[0]).log_prob(w) + self.components.log_prob(w, z).logsumexp(-1)
        return self.propose_theta(x, z, log_prior - style.log_prob(w) - posterior.log_prob(z))

    def clusters(self, x: Tensor) -> Tensor:
        """p(y|w, z) at the means of q(w|x) and q(z|x); (n, num_clusters)."""
        return self.clusters_at(self.encode(x), self.encoder_style(x)[0])

    def clusters_at(self, z: Tensor, w: Tensor) -> Tensor:
        """p(y|w, z); (n, latent_dim), (n, style_dim) → (n, num_clusters)."""
        return self.components.log_prob(w, z).softmax(-1)

    def initialize(
        self, data: Data | Tensor, *, start: str = "autoencoder", seed: int = 0, fit: Callable[..., Any] | None = None, **how: Any
    ) -> float:
        """Find clusters, and let p(z|w, y) begin with them, varied little by w; otherwise as `VaDE.initialize`."""
        begun = time.perf_counter()
        gaussians = found_clusters(self, data, start, fit=fit, seed=seed, **how)
        with torch.no_grad():
            for layer, values in ((self.components.loc, gaussians.loc), (self.components.log_scale, gaussians.scale.log())):
                layer.bias.copy_(values.flatten())
                layer.weight *= 0.1
        return time.perf_counter() - begun

    def keep_latents(self, kept: Sequence[int]) -> None:
        """As `VAE.keep_latents`, for the components too."""
        super().keep_latents(kept)
        self.components.keep(kept)

    def generate(self, n: int, *, cluster: int | None = None) -> Tensor:
        """Pictures, of one cluster or of all; (n, C, H, W)."""
        loc, scale = self.components(self.style_prior(whole(n, "n", least=0)).sample())
        num_clusters = self.components.shape[0]
        some = torch.randint(num_clusters, (n,))
        y = some if cluster is None else torch.full_like(some, checked_cluster(cluster, num_clusters))
        place = torch.arange(n), y.to(loc.device)
        return self.decode(dist.Normal(loc[place], scale[place]).sample())


class Components(nn.Module):
    """w → loc and scale of every component of p(z|w, y).

    Shapes: (…, style_dim) → (…, K, latent_dim) twice.

    Example:
        >>> loc, scale = Components(2, 10, 4, hidden=8)(torch.randn(5, 2))
        >>> loc.shape
        torch.Size([5, 10, 4])
    """

    def __init__(self, style_dim: int, num_clusters: int, latent_dim: int, *, hidden: int):
        super().__init__()
        self.shape = (num_clusters, latent_dim)
        self.body = nn.Sequential(nn.Linear(style_dim, hidden), nn.Tanh())
        self.loc = nn.Linear(hidden, num_clusters * latent_dim)
        self.log_scale = nn.Linear(hidden, num_clusters * latent_dim)

    def keep(self, kept: Sequence[int]) -> None:
        """Leave these dimensions of z alone, in place."""
        num_clusters, latent_dim = self.shape
        places = [y * latent_dim + dim for y in range(num_clusters) for dim in kept]
        for layer in (self.loc, self.log_scale):
            keep_outputs(layer, places)
        self.shape = (num_clusters, len(kept))

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(w)
        return self.loc(h).unflatten(-1, self.shape), self.log_scale(h).unflatten(-1, self.shape).exp()

    def log_prob(self, w: Tensor, z: Tensor) -> Tensor:
        """log p(z, y|w) for every y; (…, K)."""
        loc, scale = self(w)
        uniform = torch.log(loc.new_tensor(1.0 / self.shape[0]))
        return dist.Normal(loc, scale, validate_args=False).log_prob(z[..., None, :]).sum(-1) + uniform
