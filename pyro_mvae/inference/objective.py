"""What is minimised: the negative bound of a Pyro pair and its penalties, as named terms."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.enum import get_importance_trace
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mvae.inference import penalties
from pyro_mvae.models.vae import VAE

Sites = Mapping[str, Any]
"""Pyro's messages by the names of their sites: what a trace holds."""


def bound_terms(model_sites: Sites, guide_sites: Sites) -> tuple[Tensor, Tensor]:
    """−E_q[log p(x|z)] and KL(q(z|x) ‖ p(z)), (5), summed over the batch, from one trace of a Pyro pair.

    The KL is in closed form, (4), where there is one, else estimated from the same sample, as `TraceMeanField_ELBO` has it;
    their sum is the loss that it returns for the same noise.
    """
    likelihood, kl = torch.zeros(()), torch.zeros(())
    for name, site in model_sites.items():
        if site["type"] == "sample" and site["is_observed"]:
            likelihood = likelihood - site["log_prob_sum"]
        elif site["type"] == "sample" and name in guide_sites:
            kl = kl + kl_of(site, guide_sites[name])
    return likelihood, kl


def kl_of(model_site: Mapping[str, Any], guide_site: Mapping[str, Any]) -> Tensor:
    try:
        return kl_divergence(guide_site["fn"], model_site["fn"]).sum()
    except NotImplementedError:
        return guide_site["log_prob_sum"] - model_site["log_prob_sum"]


@dataclass(frozen=True)
class Miniaturization:
    """Weights λ of the regularisers in (14), and the teacher of (19).

    Each is 0 where it plays no part; a `distill` above 0 needs a `teacher`, of which a frozen copy is kept: tracing remembers
    no `no_grad`, so that parameters which want a gradient would be given one.

    Example:
        >>> Miniaturization(prune=1e-4)
        Miniaturization(prune=0.0001)
    """

    prune: float = 0.0
    quantize: float = 0.0
    distill: float = 0.0
    sparse: float = 0.0
    teacher: VAE | None = None

    def __post_init__(self) -> None:
        for name, value in self.weights().items():
            if value < 0:
                raise ValueError(f"{name} is {value}, expected 0 or more: (14) penalises, it does not reward")
        if self.distill and self.teacher is None:
            raise ValueError("distill is above 0, so a teacher is needed: give teacher=")
        if self.teacher is not None:
            object.__setattr__(self, "teacher", copy.deepcopy(self.teacher).eval().requires_grad_(False))

    def weights(self) -> dict[str, float]:
        """λ by name."""
        return {name: getattr(self, name) for name in ("prune", "quantize", "distill", "sparse")}

    def __repr__(self) -> str:
        return f"Miniaturization({', '.join(f'{name}={value:g}' for name, value in self.weights().items() if value)})"

    def terms(self, vae: nn.Module, x: Tensor, model_sites: Sites, guide_sites: Sites) -> dict[str, Tensor]:
        """Each λR, by name, of those whose λ is above 0; penalties of codes and images are per datum."""
        terms = {}
        if self.prune:
            terms["prune"] = self.prune * penalties.l1(penalties.weights(vae))
        if self.quantize:
            terms["quantize"] = self.quantize * penalties.quantization_error(vae)
        if self.distill and self.teacher is not None:
            z = model_sites["z"]["value"].detach()
            posterior, conditional = self.teacher.posterior(x), self.teacher.conditional(z)
            codes = penalties.divergence(posterior, guide_sites["z"]["fn"])
            images = penalties.divergence(conditional, model_sites["x"]["fn"])
            terms["distill"] = self.distill * (codes + images).mean()
        if self.sparse:
            terms["sparse"] = self.sparse * penalties.sparsity(model_sites["z"]["value"]).mean()
        return terms


class Objective(nn.Module):
    """−ELBO + Σ λᵢRᵢ, (14) and (30), in nats per datum.

    Args:
        vae: a Pyro pair: an `nn.Module` with `model(x)` and `guide(x)`.
        miniaturization: the regularisers, none by default.

    Shapes: (n, C, H, W) → {"loss": (), "likelihood": (), "kl": (), and one for each penalty}.

    Example:
        >>> import pyro
        >>> with pyro.validation_enabled(False):
        ...     terms = Objective(VAE((1, 8, 8), 4, widths=(4,), hidden=8))(torch.rand(2, 1, 8, 8).round())
        >>> sorted(terms)
        ['kl', 'likelihood', 'loss']
    """

    def __init__(self, vae: nn.Module, miniaturization: Miniaturization | None = None):
        super().__init__()
        self.vae = vae
        self.miniaturization = miniaturization or Miniaturization()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pair: tuple[Any, Any] = (self.vae.model, self.vae.guide)
        traces = get_importance_trace("flat", float("inf"), *pair, (x,), {})
        sites: tuple[Sites, Sites] = (dict(traces[0].nodes), dict(traces[1].nodes))
        likelihood, kl = bound_terms(*sites)
        terms = {"likelihood": likelihood / x.shape[0], "kl": kl / x.shape[0]}
        terms |= self.miniaturization.terms(self.vae, x, *sites)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}
