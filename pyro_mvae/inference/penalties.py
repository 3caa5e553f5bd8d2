"""The regularisers R(X) of the miniaturisation objective (14): pure functions, and the penalties that put a weight λ to them.

The paper writes (14) as a maximised f(X) + λR(X), which would reward big weights; here −f(X) + λR(X) is minimised.

A penalty is a value with a `name`, a `weight` and a call: (model, images, sites of the model, sites of the guide) → R, of the
whole model or the mean over the images. One of your own needs no more than that.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, kl_divergence

from pyro_mvae.inference.bound import Sites, negative_elbo, own_weights
from pyro_mvae.inference.forward import statistics_kept
from pyro_mvae.models.moved import moved
from pyro_mvae.nets.palette import PalettizedConv
from pyro_mvae.numbers import count

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def weights(module: nn.Module) -> list[Tensor]:
    """The weights that pruning and quantisation speak of: those of linear and convolutional layers."""
    return [weight for weight, _ in weights_and_axes(module)]


def weights_and_axes(module: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Those weights, palettised ones as their values say, each with the axis along which its output channels lie."""
    for layer in module.modules():
        if isinstance(layer, PalettizedConv):
            yield layer.weight, channel_axis(layer.conv)
        elif isinstance(layer, LAYERS) and layer.weight is not None:
            yield layer.weight, channel_axis(layer)


def channel_axis(layer: nn.Module) -> int:
    """The axis of a layer's weight along which its output channels lie."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1 else 0


def l1(tensors: Iterable[Tensor]) -> Tensor:
    """Σᵢ|wᵢ|, (15).

    Example:
        >>> l1([torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])])
        tensor(6.)
    """
    return torch.stack([tensor.abs().sum() for tensor in tensors]).sum()


def group_l1(module: nn.Module) -> Tensor:
    """Σ_g √n_g ‖w_g‖₂, the group form of (15), a group being the n_g weights that make one output channel.

    A group is pulled to zero as a whole, which leaves structured pruning something to remove; heads and images, whose channels
    can't be removed, are pulled like the rest.

    Source: Yuan and Lin, 2006.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> round(float(group_l1(layer).detach() / 2**0.5), 4)
        5.0
    """
    norms = []
    for weight, axis in weights_and_axes(module):
        groups = weight.transpose(0, axis).flatten(1)
        # √0 has no gradient: a channel that is gone stays so
        norms.append(groups.shape[1] ** 0.5 * groups.square().sum(1).clamp(min=1e-24).sqrt().sum())
    return torch.stack(norms).sum()


def quantization_error(module: nn.Module, *, bits: int = 8) -> Tensor:
    """Σᵢ|wᵢ − w_q,ᵢ|, (17), w_q the weight rounded with one scale per output channel, its gradient stopped.

    Args:
        bits: of w_q, 2 or more; its levels are −(2ᵇ⁻¹ − 1) … 2ᵇ⁻¹ − 1.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[127.0, 0.4]]))
        >>> quantization_error(layer)
        tensor(0.4000, grad_fn=<SumBackward0>)
    """
    levels = 2 ** (bits - 1) - 1
    errors = []
    for w, axis in weights_and_axes(module):
        scale = (w.detach().abs().amax([d for d in range(w.ndim) if d != axis], keepdim=True) / levels).clamp(min=1e-12)
        errors.append((w - torch.round(w.detach() / scale) * scale).abs().sum())
    return torch.stack(errors).sum()


def divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL(p ‖ q) for each datum, (19): in closed form where there is one, else estimated without bias by one sample of p.

    Example:
        >>> import pyro.distributions as dist
        >>> divergence(dist.Normal(0.0, 1.0), dist.Normal(1.0, 1.0))
        tensor(0.5000)
    """
    mine, theirs = (getattr(each, "base_dist", each) for each in (p, q))
    if isinstance(mine, Bernoulli) and isinstance(theirs, Bernoulli):
        each = bernoulli_divergence(mine, theirs)
        return each.sum([-1 - dim for dim in range(len(p.event_shape))]) if p.event_shape else each
    try:
        return kl_divergence(p, q)
    except NotImplementedError:
        x = p.sample()
        return p.log_prob(x) - q.log_prob(x)


def bernoulli_divergence(p: Bernoulli, q: Bernoulli) -> Tensor:
    """p log(p / q) + (1 − p) log((1 − p) / (1 − q)), from the logits: finite where q rounds to 0 or 1, as torch's own is not."""
    falls = F.softplus(-q.logits) - F.softplus(-p.logits)
    return p.probs * falls + (1 - p.probs) * (F.softplus(q.logits) - F.softplus(p.logits))


def sparsity(z: Tensor) -> Tensor:
    """‖α‖₁ of each datum's code, (21); (n,).

    Example:
        >>> sparsity(torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
        tensor([3.0000, 0.5000])
    """
    return z.abs().sum(-1)


@runtime_checkable
class Penalty(Protocol):
    """What `fit` can be given as a regulariser: λ is its `weight`, R what calling it returns."""

    @property
    def name(self) -> str: ...
    @property
    def weight(self) -> float: ...
    def __call__(self, vae: Any, x: Tensor, model_sites: Sites, guide_sites: Sites, /) -> Tensor: ...


@dataclass(frozen=True)
class Prune:
    """λ Σ|wᵢ|, (15).

    Example:
        >>> Prune(1e-4)
        Prune(weight=0.0001)
    """

    weight: float
    name: str = field(default="prune", repr=False)

    def __call__(self, vae: nn.Module, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        return l1(weights(vae))


@dataclass(frozen=True)
class PruneGroups:
    """λ Σ √n_g ‖w_g‖₂, the group form of (15): see `group_l1`."""

    weight: float
    name: str = field(default="prune_groups", repr=False)

    def __call__(self, vae: nn.Module, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        return group_l1(vae)


@dataclass(frozen=True)
class Round:
    """λ Σ|wᵢ − w_q,ᵢ|, (17): draws the weights to what `bits` can hold.

    Raises:
        ValueError: for fewer than 2 bits.
    """

    weight: float
    bits: int = 8
    name: str = field(default="round", repr=False)

    def __post_init__(self) -> None:
        count(self.bits, "bits", 2)  # one of them is the sign

    def __call__(self, vae: nn.Module, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        return quantization_error(vae, bits=self.bits)


@dataclass(frozen=True)
class Distill:
    """λ (KL(q_T(z|x) ‖ q_S(z|x)) + KL(p_T(x|z) ‖ p_S(x|z))), (19), the mean over a batch; z is the student's.

    A frozen copy of the teacher is kept: tracing remembers no `no_grad`, so that parameters which want a gradient would be given
    one.

    Args:
        teacher: a fitted model of the same images, latent size and kinds of distributions; on the student's device.

    Raises:
        ValueError: for another teacher than that, when it is made or called.
    """

    weight: float
    teacher: Any = field(repr=False)
    name: str = field(default="distill", repr=False)

    def __post_init__(self) -> None:
        if not hasattr(self.teacher, "posterior") or not hasattr(self.teacher, "conditional"):
            raise ValueError(f"the teacher is a {type(self.teacher).__name__}, expected a fitted model, such as a VAE")
        object.__setattr__(self, "teacher", copy.deepcopy(self.teacher).eval().requires_grad_(False))

    def __call__(self, vae: nn.Module, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        z, mine = model_sites["z"]["value"].detach(), (guide_sites["z"]["fn"], model_sites["x"]["fn"])
        if self.teacher.latent_dim != z.shape[-1]:
            raise ValueError(
                f"teacher and student have codes of the sizes {self.teacher.latent_dim} and {z.shape[-1]}: expected one"
            )
        theirs = self.teacher.posterior(x), self.teacher.conditional(z)
        for of_teacher, of_student in zip(theirs, mine, strict=True):
            families = [type(getattr(each, "base_dist", each)) for each in (of_teacher, of_student)]
            if families[0] is not families[1]:
                names = " and ".join(family.__name__ for family in families)
                raise ValueError(f"teacher and student have distributions of two kinds, {names}: expected one, to have a KL")
        return sum((divergence(p, q) for p, q in zip(theirs, mine, strict=True)), torch.zeros(())).mean()


@dataclass(frozen=True)
class MatchFeatures:
    """λ Σ_s ‖a_T,s / ‖a_T,s‖ − a_S,s / ‖a_S,s‖‖², the mean over a batch: teacher and student look at the same places.

    a_s is the mean of the squares over the channels of the last map of size s that a decoder rectifies; the numbers of channels
    and the kinds of nets may be any. Sizes that only one of the two has are left out.

    Args:
        teacher: a fitted model of the same latent size.

    Raises:
        ValueError: for another teacher than that, or when the decoders have no map of the same size, of more than one place.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, 2017.
    """

    weight: float
    teacher: Any = field(repr=False)
    name: str = field(default="match_features", repr=False)

    def __post_init__(self) -> None:
        if not hasattr(self.teacher, "decoder"):
            raise ValueError(f"the teacher is a {type(self.teacher).__name__}, expected a fitted model with a decoder")
        object.__setattr__(self, "teacher", copy.deepcopy(self.teacher).eval().requires_grad_(False))

    def __call__(self, vae: Any, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        z = model_sites["z"]["value"].detach()
        if self.teacher.latent_dim != z.shape[-1]:
            raise ValueError(
                f"teacher and student have codes of the sizes {self.teacher.latent_dim} and {z.shape[-1]}: expected one"
            )
        with statistics_kept(vae):
            mine = attention(vae.decoder, z)
        theirs = attention(self.teacher.decoder, z)
        common = [size for size in mine if size in theirs]
        if not common:
            raise ValueError(f"the decoders have no map of the same size: {list(theirs)} and {list(mine)}")
        return torch.stack([(mine[size] - theirs[size]).square().sum(1).mean() for size in common]).sum()


def attention(net: nn.Module, z: Tensor) -> dict[tuple[int, int], Tensor]:
    """Where the last map of each size that a net rectifies is large: mean squares over channels, of length 1; (n, places)."""
    found: dict[tuple[int, int], Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1:
            size = (int(output.shape[-2]), int(output.shape[-1]))
            found[size] = F.normalize(output.square().mean(1).flatten(1), dim=1)

    handles = [module.register_forward_hook(look) for module in net.modules() if isinstance(module, nn.ReLU)]
    try:
        net(z)
    finally:
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True)
class Sparse:
    """λ ‖α‖₁, (21), the mean over a batch; α is the code z of a datum."""

    weight: float
    name: str = field(default="sparse", repr=False)

    def __call__(self, vae: nn.Module, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        return sparsity(model_sites["z"]["value"]).mean()


@dataclass(frozen=True)
class Invariant:
    """λ (log K − I(y; y′)), y the cluster of a picture and y′ that of the same picture moved a little, see `moved`.

    For models with clusters: it makes them kinds of things that stay what they are when they are turned or shifted, about equally
    frequent.

    Args:
        every: one picture of so many is moved, the first ones of a batch: so many times less is encoded twice. Batches have to be
            large enough to say what is frequent.

    Raises:
        ValueError: for an `every` below 1, or when it is called with a model without clusters.
    """

    weight: float
    every: int = 1
    name: str = field(default="invariant", repr=False)

    def __post_init__(self) -> None:
        count(self.every, "every")

    def __call__(self, vae: Any, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        if vae.num_clusters is None:
            raise ValueError(f"a {type(vae).__name__} has no clusters: Invariant is for a model with num_clusters")
        means = [guide_sites[name]["fn"].mean for name in ("z", "w") if name in guide_sites]
        with statistics_kept(vae):
            number: Any = torch.sym_max(x.shape[0] // self.every, 2)  # two can be normalised by their batch
            moved_clusters = vae.clusters(moved(x[:number]))
        return math.log(vae.num_clusters) - mutual_information(vae.clusters_at(*means)[:number], moved_clusters)


@dataclass(frozen=True)
class Tighten:
    """λ (ELBO − L_K), L_K = E[log 1/K Σₖ wₖ], wₖ = p(x, zₖ, θ′ₖ) / q(zₖ, θ′ₖ|x): where λ is 1, L_K is what (14) maximises.

    L_K ≤ log p(x) is the importance-weighted bound, the tighter the larger K. It asks of q(z|x) that a good code be among K, not
    that each be good: a small encoder loses less by it. R is 0 or less on average. The code of the ELBO is one of the K, and the
    ELBO of R is that which is minimised beside it, so that where λ is 1 nothing is left of it, nor of its noise; of a pair that
    enumerates, whose codes are not drawn alike, K others are.

    Args:
        num_samples: K.

    Raises:
        ValueError: for an impossible K, or when it is called with a model without importance samples, or with a single code.

    Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016.
    """

    weight: float = 1.0
    num_samples: int = 5
    name: str = field(default="tighten", repr=False)

    def __post_init__(self) -> None:
        count(self.num_samples, "num_samples", 2)

    def __call__(self, vae: Any, x: Tensor, model_sites: Sites, guide_sites: Sites) -> Tensor:
        if not hasattr(vae, "propose") or getattr(vae, "point", False):
            raise ValueError(f"a {type(vae).__name__} draws no codes to weigh: Tighten is for models with a density q(z|x)")
        own = own_weights(model_sites, guide_sites, x.shape[0])
        more = self.num_samples - (own is not None)
        with statistics_kept(vae):
            latents, weights = vae.propose(x, more)
            likelihood = vae.conditional(*(value.flatten(0, 1) for value in latents))
            weights = weights + likelihood.log_prob(x.repeat(more, 1, 1, 1)).view_as(weights)
        elbo = weights.mean()
        if own is not None:
            elbo, weights = -negative_elbo(model_sites, guide_sites) / x.shape[0], torch.cat([own[None], weights])
        return elbo - weights.logsumexp(0).mean() + math.log(self.num_samples)


def mutual_information(p: Tensor, q: Tensor) -> Tensor:
    """I(y; y′) in nats of two readings of the same images, their joint distribution made symmetric; log K at most.

    Shapes: probabilities (n, …, K), (n, …, K) → (…).

    Source: Ji, Henriques and Vedaldi, Invariant Information Clustering, 2019.

    Example:
        >>> sure = torch.eye(2)
        >>> round(mutual_information(sure, sure).item(), 4), round(mutual_information(sure, torch.full((2, 2), 0.5)).item(), 4)
        (0.6931, 0.0)
    """
    joint = torch.einsum("n...k,n...l->...kl", p, q) / p.shape[0]
    joint = ((joint + joint.mT) / 2).clamp(min=1e-8)
    return (joint * (joint.log() - joint.sum(-2, keepdim=True).log() - joint.sum(-1, keepdim=True).log())).sum((-2, -1))
