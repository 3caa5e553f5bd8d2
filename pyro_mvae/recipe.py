"""What each model of Table 9 is made of and trained with, beyond its pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyro_mvae.inference.penalties import Invariant, Penalty, PruneGroups, Round
from pyro_mvae.inference.tuning import Controller, OneCycle, quantization_error

CLUSTERED = ("vade", "gmvae", "mvae")
BITS = 8
RECIPES = 4
"""A comparison is gone on with where its models were made, trained and measured by these; another number for others."""


@dataclass(frozen=True)
class Recipe:
    """Arguments of a model, its penalties λR, and the controllers of its run.

    Example:
        >>> [penalty.name for penalty in recipe_of("mvae", num_clusters=10).penalties]
        ['invariant', 'prune_groups', 'round']
    """

    made_with: dict[str, Any] = field(default_factory=dict)
    penalties: tuple[Penalty, ...] = ()
    controllers: tuple[Controller, ...] = (OneCycle(),)


def recipe_of(name: str, *, num_clusters: int) -> Recipe:
    """How a model is made and trained, to be compared with others.

    The mVAE is the paper's: a mixture for a prior and a Bayesian likelihood, (6) to (12), and the miniaturisation objective (14):
    groups of weights are drawn to 0, (15), weights to what 8 bits can hold, (17), at a λ that follows the rounding error
    (dynamic hyper-parameters), and its clusters are held to what moving a picture leaves alone.
    """
    clusters = {"num_clusters": num_clusters} if name in CLUSTERED else {}
    if name != "mvae":
        return Recipe(clusters)
    return Recipe(
        {**clusters, "theta": "weights"},
        (Invariant(50.0, every=2), PruneGroups(1e-4), Round(1e-4, bits=BITS)),
        (OneCycle(), quantization_error(0.004, bits=BITS)),
    )
