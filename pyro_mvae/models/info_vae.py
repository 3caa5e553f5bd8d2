"""The InfoVAE (Zhao, Song and Ermon, 2019): row 4 of the paper's Table 9."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_mvae.models.vae import VAE
from pyro_mvae.numbers import number


class InfoVAE(VAE):
    """A `VAE` whose codes are held to the prior as a whole.

    E_q[log p(x|z)] − (1 − α) KL(q(z|x) ‖ p(z)) − (α + λ − 1) MMD(q(z), p(z)).

    z ~ N(0, I), x ~ p(x|z); q(z|x) = N(loc(x), scale(x)²), q(z) its mean over the data. MMD is estimated between the codes of a
    batch and as many draws from the prior, and enters the model as the factor `mmd`. α = 0, λ = 1 is the VAE; α = 1 has
    no KL at all (MMD-VAE).

    Args:
        image_shape, latent_dim, and more: as `VAE`.
        alpha, weight: α, 1 at most, and λ, with α + λ of 1 or more, as in the paper.
        kernel: of the MMD, "rbf" or "imq", see `KERNELS`.
        bandwidths: the kernel's, in units of the typical squared distance of two draws from the prior, 2 · latent_dim; more than
            one are summed.

    Raises:
        ValueError: for α above 1, α + λ below 1, an unknown kernel, or bandwidths that are not above 0.

    Source: Zhao, Song and Ermon, InfoVAE: Balancing Learning and Inference in Variational Autoencoders, 2019; λ there is for a
        divergence summed over the data as here.

    Example:
        >>> InfoVAE((1, 28, 28), alpha=0.5, weight=10.0).kl_weight
        0.5
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        alpha: float = 0.0,
        weight: float = 1000.0,
        kernel: str = "imq",
        bandwidths: Sequence[float] = (1.0,),
        **more: Any,
    ):
        super().__init__(image_shape, latent_dim, **more)
        if not number(alpha, "alpha") <= 1 or not 1 <= alpha + number(weight, "weight") < math.inf:
            raise ValueError(f"alpha is {alpha} and weight {weight}, expected alpha of 1 at most, and 1 or more together, finite")
        if kernel not in KERNELS:
            raise ValueError(f"kernel is {kernel!r}, expected one of: {', '.join(KERNELS)}")
        listed = isinstance(bandwidths, Sequence) and len(bandwidths) > 0
        if not listed or not all(isinstance(width, Real) and 0 < width < math.inf for width in bandwidths):
            raise ValueError(f"bandwidths are {bandwidths}, expected one or more numbers above 0, such as (1.0,)")
        self.kl_weight, self.mmd_weight = 1.0 - alpha, alpha + weight - 1.0
        self.kernel, self.bandwidths = kernel, tuple(bandwidths)
        self.config |= {"alpha": alpha, "weight": weight, "kernel": kernel, "bandwidths": list(bandwidths)}

    def model(self, x: Tensor) -> Tensor:
        """p(x, z), with sites `z` and `x` in the plate `data`, and the factor `mmd`."""
        z, n = super().model(x), x.shape[0]
        divergence = mmd(z, self.prior(n).sample(), kernel=self.kernel, bandwidths=self.bandwidths)
        pyro.factor("mmd", -self.mmd_weight * n * divergence)
        return z


def rbf(squared: Tensor, bandwidth: float) -> Tensor:
    """exp(−‖a − b‖² / bandwidth)."""
    return torch.exp(-squared / bandwidth)


def imq(squared: Tensor, bandwidth: float) -> Tensor:
    """bandwidth / (bandwidth + ‖a − b‖²), the inverse multiquadratic: its tails reach codes that are far from the prior."""
    return bandwidth / (bandwidth + squared)


KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {"rbf": rbf, "imq": imq}


def mmd(a: Tensor, b: Tensor, *, kernel: str, bandwidths: Sequence[float] = (1.0,)) -> Tensor:
    """The squared maximum mean discrepancy of two samples of one size, without bias: it may come out below 0; 0 for one point.

    1 / n(n − 1) Σᵢ≠ⱼ [k(aᵢ, aⱼ) + k(bᵢ, bⱼ)] − 2 / n² Σᵢⱼ k(aᵢ, bⱼ).

    Shapes: (n, d), (n, d) → ().

    Source: Gretton et al., A Kernel Two-Sample Test, 2012, lemma 6.

    Example:
        >>> mmd(torch.zeros(2, 1), torch.ones(2, 1), kernel="imq").item()
        0.666...
    """
    n, dim = a.shape[0], a.shape[1]

    def total(p: Tensor, q: Tensor) -> Tensor:
        squared = (p.square().sum(1)[:, None] + q.square().sum(1) - 2 * p @ q.T).clamp(min=0)
        return torch.stack([KERNELS[kernel](squared, 2 * dim * width).sum() for width in bandwidths]).sum()

    same = n * len(bandwidths)  # the diagonals: k(a, a) = 1
    pairs = torch.sym_max(n * (n - 1), 1)
    discrepancy = (total(a, a) + total(b, b) - 2 * same) / pairs - 2 * total(a, b) / n**2
    return discrepancy * torch.sym_min(n - 1, 1)
