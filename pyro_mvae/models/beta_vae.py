"""The β-VAE (Higgins et al., 2017): row 5 of the paper's Table 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_mvae.models.vae import VAE
from pyro_mvae.numbers import at_least


class BetaVAE(VAE):
    """A `VAE` whose KL counts β times: E_q[log p(x|z)] − β KL(q(z|x) ‖ p(z)).

    z ~ N(0, I), x ~ p(x|z); q(z|x) = N(loc(x), scale(x)²). The site `z` is weighed in the model and in the guide, so that every
    one of Pyro's bounds is right. With β > 1 the codes are pressed to be independent; the bound is the VAE's own for β = 1.

    Args:
        image_shape, latent_dim, and more: as `VAE`.
        beta: β, 0 or more.

    Raises:
        ValueError: for a β that is no finite number, 0 or more.

    Source: Higgins et al., β-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, 2017.

    Example:
        >>> BetaVAE((1, 28, 28), beta=2.0).kl_weight
        2.0
    """

    def __init__(self, image_shape: Sequence[int], latent_dim: int = 16, *, beta: float = 4.0, **more: Any):
        super().__init__(image_shape, latent_dim, **more)
        self.kl_weight = self.config["beta"] = at_least(beta, "beta")
