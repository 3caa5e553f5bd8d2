"""The VAE-GAN (Larsen et al., 2016): row 8 of the paper's Table 9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pyro_mvae.likelihoods import location
from pyro_mvae.models.vae import VAE
from pyro_mvae.models.weighted import Weighted
from pyro_mvae.nets.discriminator import Discriminator
from pyro_mvae.numbers import at_least


class VAEGAN(VAE):
    """A `VAE` with a learned similarity: z ~ N(0, I), x ~ p(x|z), f(x) ~ N(f(decode(z)), I), f a layer of a discriminator.

    Three players share one loss, in which each parameter has a gradient from its own player's part only: the encoder and the
    decoder from the bound and the factor `similarity`, −γ/2 ‖f(x) − f(decode(z))‖²; the decoder alone from the factor
    `adversary`, log D(decode(z′)), z′ ~ p(z); the discriminator from the factor `discriminator`, log D(x) +
    ½ log(1 − D(decode(z))) + ½ log(1 − D(decode(z′))).

    What SVI cannot express: that players minimise different losses. Because the discriminator's parameters are constants in
    the others' parts, and pictures in its own, the sum does what optimisers in turn would; plain `SVI` trains it.

    Args:
        image_shape, latent_dim, and more: as `VAE`.
        similarity: γ, 0 or more.
        adversary: weight of the decoder's part in the game.
        pixels: weight of log p(x|z), which Larsen et al. drop; with 1 the loss has a bound in it. With 0 it is their loss but for
            two things: γ weighs the encoder's part too, and the decoder plays with pictures drawn, not with reconstructions.

    Raises:
        ValueError: for a weight that is no finite number, 0 or more.

    Source: Larsen et al., Autoencoding beyond pixels using a learned similarity metric, 2016.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> vae = VAEGAN((1, 28, 28))
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> svi.step(torch.rand(4, 1, 28, 28).round()) > 0
        True
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int = 16,
        *,
        similarity: float = 0.1,
        adversary: float = 1.0,
        pixels: float = 1.0,
        **more: Any,
    ):
        super().__init__(image_shape, latent_dim, **more)
        weights = {"similarity": similarity, "adversary": adversary, "pixels": pixels}
        self.weights = {name: at_least(weight, name) for name, weight in weights.items()}
        self.config |= self.weights
        self.discriminator = Discriminator(self.image_shape)

    def model(self, x: Tensor) -> Tensor:
        """p(x, z), with sites `z` and `x` in the plate `data`, and the factors `similarity`, `adversary` and `discriminator`."""
        with Weighted(self.weights["pixels"], observed=True):
            z, conditional = self.joint(x)
        n = x.shape[0]
        decoded, drawn = location(conditional), self.decode(self.prior(n).sample())
        features, logits = self.discriminator(torch.cat([x, decoded.detach(), drawn.detach()]))
        constant = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        judged, belief = functional_call(self.discriminator, constant, (torch.cat([decoded, drawn]),))
        distance = (features[:n].detach() - judged[:n]).square().sum(-1)
        pyro.factor("similarity", -0.5 * self.weights["similarity"] * distance.sum())
        pyro.factor("adversary", self.weights["adversary"] * F.logsigmoid(belief[n:]).sum())
        fakes = F.logsigmoid(-logits[n : 2 * n]) + F.logsigmoid(-logits[2 * n :])
        pyro.factor("discriminator", (F.logsigmoid(logits[:n]) + 0.5 * fakes).sum())
        return z
