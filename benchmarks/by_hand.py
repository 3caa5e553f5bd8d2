"""The loss of each model as somebody without Pyro would write it: what a training step is held against."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from pyro_mvae.distributions import VonMisesFisher

Loss = Callable[..., Tensor]
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def drawn(loc: Tensor, scale: Tensor) -> Tensor:
    return loc + scale * torch.randn_like(loc)


def normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(z; loc, diag(scale²)); (n,)."""
    return -(((z - loc) / scale).square() / 2 + scale.log() + HALF_LOG_2PI).sum(-1)


def kl_to_standard(loc: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * (1 + 2 * scale.log() - loc**2 - scale**2).sum()


def nll(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="sum")


def vae(model, x: Tensor) -> Tensor:
    loc, scale = model.encoder(x)
    return (nll(model.decoder(drawn(loc, scale)), x) + kl_to_standard(loc, scale)) / len(x)


def beta_vae(model, x: Tensor) -> Tensor:
    loc, scale = model.encoder(x)
    return (nll(model.decoder(drawn(loc, scale)), x) + model.kl_weight * kl_to_standard(loc, scale)) / len(x)


def info_vae(model, x: Tensor) -> Tensor:
    loc, scale = model.encoder(x)
    z = drawn(loc, scale)
    prior, (n, dim) = torch.randn_like(z), z.shape

    def total(a: Tensor, b: Tensor) -> Tensor:
        return (2 * dim / (2 * dim + torch.cdist(a, b).square())).sum()

    mmd = (total(z, z) + total(prior, prior) - 2 * n) / (n * (n - 1)) - 2 * total(z, prior) / n**2
    bound = nll(model.decoder(z), x) + model.kl_weight * kl_to_standard(loc, scale)
    return bound / n + model.mmd_weight * mmd


def vade(model, x: Tensor) -> Tensor:
    loc, scale = model.encoder(x)
    z, prior = drawn(loc, scale), model.mixture
    log_prior = normal(z[:, None], prior.loc, prior.log_scale.exp()) + prior.logits.log_softmax(0)
    return (nll(model.decoder(z), x) + (normal(z, loc, scale) - log_prior.logsumexp(1)).sum()) / len(x)


def gmvae(model, x: Tensor) -> Tensor:
    (loc, scale), (style_loc, style_scale) = model.encoder(x), model.encoder_style(x)
    z, w = drawn(loc, scale), drawn(style_loc, style_scale)
    means, scales = model.components(w)
    log_joint = normal(z[:, None], means, scales) - math.log(means.shape[1])
    kl = normal(z, loc, scale) - log_joint.logsumexp(1)
    return (nll(model.decoder(z), x) + kl.sum() + kl_to_standard(style_loc, style_scale)) / len(x)


def vq_vae(model, x: Tensor) -> Tensor:
    book, flat = model.codebook, model.encoder(x)
    vectors = flat.reshape(len(x), book.vectors.shape[1], -1).transpose(1, 2)
    with torch.no_grad():
        rows = vectors.flatten(0, 1)
        nearest = torch.cdist(rows, book.vectors).argmin(1)
        chosen = F.one_hot(nearest, len(book.vectors)).float()
        book.counts.lerp_(chosen.sum(0), 1 - book.decay)
        book.sums.lerp_(chosen.T @ rows, 1 - book.decay)
        dead = book.counts < book.dead * len(rows) / len(book.vectors)
        fresh = rows[torch.randint(len(rows), (len(book.vectors),))]
        usual = len(rows) / len(book.vectors)
        book.counts.copy_(torch.where(dead, usual, book.counts))
        book.sums.copy_(torch.where(dead[:, None], usual * fresh, book.sums))
        book.vectors.copy_(book.sums / book.counts[:, None])
        codes = torch.cdist(rows, book.vectors).argmin(1).view(len(x), -1)
        rounded = book.vectors[codes].transpose(1, 2).flatten(1)
    z = flat + (rounded - flat).detach()
    prior = F.cross_entropy(model.code_prior(codes).flatten(0, 1), codes.flatten(), reduction="sum")
    return (nll(model.decoder(z), x) + prior + model.commitment * (flat - rounded).square().sum()) / len(x)


def s_vae(model, x: Tensor) -> Tensor:
    """With the package's sampler: no other is exact."""
    loc, scale = model.encoder(x)
    posterior = VonMisesFisher(F.normalize(loc, dim=-1), scale[:, 0] ** -2, validate_args=False)
    kl = torch.distributions.kl_divergence(posterior, model.prior(len(x)))
    return (nll(model.decoder(posterior.rsample()), x) + kl.sum()) / len(x)


def vae_gan(model, x: Tensor) -> Tensor:
    (loc, scale), n = model.encoder(x), len(x)
    logits = model.decoder(drawn(loc, scale))
    decoded, fake = logits.sigmoid(), model.decoder(torch.randn_like(loc)).sigmoid()
    features, real = model.discriminator(torch.cat([x, decoded.detach(), fake.detach()]))
    constant = {name: value.detach() for name, value in model.discriminator.named_parameters()}
    judged, belief = functional_call(model.discriminator, constant, (torch.cat([decoded, fake]),))
    distance = (features[:n].detach() - judged[:n]).square().sum()
    ones, zeros = torch.ones_like(real[:n]), torch.zeros_like(real[:n])
    binary = F.binary_cross_entropy_with_logits
    players = model.weights["adversary"] * binary(belief[n:], ones, reduction="sum") + binary(real[:n], ones, reduction="sum")
    fakes = binary(real[n : 2 * n], zeros, reduction="sum") + binary(real[2 * n :], zeros, reduction="sum")
    pixels = model.weights["pixels"] * nll(logits, x)
    similar = 0.5 * model.weights["similarity"] * distance
    return (pixels + kl_to_standard(loc, scale) + similar + players + 0.5 * fakes) / n


LOSSES: dict[str, Loss] = {
    "VAE": vae,
    "MVAE": vae,
    "BetaVAE": beta_vae,
    "InfoVAE": info_vae,
    "VaDE": vade,
    "GMVAE": gmvae,
    "VQVAE": vq_vae,
    "SVAE": s_vae,
    "VAEGAN": vae_gan,
}
