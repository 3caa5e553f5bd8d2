"""A handler that weighs sites: the β of a β-VAE, of a warm-up, of one term of a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample


class Weighted(Messenger):
    """Scales the log-probability of latent sites, or of observed ones; unlike `poutine.scale`, by 0 too, and never of both.

    A KL counts `weight` times when its site is weighed in the model and in the guide alike.

    Args:
        weight: 0 or more.
        chosen: which sites, by their names; all when None.
        observed: whether it is for observed sites, instead of latent ones.
        seen: a set to note them in.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> def model():
        ...     with Weighted(0.5):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> pyro.poutine.trace(model).get_trace().nodes["z"]["scale"]
        0.5
    """

    def __init__(
        self,
        weight: float,
        chosen: Callable[[str], bool] | None = None,
        *,
        observed: bool = False,
        seen: set[str] | None = None,
    ):
        super().__init__()
        self.weight, self.chosen, self.observed, self.seen = weight, chosen, observed, seen

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] != self.observed or site_is_subsample(msg) or not (self.chosen is None or self.chosen(msg["name"])):
            return
        msg["scale"] = msg["scale"] * self.weight
        if self.seen is not None:
            self.seen.add(msg["name"])
