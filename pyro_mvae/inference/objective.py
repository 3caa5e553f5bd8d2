"""What is minimised: the negative bound of a Pyro pair and its penalties, as named terms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_mvae.inference.penalties import Penalty, Sites
from pyro_mvae.inference.precision import nets_in
from pyro_mvae.models.weighted import Weighted
from pyro_mvae.numbers import number

THETA = "theta"
"""The site of a Bayesian likelihood's parameters θ′; every other latent site is part of the code."""

TAKEN = frozenset(["loss", "kl", "likelihood", "theta_kl", "epoch", "epochs", "test_loss", "lr", "learning_rate"])
TAKEN |= {"guide_learning_rate", "batch_size", "seconds", "images_per_second"}
"""What penalties can't be called: terms, columns of the history and knobs of controllers have these names."""
Pair = tuple[Any, Any]


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


class Objective(nn.Module):
    """−E_q[log p(x|z, θ′)] + β KL(q(z|x) ‖ p(z)) + β′ KL(q(θ′|x) ‖ p(θ′)) + Σ λᵢRᵢ, (8), (14) and (30), in nats per datum.

    The weights are buffers, so that they can be changed while a graph that was traced with them goes on: see `weights`.

    Args:
        vae: a Pyro pair: an `nn.Module` with `model(x)` and `guide(x)`, and with `max_plate_nesting` where its plates are nested.
        penalties: the regularisers λR, see `pyro_mvae.inference.penalties`.
        kl_weight: β, of every latent site but `theta`; 1 for the bound.
        theta_kl_weight: β′, of the site `theta`; 1 for the bound (8), 0 for the paper's (7), which drops that KL.
        precision: that of the nets, "float32" or "bfloat16".

    Shapes: (n, C, H, W) → {"loss": (), "likelihood": (), "kl": (), "theta_kl" where there is one, each factor of the model and
    each R by its name: ()}. "kl" is the KL itself, also where the model weighs it, as a β-VAE does; "loss" has it weighed.

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
        check_penalties(self.penalties)
        weights = {"kl": kl_weight, "theta_kl": theta_kl_weight, **{penalty.name: penalty.weight for penalty in self.penalties}}
        like = next(vae.parameters())
        for name, value in weights.items():
            if not 0 <= number(value, f"the weight of {name}") < math.inf:
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
            traces = importance_traces(*pair, x, max_plate_nesting=getattr(self.vae, "max_plate_nesting", 1))
        sites: tuple[Sites, Sites] = (dict(traces[0].nodes), dict(traces[1].nodes))
        terms = {name: term.per(x.shape[0]) for name, term in bound_terms(*traces).items()}
        for penalty in self.penalties:
            value = penalty(self.vae, x, *sites)
            if not isinstance(value, Tensor) or value.ndim:
                raise ValueError(f"the penalty {penalty.name!r} returned {value}, expected a tensor without dimensions")
            if penalty.name in terms:
                raise ValueError(f"the penalty {penalty.name!r} has the name of a factor of the model: give it another")
            terms[penalty.name] = Term(value, value)
        weights = self.weights
        weighted = [weights[name] * term.weighted if name in weights else term.weighted for name, term in terms.items()]
        return {"loss": torch.stack(weighted).sum(), **{name: term.value for name, term in terms.items()}}


def check_penalties(penalties: Sequence[Any]) -> None:
    """Raise a ValueError for what is no penalty, and for names that are taken or can't be a column."""
    for penalty in penalties:
        if isinstance(penalty, type) or not isinstance(penalty, Penalty):
            raise ValueError(f"{penalty!r} is no penalty: expected values with a name, a weight and a call, such as Prune(1e-4)")
        if not penalty.name.isidentifier() or penalty.name in TAKEN:
            raise ValueError(f"a penalty's name is {penalty.name!r}: expected a word that is none of {', '.join(sorted(TAKEN))}")
    names = [penalty.name for penalty in penalties]
    if len(set(names)) < len(names):
        raise ValueError(f"the penalties' names are {', '.join(names)}: expected names that differ")


def importance_traces(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor, *, max_plate_nesting: int = 1
) -> tuple[Trace, Trace]:
    """Traces of a model, run against its guide, and of the guide; sites it marks for parallel enumeration are enumerated.

    Args:
        max_plate_nesting: how many plates are inside of each other; dimensions to the left of theirs are for enumeration.
    """
    enumerated: Any = EnumMessenger()(model)
    enumerating: Any = EnumMessenger(first_available_dim=-1 - max_plate_nesting)(guide)
    return get_importance_trace("flat", max_plate_nesting, enumerated, enumerating, (x,), {})


def kl_weighted(
    model: Callable[..., Any], guide: Callable[..., Any], *, weight: float, sites: Sequence[str] | None = None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
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
