"""The hyperspherical VAE (Davidson et al., 2018): row 7 of the paper's Table 9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_mvae.distributions import PowerSpherical, SphereUniform, VonMisesFisher
from pyro_mvae.models.vae import VAE, whole

POSTERIORS = {"von_mises_fisher": VonMisesFisher, "power_spherical": PowerSpherical}


class SVAE(VAE):
    """z uniform on the unit sphere in d dimensions, x ~ p(x|z); q(z|x) = vMF(loc(x) / ‖loc(x)‖, κ(x)), κ = 1 / scale(x)².

    The same κ in training and evaluation. The KL from the uniform prior is in closed form. Draws are exact, and so is their
    gradient, see `VonMisesFisher`; `PowerSpherical` is the faster choice: nothing is rejected.

    Args:
        image_shape, and more: as `VAE`.
        latent_dim: d, the dimension of the space that the sphere is in; codes have d − 1 degrees of freedom.
        family: of q(z|x), "von_mises_fisher" or "power_spherical".

    Raises:
        ValueError: for an unknown family, or d below 2.

    Source: Davidson et al., Hyperspherical Variational Auto-Encoders, 2018; De Cao and Aziz, 2020.

    Example:
        >>> import torch
        >>> vae = SVAE((1, 28, 28), 11)
        >>> torch.allclose(vae.encode(torch.rand(2, 1, 28, 28)).norm(dim=-1), torch.ones(2))
        True
    """

    meanings: Mapping[str, str] = {
        "z": "a code, a point on the sphere: loc divided by its length",
        "loc": "the direction that q(z|x) is around, not yet divided by its length",
        "scale": "1 / √κ of q(z|x)",
    }

    def __init__(self, image_shape: Sequence[int], latent_dim: int = 16, *, family: str = "von_mises_fisher", **more: Any):
        if whole(latent_dim, "latent_dim") < 2:
            raise ValueError(f"latent_dim is {latent_dim}, expected 2 or more: a sphere has no fewer dimensions")
        if family not in POSTERIORS:
            raise ValueError(f"family is {family!r}, expected one of: {', '.join(POSTERIORS)}")
        super().__init__(image_shape, latent_dim, num_scales=1, **more)
        self.family = self.config["family"] = family

    def prior(self, n: int) -> TorchDistributionMixin:
        """p(z), uniform on the sphere, for n data."""
        return SphereUniform(self.latent_dim, (n,), like=next(self.parameters()))

    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """q(z|x)."""
        loc, scale = self.encoder(x)
        return POSTERIORS[self.family](F.normalize(loc, dim=-1), scale[:, 0] ** -2, validate_args=False)

    def code_of(self, loc: Tensor) -> Tensor:
        """The direction that q(z|x) is around; (n, latent_dim), of length 1."""
        return F.normalize(loc, dim=-1)

    def keep_latents(self, kept: Sequence[int]) -> None:
        """As `VAE.keep_latents`; 2 or more, a sphere has no fewer dimensions."""
        if len(kept) < 2:
            raise ValueError(f"{len(kept)} dimensions would be kept, expected 2 or more: a sphere has no fewer")
        super().keep_latents(kept)

    def draw_like(self, z: Tensor, n: int) -> Tensor:
        """As `VAE.draw_like`, back on the sphere."""
        return F.normalize(super().draw_like(z, n), dim=-1)
