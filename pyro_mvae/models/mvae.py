"""The miniaturised variational autoencoder (Ene et al., 2024): the last row of the paper's Table 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_mvae.models.vade import VaDE


class MVAE(VaDE):
    """The paper's mVAE: mobile nets, made to be distilled, pruned and quantised under the objective (14).

    z ~ N(0, I), or with clusters y ~ Categorical(π), z ~ N(loc_y, diag(scale_y²)); θ′ ~ p(θ′) where the likelihood is Bayesian,
    (6) to (12); x ~ p(x|z, θ′). q(z, θ′|x) = N(z; loc(x), scale(x)²) q(θ′|x), and q(y|z) = p(y|z), see `VaDE`.

    Args:
        image_shape, latent_dim: as `VAE`.
        net: as `VAE`; the widths of mobile nets grow with the image unless told.
        num_clusters: how many values y has; None, and there is none.
        more: as `VAE`; `theta` makes the likelihood Bayesian.

    Raises:
        ValueError: as `VaDE`.

    Source: Ene et al., 2024, sections 2.1 to 2.3 and 3.3.

    Example:
        >>> sum(p.numel() for p in MVAE(image_shape=(1, 28, 28)).parameters())
        61137
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        net: str = "mobile",
        num_clusters: int | None = None,
        **more: Any,
    ):
        super().__init__(image_shape, latent_dim, net=net, num_clusters=num_clusters, **more)

    def initialize(self, data: Any, *, start: str = "neighbours", **more: Any) -> float:
        """As `VaDE.initialize`, from nearest neighbours unless told."""
        return super().initialize(data, start=start, **more)
