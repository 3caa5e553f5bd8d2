"""The likelihood of held-out images, estimated by importance sampling."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_mvae.data import shown
from pyro_mvae.data.progress import Track, untracked
from pyro_mvae.evaluate.measurement import Measurement
from pyro_mvae.nets.conv import swift
from pyro_mvae.numbers import count

CODES = 50_000
"""How many codes are drawn at a time."""


@runtime_checkable
class LatentVariableModel(Protocol):
    """What has a likelihood that can be estimated."""

    def train(self, mode: bool = True) -> Any: ...
    def parameters(self) -> Any: ...
    def propose(self, x: Tensor, num_samples: int) -> tuple[tuple[Tensor, ...], Tensor]: ...
    def conditional(self, z: Tensor) -> Any: ...


@dataclass(frozen=True)
class NLL:
    """−log p(x) per image in nats, the mean over `seeds`, and how it was estimated: `num_samples` importance samples an image.

    `sd` is the standard deviation between the seeds' estimates, None for a single one; `split` says which images they are.
    """

    nats: float
    num_images: int
    num_samples: int
    bits_per_dim: float
    sd: float | None = None
    seeds: tuple[int, ...] = (0,)
    binarization: str = "none"
    split: str = "test"

    @property
    def protocol(self) -> str:
        """How it was estimated, in words."""
        samples = "1 importance sample" if self.num_samples == 1 else f"{self.num_samples} importance samples"
        return f"binarisation {self.binarization}, {samples}"

    def measurement(self) -> Measurement:
        """The figure as the other measures give theirs, with its protocol."""
        about = {"num_samples": self.num_samples, "seeds": self.seeds, "sd": self.sd, "split": self.split}
        return Measurement("NLL", self.nats, "nats", self.protocol, self.num_images, **about)


@torch.no_grad()
def negative_log_likelihood(
    model: LatentVariableModel,
    images: Tensor,
    *,
    num_samples: int = 100,
    binarization: str = "none",
    seed: int = 0,
    repeats: int = 1,
    split: str = "test",
    chunk: int = 200,
    progress: Track = untracked,
    description: str = "Likelihood",
) -> NLL:
    """−log p(x) ≈ −log 1/K Σₖ p(x|zₖ) p(zₖ) / q(zₖ|x), zₖ ~ q(z|x): above the truth on average, closer with more samples.

    Its negative is the `iwae_bound` of K samples, for K = 1 the ELBO. With a Bayesian likelihood θ′ is drawn and weighted alike:
    p(x|z, θ′) p(z) p(θ′) / (q(z|x) q(θ′|x)).

    Of a VQ-VAE, whose q(z|x) is one point, it is the bound −log p(x|z) p(z) itself, and K is 1.

    Images are encoded once, whatever K is. With `binarization="dynamic"` they are binarised by `seed`, so that models are
    compared on the same zeros and ones, and anew by the seed of each repeat. The noise follows from the seeds too; the global
    random state is left as it was.

    Args:
        images: uint8, (n, C, H, W), or floating point in [0, 1], which is not binarised.
        num_samples: K.
        repeats: how often all is estimated anew, with `seed`, `seed` + 1, …
        split: which images they are, for the record.
        chunk: how many codes are decoded at a time; few enough for a processor's caches.

    Raises:
        ValueError: for less than one sample or repeat, no images or some of another shape, or an unknown binarization.

    Source: Burda, Grosse and Salakhutdinov, 2016.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> images = (torch.rand(4, 1, 8, 8) * 255).byte()
        >>> negative_log_likelihood(VAE((1, 8, 8), 4), images, num_samples=3, binarization="dynamic").num_images
        4
    """
    for name, value in {"num_samples": num_samples, "repeats": repeats, "chunk": chunk}.items():
        count(value, name)
    if getattr(model, "point", False) and getattr(model, "theta", None) is None:
        num_samples = 1
    seeds = tuple(range(seed, seed + repeats))
    model = copy.deepcopy(model)
    model.train(False)
    if isinstance(model, nn.Module):
        swift(model)
    batch = max(CODES // num_samples, 1)
    device, sums = next(model.parameters()).device, dict.fromkeys(seeds, 0.0)
    pieces = seeded(images, seeds, batch=batch, binarization=binarization)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for each, x in progress(pieces, description, repeats * -(-len(images) // batch)):
            sums[each] -= float(log_evidence(model, x.to(device), num_samples, chunk=chunk).sum())
    nats = [total / len(images) for total in sums.values()]
    mean, sd = statistics.fmean(nats), statistics.stdev(nats) if repeats > 1 else None
    return NLL(mean, len(images), num_samples, mean / math.log(2) / images[0].numel(), sd, seeds, binarization, split)


def iwae_bound(model: LatentVariableModel, images: Tensor, **how: Any) -> Measurement:
    """The importance-weighted bound E[log 1/K Σₖ p(x, zₖ) / q(zₖ|x)] ≤ log p(x), in nats per image.

    Args:
        images: uint8, (n, C, H, W).
        how: as `negative_log_likelihood`, whose negative it is; K is `num_samples`.

    Raises:
        ValueError: as `negative_log_likelihood`.

    Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> images = (torch.rand(4, 1, 8, 8) * 255).byte()
        >>> iwae_bound(VAE((1, 8, 8), 4), images, num_samples=5, binarization="dynamic").name
        'IWAE bound, K = 5'
    """
    nll = negative_log_likelihood(model, images, **how).measurement()
    return replace(nll, name=f"IWAE bound, K = {nll.num_samples}", value=-nll.value)


def seeded(images: Tensor, seeds: Iterable[int], *, batch: int, binarization: str) -> Iterator[tuple[int, Tensor]]:
    """Batches of images in [0, 1], once for each seed, which decides their binarisation and all noise from there on."""
    for seed in seeds:
        torch.manual_seed(seed)
        for x in shown(images, binarization=binarization, seed=seed).split(batch):
            yield seed, x


def log_evidence(model: LatentVariableModel, x: Tensor, num_samples: int, *, chunk: int = 200) -> Tensor:
    """log p(x) of each datum, by importance sampling over all that is latent; (n,). Codes are decoded `chunk` at a time."""
    latents, weights = model.propose(x, num_samples)
    flat = [value.flatten(0, 1) for value in latents]
    places = torch.arange(x.shape[0], device=x.device).repeat(len(weights))
    likelihoods = [
        model.conditional(*(value[i : i + chunk] for value in flat)).log_prob(x[places[i : i + chunk]])
        for i in range(0, len(places), chunk)
    ]
    return torch.logsumexp(weights + torch.cat(likelihoods).view_as(weights), 0) - math.log(len(weights))
