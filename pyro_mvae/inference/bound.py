"""The bound of a Pyro pair as named terms, from its traces."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

Sites = Mapping[str, Any]
"""Pyro's messages by the names of their sites: what a trace holds."""

Pair = tuple[Any, Any]

THETA = "theta"
"""The site of a Bayesian likelihood's parameters θ′; every other latent site is part of the code."""


@dataclass(frozen=True, eq=False)
class Term:
    """A part of what is minimised, summed over the batch: as it is, and as the model's own weights have it."""

    value: Tensor
    weighted: Tensor

    def __add__(self, other: Term) -> Term:
        return Term(self.value + other.value, self.weighted + other.weighted)

    def per(self, n: int) -> Term:
        """A share of it."""
        return Term(self.value / n, self.weighted / n)


def bound_terms(model: Trace, guide: Trace) -> dict[str, Term]:
    """−E_q[log p(x|z, θ′)], KL(q(z|x) ‖ p(z)) and KL(q(θ′|x) ‖ p(θ′)), (5) and (8), from traces of a pair; factors by name.

    A KL is in closed form, (4) and (11), where there is one, else estimated from the same sample, as `TraceMeanField_ELBO` has
    it; the sum of the weighted terms is the loss that it returns for the same noise. Where the guide enumerates a site, all is as
    `TraceEnum_ELBO` has it: expected under the guide exactly. "theta_kl" is there when there is a site `theta`, a
    `pyro.factor` in the model counts negative, in the guide positive.
    """
    groups = grouped(dict(model.nodes), dict(guide.nodes))
    if any(map(is_enumerated, guide.nodes.values())):
        return enumerated_terms(groups, model, guide)
    like = next(model_site or guide_site for pairs in groups.values() for model_site, guide_site in pairs)["log_prob_sum"]
    nothing = Term(torch.zeros_like(like), torch.zeros_like(like))
    return {name: functools.reduce(Term.__add__, (term_of(*pair) for pair in pairs), nothing) for name, pairs in groups.items()}


def grouped(model: Sites, guide: Sites) -> dict[str, list[Pair]]:
    """The sites that each term is made of: one of the model, one of the guide, or two that have a KL."""
    groups: dict[str, list[Pair]] = {"likelihood": [], "kl": []}
    for name, site in model.items():
        if is_sample(site) and site["is_observed"]:
            groups.setdefault(name if is_factor(site) else "likelihood", []).append((site, None))
        elif is_sample(site) and name in guide:
            groups.setdefault("theta_kl" if name == THETA else "kl", []).append((site, guide[name]))
    for name, site in guide.items():
        if is_sample(site) and is_factor(site):
            groups.setdefault(name, []).append((None, site))
    return groups


def is_sample(site: Any) -> bool:
    return site["type"] == "sample"


def is_enumerated(site: Any) -> bool:
    return is_sample(site) and site["infer"].get("_enumerate_dim") is not None


def is_factor(site: Any) -> bool:
    return isinstance(site["fn"], dist.Unit)


def term_of(model_site: Any, guide_site: Any) -> Term:
    """log q − log p of two sites, or their KL where it has a closed form."""
    if model_site and guide_site:
        try:
            kl = kl_divergence(guide_site["fn"], model_site["fn"])
            return Term(kl.sum(), scale_and_mask(kl, guide_site["scale"], guide_site["mask"]).sum())
        except NotImplementedError:
            pass
    return functools.reduce(
        Term.__add__, [log_prob(site, sign) for site, sign in ((guide_site, 1), (model_site, -1)) if site is not None]
    )


def log_prob(site: Any, sign: int) -> Term:
    return Term(sign * site["unscaled_log_prob"].sum(), sign * site["log_prob_sum"])


def enumerated_terms(groups: Mapping[str, Sequence[Pair]], model: Trace, guide: Trace) -> dict[str, Term]:
    """Each term's expectation under the sites that the guide enumerates."""
    guide.pack_tensors()
    model.pack_tensors(guide.plate_to_symbol)

    def ordinal(site: Any) -> frozenset[str]:
        return frozenset(guide.plate_to_symbol[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized)

    weights = Dice(guide, {name: ordinal(site) for name, site in guide.nodes.items() if is_sample(site)})

    def expected(pairs: Sequence[Pair], kind: str) -> Tensor:
        costs: dict[frozenset[str], list[Tensor]] = {}
        for model_site, guide_site in pairs:
            if model_site:
                costs.setdefault(ordinal(model_site), []).append(packed.neg(model_site["packed"][kind]))
            if guide_site:
                costs.setdefault(ordinal(guide_site), []).append(guide_site["packed"][kind])
        return torch.as_tensor(weights.compute_expectation(costs))

    return {name: Term(*(expected(pairs, kind) for kind in ("unscaled_log_prob", "log_prob"))) for name, pairs in groups.items()}


def own_weights(model_sites: Sites, guide_sites: Sites, n: int) -> Tensor | None:
    """log p(x, z, θ′) − log q(z, θ′|x) of what a pair has drawn, an image each; None where they are not one an image."""
    pairs = bound_pairs(model_sites, guide_sites)
    sites = [(sign, site) for pair in pairs for sign, site in zip((1, -1), pair, strict=True) if site is not None]
    if not sites or any(is_enumerated(site) or site["unscaled_log_prob"].shape != (n,) for _, site in sites):
        return None
    return torch.stack([sign * site["unscaled_log_prob"] for sign, site in sites]).sum(0)


def negative_elbo(model_sites: Sites, guide_sites: Sites) -> Tensor:
    """−ELBO, (8), with KLs in closed form where there is one, summed over the batch."""
    return torch.stack([term_of(*pair).value for pair in bound_pairs(model_sites, guide_sites)]).sum()


def bound_pairs(model_sites: Sites, guide_sites: Sites) -> list[Pair]:
    """The sites of −E_q[log p(x|z, θ′)] and the two KLs, without factors."""
    groups = grouped(model_sites, guide_sites)
    return [pair for name in ("likelihood", "kl", "theta_kl") for pair in groups.get(name, [])]
