"""The likelihood of held-out images, estimated by importance sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pyro_mvae.data import binarize
from pyro_mvae.data.progress import Track, untracked


@runtime_checkable
class LatentVariableModel(Protocol):
    """What has a likelihood that can be estimated."""

    training: bool

    def train(self, mode: bool = True) -> Any: ...
    def parameters(self) -> Any: ...
    def propose(self, x: Tensor, num_samples: int) -> tuple[tuple[Tensor, ...], Tensor]: ...
    def conditional(self, z: Tensor) -> Any: ...


@dataclass(frozen=True)
class NLL:
    """−log p(x) per image in nats, over `num_images` images, each estimated with `num_samples` importance samples."""

    nats: float
    num_images: int
    num_samples: int
    bits_per_dim: float


@torch.no_grad()
def negative_log_likelihood(
    model: LatentVariableModel,
    images: Tensor,
    *,
    num_samples: int = 100,
    binarization: str = "none",
    seed: int = 0,
    chunk: int = 500,
    progress: Track = untracked,
    description: str = "Likelihood",
) -> NLL:
    """−log p(x) ≈ −log 1/K Σₖ p(x|zₖ) p(zₖ) / q(zₖ|x), zₖ ~ q(z|x): above the truth on average, closer with more samples.

    With a Bayesian likelihood θ′ is drawn and weighted alike: p(x|z, θ′) p(z) p(θ′) / (q(z|x) q(θ′|x)).

    Images are encoded once, whatever K is. With `binarization="dynamic"` they are binarised once, by `seed`, so that models are
    compared on the same zeros and ones. The noise follows from `seed` too; the global random state is left as it was.

    Args:
        images: uint8, (n, C, H, W).
        num_samples: K.
        chunk: how many codes are decoded at a time.

    Source: Burda, Grosse and Salakhutdinov, 2016.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> images = (torch.rand(4, 1, 8, 8) * 255).byte()
        >>> negative_log_likelihood(VAE((1, 8, 8), 4), images, num_samples=3, binarization="dynamic").num_images
        4
    """
    xs = binarize(images, seed=seed) if binarization == "dynamic" else images.float() / 255
    batches = xs.split(max(chunk // num_samples, 1))
    was_training = model.training
    model.train(False)
    total, device = 0.0, next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for x in progress(batches, description, len(batches)):
            total -= float(log_evidence(model, x.to(device), num_samples).sum())
    model.train(was_training)
    nats = total / len(images)
    return NLL(nats, len(images), num_samples, nats / math.log(2) / images[0].numel())


def log_evidence(model: LatentVariableModel, x: Tensor, num_samples: int) -> Tensor:
    """log p(x) of each datum, by importance sampling over all that is latent; (n,)."""
    latents, weights = model.propose(x, num_samples)
    log_likelihood = model.conditional(*(value.flatten(0, 1) for value in latents)).log_prob(x.repeat(num_samples, 1, 1, 1))
    return torch.logsumexp(weights + log_likelihood.view(num_samples, len(x)), 0) - math.log(num_samples)
