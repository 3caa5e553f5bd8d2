"""Variational deep embedding (Jiang et al., 2017): row 2 of the paper's Table 9."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_mvae.data import Data
from pyro_mvae.models.mixture import Gaussians, Mixture, likeliest, of_clusters
from pyro_mvae.models.neighbours import Reader, labelled, neighbourhoods
from pyro_mvae.models.vae import VAE, checked_cluster, codes, register_children, whole


class VaDE(VAE):
    """y ~ Categorical(π), z ~ N(loc_y, diag(scale_y²)), x ~ p(x|z); q(y, z|x) = q(z|x) p(y|z), q(z|x) = N(loc(x), scale(x)²).

    p(y|z) is the best q(y|z) there is, and with it the sum over y is exact: the bound is that of a model with the marginal prior
    p(z) = Σ_y π_y N(z; loc_y, scale_y²), which is how it is written, with z as its only latent site.

    Args:
        image_shape, latent_dim, and more: as `VAE`.
        num_clusters: how many values y has; None for a prior without clusters, N(0, I).

    Raises:
        ValueError: as `VAE`, and for less than one cluster.

    Source: Jiang et al., Variational Deep Embedding, 2017. There the nets are `net="mlp"`, `widths=(500, 500)`, `hidden=2000`,
        `latent_dim=10`, and training starts from an autoencoder and a mixture fitted to its codes: see `initialize`.

    Example:
        >>> vae = VaDE((1, 28, 28), 10, num_clusters=10)
        >>> vae.clusters(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int = 16, *, num_clusters: int | None = 10, **more: Any):
        super().__init__(image_shape, latent_dim, **more)
        self.num_clusters = self.config["num_clusters"] = num_clusters
        self.mixture = None if num_clusters is None else Mixture(whole(num_clusters, "num_clusters"), latent_dim)

    def prior(self, n: int) -> TorchDistributionMixin:
        """p(z), y summed out, for n data."""
        return super().prior(n) if self.mixture is None else self.mixture(n)

    def keep_latents(self, kept: Sequence[int]) -> None:
        """As `VAE.keep_latents`, for the clusters too."""
        super().keep_latents(kept)
        if self.mixture is not None:
            self.mixture.keep(kept)

    @property
    def clustered(self) -> Mixture:
        """The prior, where it has clusters; a ValueError where it has none."""
        if self.mixture is None:
            raise ValueError(f"this {type(self).__name__} has no clusters: make it with num_clusters, such as 10")
        return self.mixture

    def clusters(self, x: Tensor) -> Tensor:
        """p(y|z) at the mean of q(z|x); (n, num_clusters)."""
        return self.clusters_at(self.encode(x))

    def clusters_at(self, z: Tensor) -> Tensor:
        """p(y|z); (n, latent_dim) → (n, num_clusters)."""
        return self.clustered.responsibilities(z)

    def generate(self, n: int, *, cluster: int | None = None) -> Tensor:
        """Pictures, of one cluster or of all; (n, C, H, W)."""
        if cluster is None:
            return super().generate(n)
        cluster = checked_cluster(cluster, self.clustered.loc.shape[0])
        loc, scale = self.clustered.loc[cluster], self.clustered.log_scale[cluster].exp()
        return self.decode(loc + scale * torch.randn(whole(n, "n", least=0), self.latent_dim, device=loc.device))

    def initialize(
        self, data: Data | Tensor, *, start: str = "autoencoder", seed: int = 0, fit: Callable[..., Any] | None = None, **how: Any
    ) -> float:
        """Find clusters, and let the prior begin with them; how many seconds that took.

        Args:
            data: training images of a `Data`, or uint8, (n, C, H, W).
            start: "autoencoder" for the likeliest Gaussian mixture of an autoencoder's codes, as the authors begin; "neighbours"
                for clusters of pictures joined through their nearest neighbours, as an encoder learns to read them off moved
                pictures, see `neighbourhoods` and `Reader`.
            fit: what trains a pair as `pyro_mvae.fit` does; that itself when None.
            how: settings of `fit`, such as `epochs`.

        Raises:
            ValueError: for an unknown start, fewer images than clusters, or a model without clusters.
        """
        begun = time.perf_counter()
        self.clustered.start(found_clusters(self, data, start, fit=fit, seed=seed, **how))
        return time.perf_counter() - begun


STARTS = ("autoencoder", "neighbours")


def found_clusters(
    vae: VAE, data: Data | Tensor, start: str, *, fit: Callable[..., Any] | None, seed: int, **how: Any
) -> Gaussians:
    """The clusters of a model's codes, once its encoder has been made to have some."""
    if start not in STARTS:
        raise ValueError(f"start is {start!r}, expected one of: {', '.join(STARTS)}")
    images = data.train.images if isinstance(data, Data) else data
    assert vae.num_clusters is not None
    vae.check_bytes(images)
    if len(images) < vae.num_clusters:
        raise ValueError(f"there are {len(images)} images, expected {vae.num_clusters} or more, one for each cluster")
    if fit is None:
        from pyro_mvae.inference.asvi import fit  # the one import upwards: models know nothing else of how they are trained
    if start == "autoencoder":
        fit(Autoencoder(vae), data, seed=seed, **how)
        return likeliest(codes(vae, images), vae.num_clusters, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(vae, vae.num_clusters).to(next(vae.parameters()).device)
    found = neighbourhoods(images, vae.num_clusters, seed=seed)
    fit(reader, labelled(images, found, vae.num_clusters), seed=seed, **how)
    return of_clusters(codes(vae, images), reader.read(images), vae.num_clusters)


class Autoencoder(nn.Module):
    """A VAE's nets without its latent variable: x ~ p(x|z = loc(x)). Shares the parameters."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.encoder, self.decoder, self.likelihood = vae.encoder, vae.decoder, vae.likelihood

    def model(self, x: Tensor) -> None:
        register_children(self, lambda name: True)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", self.likelihood(self.decoder(self.encoder(x)[0])), obs=x)

    def guide(self, x: Tensor) -> None:
        """Nothing is latent."""
