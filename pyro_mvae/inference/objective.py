"""What is minimised: the negative bound of a Pyro pair and its penalties, as named terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor, nn

from pyro_mvae.inference.bound import Sites, Term, bound_terms
from pyro_mvae.inference.forward import encoded_once
from pyro_mvae.inference.penalties import Penalty
from pyro_mvae.inference.precision import nets_in
from pyro_mvae.models.weighted import Weighted
from pyro_mvae.numbers import number

TAKEN = frozenset(["loss", "kl", "likelihood", "theta_kl", "epoch", "epochs", "test_loss", "lr", "learning_rate"])
TAKEN |= {"guide_learning_rate", "batch_size", "seconds", "images_per_second"}
"""What penalties can't be called: terms, columns of the history and knobs of controllers have these names."""


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
        with nets_in(self.precision, self.vae), encoded_once(self.vae, x):
            return self.terms(x)

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """What `forward` returns, with the nets as they are."""
        pair: tuple[Any, Any] = (self.vae.model, self.vae.guide)
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
