"""What is minimised: the negative bound of a Pyro pair and its penalties, as named terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mvae.inference.penalties import Penalty, Sites
from pyro_mvae.inference.precision import nets_in

THETA = "theta"
"""The site of a Bayesian likelihood's parameters θ′; every other latent site is part of the code."""


def bound_terms(model_sites: Sites, guide_sites: Sites) -> dict[str, Tensor]:
    """−E_q[log p(x|z, θ′)], KL(q(z|x) ‖ p(z)) and KL(q(θ′|x) ‖ p(θ′)), (5) and (8), summed over the batch, from traces of a pair.

    A KL is in closed form, (4) and (11), where there is one, else estimated from the same sample, as `TraceMeanField_ELBO` has
    it; the sum of the terms is the loss that it returns for the same noise. "theta_kl" is there when there is a site `theta`.
    """
    like = next(site["log_prob_sum"] for site in model_sites.values() if site["type"] == "sample" and site["is_observed"])
    terms = {"likelihood": torch.zeros_like(like), "kl": torch.zeros_like(like)}
    for name, site in model_sites.items():
        if site["type"] == "sample" and site["is_observed"]:
            terms["likelihood"] = terms["likelihood"] - site["log_prob_sum"]
        elif site["type"] == "sample" and name in guide_sites:
            term = "theta_kl" if name == THETA else "kl"
            terms[term] = terms.get(term, torch.zeros_like(like)) + kl_of(site, guide_sites[name])
    return terms


def kl_of(model_site: Sites, guide_site: Sites) -> Tensor:
    try:
        return kl_divergence(guide_site["fn"], model_site["fn"]).sum()
    except NotImplementedError:
        return guide_site["log_prob_sum"] - model_site["log_prob_sum"]


class Objective(nn.Module):
    """−E_q[log p(x|z, θ′)] + β KL(q(z|x) ‖ p(z)) + β′ KL(q(θ′|x) ‖ p(θ′)) + Σ λᵢRᵢ, (8), (14) and (30), in nats per datum.

    The weights are buffers, so that they can be changed while a graph that was traced with them goes on: see `weights`.

    Args:
        vae: a Pyro pair: an `nn.Module` with `model(x)` and `guide(x)`.
        penalties: the regularisers λR, see `pyro_mvae.inference.penalties`.
        kl_weight: β, of every latent site but `theta`; 1 for the bound.
        theta_kl_weight: β′, of the site `theta`; 1 for the bound (8), 0 for the paper's (7), which drops that KL.
        precision: that of the nets, "float32" or "bfloat16".

    Shapes: (n, C, H, W) → {"loss": (), "likelihood": (), "kl": (), "theta_kl" where there is one, and each R by its name: ()}.

    Raises:
        ValueError: for a weight below 0, or two penalties of one name.

    Example:
        >>> import pyro
        >>> from pyro_mvae.inference.penalties import Sparse
        >>> from pyro_mvae.models import VAE
        >>> with pyro.validation_enabled(False):
        ...     terms = Objective(VAE((1, 8, 8), 4, widths=(4,), hidden=8), [Sparse(0.1)])(torch.rand(2, 1, 8, 8).round())
        >>> sorted(terms)
        ['kl', 'likelihood', 'loss', 'sparse']
    """

    def __init__(
        self,
        vae: nn.Module,
        penalties: Iterable[Penalty] = (),
        *,
        kl_weight: float = 1.0,
        theta_kl_weight: float = 1.0,
        precision: str = "float32",
    ):
        super().__init__()
        self.vae, self.precision = vae, precision
        self.penalties = tuple(penalties)
        weights = {"kl": kl_weight, "theta_kl": theta_kl_weight, **{penalty.name: penalty.weight for penalty in self.penalties}}
        if len(weights) < len(self.penalties) + 2:
            raise ValueError(f"the penalties are {self.penalties}, expected names that differ")
        like = next(vae.parameters())
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"the weight of {name} is {value}, expected 0 or more: (14) penalises, it does not reward")
            self.register_buffer(f"{name}_weight", torch.tensor(float(value), device=like.device))

    @property
    def weights(self) -> dict[str, Tensor]:
        """β, β′ and each λ, by the name of its term; a scalar each, to be filled in place."""
        names = ("kl", "theta_kl", *(penalty.name for penalty in self.penalties))
        return {name: self.get_buffer(f"{name}_weight") for name in names}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pair: tuple[Any, Any] = (self.vae.model, self.vae.guide)
        with nets_in(self.precision, self.vae):
            traces = get_importance_trace("flat", float("inf"), *pair, (x,), {})
        sites: tuple[Sites, Sites] = (dict(traces[0].nodes), dict(traces[1].nodes))
        terms = {name: term / x.shape[0] for name, term in bound_terms(*sites).items()}
        terms |= {penalty.name: penalty(self.vae, x, *sites) for penalty in self.penalties}
        weights = self.weights
        weighted = [weights[name] * term if name in weights else term for name, term in terms.items()]
        return {"loss": torch.stack(weighted).sum(), **terms}


Pair = tuple[Callable[..., Any], Callable[..., Any]]


def kl_weighted(
    model: Callable[..., Any], guide: Callable[..., Any], *, weight: float, sites: Sequence[str] | None = None
) -> Pair:
    """A pair whose KL counts `weight` times: the β of a β-VAE or a warm-up, under any of Pyro's bounds, 0 included.

    The log-probability of each latent site is scaled in the model and in the guide alike. In the model alone it would bias
    `Trace_ELBO` and mean nothing to `TraceMeanField_ELBO`; and `poutine.scale` refuses 0 and scales what is observed too. What
    the guide does not sample has no KL and is left as it is: sites that `TraceEnum_ELBO` sums out of the model.

    Args:
        model, guide: any Pyro pair.
        weight: β, 0 or more.
        sites: the latent sites it is for; all when None.

    Returns: (model, guide), to be used together.

    Raises:
        ValueError: for a weight below 0.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_mvae.models import VAE
        >>> vae = VAE((1, 8, 8), 4, widths=(4,), hidden=8)
        >>> svi = SVI(*kl_weighted(vae.model, vae.guide, weight=0.0), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> svi.step(torch.rand(2, 1, 8, 8).round()) > 0
        True
    """
    if not weight >= 0:
        raise ValueError(f"weight is {weight}, expected 0 or more")
    sampled: set[str] = set()

    def weighted_guide(*args: Any, **kwargs: Any) -> Any:
        sampled.clear()
        with Weighted(weight, lambda name: sites is None or name in sites, seen=sampled):
            return guide(*args, **kwargs)

    def weighted_model(*args: Any, **kwargs: Any) -> Any:
        with Weighted(weight, sampled.__contains__):
            return model(*args, **kwargs)

    return weighted_model, weighted_guide


class Weighted(Messenger):
    """Scales the latent sites that `chosen` names by a weight, and notes them in `seen`."""

    def __init__(self, weight: float, chosen: Callable[[str], bool], *, seen: set[str] | None = None):
        super().__init__()
        self.weight, self.chosen, self.seen = weight, chosen, seen

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg) and self.chosen(msg["name"]):
            msg["scale"] = msg["scale"] * self.weight
            if self.seen is not None:
                self.seen.add(msg["name"])
