"""The miniaturised variational autoencoder (Ene et al., 2024): the last row of the paper's Table 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_mvae.models.vae import VAE


class MVAE(VAE):
    """The paper's mVAE: a `VAE` with mobile nets, made to be distilled, pruned and quantised under the objective (14).

    z ~ N(0, I), x ~ p(x|z); q(z|x) = N(loc(x), scale(x)²).

    Args:
        image_shape, latent_dim: as `VAE`.
        net, and more: as `VAE`; the widths of mobile nets grow with the image unless told.

    Example:
        >>> sum(p.numel() for p in MVAE(image_shape=(1, 28, 28)).parameters())
        61137
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int = 16, *, net: str = "mobile", **more: Any):
        super().__init__(image_shape, latent_dim, net=net, **more)
