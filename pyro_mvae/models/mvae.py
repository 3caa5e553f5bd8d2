"""The miniaturised variational autoencoder (Ene et al., 2024): the last row of the paper's Table 9."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_mvae.models.vae import VAE, checked_shape, positive
from pyro_mvae.nets import MobileDecoder, MobileEncoder


class MVAE(VAE):
    """The paper's mVAE: a `VAE` with mobile nets, made to be distilled, pruned and quantised under the objective (14).

    z ~ N(0, I), x ~ p(x|z); q(z|x) = N(loc(x), scale(x)²).

    Args:
        image_shape, latent_dim, likelihood, theta, theta_rank: as `VAE`.
        widths, hidden: of the mobile nets, see `MobileEncoder`; the defaults grow with the image.

    Example:
        >>> sum(p.numel() for p in MVAE(image_shape=(1, 28, 28)).parameters())
        61137
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        widths: Sequence[int] | None = None,
        hidden: int = 128,
        likelihood: str = "bernoulli",
        theta: str | None = None,
        theta_rank: int = 4,
    ):
        shape = checked_shape(image_shape)
        widths, latent_dim = tuple(widths or default_widths(shape)), positive(latent_dim, "latent_dim")
        encoder = MobileEncoder(shape, latent_dim, widths=widths, hidden=hidden)
        decoder = MobileDecoder(shape, latent_dim, widths=widths)
        super().__init__(
            image_shape,
            latent_dim,
            widths=widths,
            hidden=hidden,
            likelihood=likelihood,
            theta=theta,
            theta_rank=theta_rank,
            encoder=encoder,
            decoder=decoder,
        )


def default_widths(image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Channels after each halving, until the map is at most 4 × 4.

    Example:
        >>> default_widths((1, 28, 28)), default_widths((3, 64, 64))
        ((16, 32, 64), (16, 16, 32, 64))
    """
    stages, size = 0, max(image_shape[1:])
    while size > 4:
        size, stages = (size + 1) // 2, stages + 1
    return ((16,) * max(stages - 2, 0) + (32, 64))[-max(stages, 1) :]
