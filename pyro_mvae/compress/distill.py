"""Distilling: a small model learns from the data and from a large one at once, (19)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor

from pyro_mvae.compress.passes import Model, Pass, needed
from pyro_mvae.compress.prune import PruneLatents
from pyro_mvae.compress.shrink import Shrink
from pyro_mvae.data import Data
from pyro_mvae.data.images import Split
from pyro_mvae.inference import fit, penalties
from pyro_mvae.inference.penalties import MatchFeatures, Penalty
from pyro_mvae.models import VAE
from pyro_mvae.nets.fold import fold_batch_norm
from pyro_mvae.nets.structure import structure
from pyro_mvae.numbers import count

TRAINED = ("both", "decoder")


@dataclass(frozen=True)
class Distill:
    """Another pass, and what it leaves taught by what it was given, (19): the smaller model learns from the larger one.

    Where the student's code is smaller, its teacher is what `PruneLatents` leaves of the larger model.

    Args:
        by: what makes the student: `Shrink`, or any other pass that leaves something to train.
        weight, features, train: as `distill`.
        epochs, batch_size, lr, seed: as `fit`.
        binarization: of the images, as in `Data`; when None, "dynamic" for a Bernoulli likelihood, "none" for others.

    Raises:
        ValueError: without images, for settings that can't be, and what `by` and `distill` refuse.

    Example:
        >>> from pyro_mvae.models import VAE
        >>> import torch
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> Distill(Shrink(width=0.5), epochs=1)(VAE((1, 8, 8), 4), images).config["widths"]
        [12, 24]
    """

    by: Pass = field(default_factory=Shrink)
    weight: float = 1.0
    features: float = 0.0
    train: str = "both"
    epochs: int = 5
    batch_size: int = 64
    lr: float = 4e-3
    seed: int = 0
    binarization: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.by, Pass) or isinstance(self.by, type):
            raise ValueError(f"by is {self.by!r}, expected a pass that makes the student, such as Shrink(width=0.5)")
        check_trained(self.train)
        for name in ("epochs", "batch_size"):
            count(getattr(self, name), name)

    def __call__(self, model: Model, images: Tensor | None = None, /) -> Model:
        check_spread(model)
        images = needed(images, self)
        student = self.by(model, images)
        how: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "seed": self.seed}
        binarization = self.binarization or ("dynamic" if model.config.get("likelihood") == "bernoulli" else "none")
        data = Data("given", Split(images), Split(images[:1]), binarization=binarization)
        teacher = model if student.latent_dim == model.latent_dim else PruneLatents(keep=student.latent_dim)(model, images)
        distill(teacher, student, data, weight=self.weight, features=self.features, train=self.train, **how)
        student.passes = (*model.passes, repr(self))
        return student


def distill(
    teacher: VAE, student: VAE, data: Data, *, weight: float = 1.0, features: float = 0.0, train: str = "both", **settings: Any
) -> pd.DataFrame:
    """Fit a student to data and to a teacher: bound + λ (KL of posteriors + KL of likelihoods), (19), + λ_f features.

    The student may have other nets and sizes than the teacher; images, latent size and kinds of distributions are the same.

    Args:
        teacher: a fitted model; left as it is.
        student: trained in place.
        weight: λ.
        features: λ_f, of `MatchFeatures`; 0 leaves it out.
        train: "both" nets, or the "decoder" alone: the student is then given the teacher's encoder, folded, as it is, so that
            codes mean the same to both. The recipe of tiny decoders; kinds of nets and numbers of widths are then the same.
        settings: as `fit`; more `penalties` are added.

    Returns: the history.

    Raises:
        ValueError: for another teacher than that, or nets that can't be shared.

    Example:
        >>> import torch
        >>> from pyro_mvae.data import Split
        >>> images = (torch.rand(64, 1, 8, 8) * 255).byte()
        >>> data = Data("noise", Split(images), Split(images[:8]), binarization="none")
        >>> teacher, student = VAE((1, 8, 8), 4), VAE((1, 8, 8), 4, widths=(8, 8), hidden=16)
        >>> history = distill(teacher, student, data, features=0.1, train="decoder", epochs=1, batch_size=32)
        >>> {"distill", "match_features"} <= set(history)
        True
    """
    check_trained(train)
    check_spread(teacher)
    terms: list[Penalty] = [penalties.Distill(weight, teacher), *settings.pop("penalties", ())]
    if features:
        terms.append(MatchFeatures(features, teacher))
    if train == "decoder":
        check_same_kind(teacher, student)
        student.encoder = fold_batch_norm(teacher.encoder).requires_grad_(False)
    try:
        return fit(student, data, penalties=terms, **settings)
    finally:
        student.encoder.requires_grad_(True)


def check_spread(teacher: VAE) -> None:
    """Raise a ValueError where a teacher's q(z|x) has no KL to a student's."""
    if teacher.point:
        raise ValueError(
            f"q(z|x) of a {type(teacher).__name__} is one point, with no finite KL to another: train the student on data alone"
        )


def check_trained(train: str) -> None:
    if train not in TRAINED:
        raise ValueError(f"train is {train!r}, expected {' or '.join(TRAINED)}")


def check_same_kind(teacher: VAE, student: VAE) -> None:
    """Raise a ValueError where a student can't be given its teacher's encoder."""
    made = structure(student.encoder, student.decoder)
    if made != {**structure(teacher.encoder, teacher.decoder), "folded": made["folded"]}:
        raise ValueError(
            "the student was quantised, given palettes or made sparse, which its teacher's encoder is not: train both nets, or "
            "do that to the student once it was taught"
        )
    theirs, mine = (
        (type(model).__name__, model.config["net"], len(model.config["widths"]), model.latent_dim) for model in (teacher, student)
    )
    if theirs != mine:
        raise ValueError(
            "a student is given its teacher's encoder where class, net, number of widths and latent size are the same, "
            f"and they are {theirs} and {mine}: train both nets"
        )
